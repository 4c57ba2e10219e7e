/* SPDX-License-Identifier: MIT */
/*
 * The machine operations that Python cannot express: atomics, futexes, clocks, hardware counters
 * and fibers.  No protocol logic lives here.
 *
 * Every parameter and result is an int64_t, addresses included, so that ctypes, LLVM and C agree on
 * one calling convention.  An address names an aligned 64-bit word mapped in the calling process.
 * A function that can fail returns -errno.
 */
#ifndef SPF_SHIMS_H
#define SPF_SHIMS_H

#include <stdint.h>

_Static_assert(sizeof(void *) == sizeof(int64_t), "addresses travel as int64_t");

static inline void *spf_pointer(int64_t addr)
{
	return (void *)(uintptr_t)addr;
}

/*
 * atomics.c: C11 orderings.  A seq_cst read-modify-write is totally ordered against other seq_cst
 * operations, but unlike the kernel's value-returning atomics it is no full barrier for the relaxed
 * accesses around it on arm64: code that relies on that needs spf_smp_mb() as well.  A failed
 * cmpxchg is a load: acquire where success is seq_cst or acquire, else relaxed.
 */
int64_t spf_load(int64_t addr);			/* relaxed */
int64_t spf_read_once(int64_t addr);		/* relaxed */
void spf_store(int64_t addr, int64_t v);	/* relaxed */
void spf_write_once(int64_t addr, int64_t v);	/* relaxed */
int64_t spf_smp_load_acquire(int64_t addr);
void spf_smp_store_release(int64_t addr, int64_t v);
int64_t spf_xchg(int64_t addr, int64_t v);	/* seq_cst; returns the old value, as do all below */
int64_t spf_cmpxchg(int64_t addr, int64_t old, int64_t new_);
int64_t spf_cmpxchg_acquire(int64_t addr, int64_t old, int64_t new_);
int64_t spf_cmpxchg_release(int64_t addr, int64_t old, int64_t new_);
int64_t spf_cmpxchg_relaxed(int64_t addr, int64_t old, int64_t new_);
int64_t spf_atomic_fetch_add(int64_t addr, int64_t v);
int64_t spf_atomic_fetch_add_acquire(int64_t addr, int64_t v);
int64_t spf_atomic_fetch_add_release(int64_t addr, int64_t v);
int64_t spf_atomic_fetch_add_relaxed(int64_t addr, int64_t v);
int64_t spf_atomic_fetch_or(int64_t addr, int64_t v);
int64_t spf_atomic_fetch_and(int64_t addr, int64_t v);
void spf_smp_mb(void);				/* seq_cst fence */
void spf_smp_rmb(void);				/* acquire fence: orders loads, and more than that */
void spf_smp_wmb(void);				/* release fence: orders stores, and more than that */
void spf_cpu_relax(void);
void spf_clear_page(int64_t addr);		/* 4096 bytes, not atomic */
void spf_copy_page(int64_t dst, int64_t src);	/* 4096 bytes, not atomic, no overlap */

/*
 * futex.c: any system call, returning its result or -errno, and process-shared futexes.  The kernel compares and sleeps on the low 32 bits of the word,
 * so a change confined to the high half is not seen by a waiter.
 */
int64_t spf_raw_syscall(int64_t number, int64_t a, int64_t b, int64_t c, int64_t d, int64_t e,
			int64_t f);
/*
 * Sleeps while the low half of *addr equals that of expected.  timeout_ns is relative, on
 * CLOCK_MONOTONIC; negative means none.  Returns 0 when woken (perhaps spuriously), -EAGAIN when
 * the values differ, -ETIMEDOUT, -EINTR, or another -errno of futex(2).
 */
int64_t spf_futex_wait(int64_t addr, int64_t expected, int64_t timeout_ns);
/* Wakes at most n waiters, in any process; returns how many, or -errno.  n <= 0 wakes none. */
int64_t spf_futex_wake(int64_t addr, int64_t n);

/*
 * clock.c: the counter that user space can read cheaply: TSC, CNTVCT_EL0, elsewhere nanoseconds.
 */
int64_t spf_read_cycles(void);			/* not ordered against surrounding accesses */
/* Counter ticks per second, measured for window_ns unless the machine states it; -EINVAL. */
int64_t spf_cycles_per_second(int64_t window_ns);
int64_t spf_getcpu(void);			/* the CPU the caller runs on, or -errno */

/*
 * perf.c: one hardware counter, of user-mode events of one process.
 */
enum spf_perf_kind {
	SPF_PERF_CYCLES,
	SPF_PERF_INSTRUCTIONS,
	SPF_PERF_CACHE_REFERENCES,
	SPF_PERF_CACHE_MISSES,
};

/*
 * Opens a stopped counter on process pid (0: the caller), and on the children and threads that it
 * creates later if inherit is not 0.  Returns a file descriptor or -errno: -EINVAL for a bad kind,
 * -ENOENT or -EOPNOTSUPP where the machine has no such counter, -EACCES or -EPERM where it is not
 * permitted.
 */
int64_t spf_perf_open(int64_t kind, int64_t pid, int64_t inherit);
int64_t spf_perf_enable(int64_t fd);
int64_t spf_perf_disable(int64_t fd);
/* Zeroes the count.  The times behind spf_perf_read()'s scaling keep their sum since opening. */
int64_t spf_perf_reset(int64_t fd);
/*
 * Events counted, scaled up when the counter shared its hardware.  -ENODATA when it was enabled but
 * never got the hardware: that is not a count of zero.
 */
int64_t spf_perf_read(int64_t fd);
int64_t spf_perf_close(int64_t fd);

/*
 * fiber.c: coroutines for the stepped engine.  They belong to one thread per process: creating,
 * resuming and freeing fibers from a second thread is not supported.  The entry must be compiled
 * code; the Python interpreter cannot run on a fiber's stack.
 */
enum spf_fiber_state {
	SPF_FIBER_READY,	/* created, or stopped at a step */
	SPF_FIBER_RUNNING,
	SPF_FIBER_WAITING,	/* on a futex: a0 address, a1 expected, a2 timeout_ns */
	SPF_FIBER_DONE,		/* result is valid */
	SPF_FIBER_FREED = -1,	/* the handle must not be used any more */
};

enum {
	SPF_STEP_FUTEX_WAIT = 20,	/* a0 address, a1 expected, a2 timeout_ns */
	SPF_STEP_FUTEX_WAKE = 21,	/* a0 address, a1 n */
	SPF_FIBER_ARGS_MAX = 16,
};

/* What a handle points at: read-only for schedulers, as ten int64 in this order. */
struct spf_fiber {
	int64_t state;
	int64_t kind, site, a0, a1, a2;	/* the event stopped at; kind and site are -1 before it */
	int64_t result;			/* what the entry returned */
	int64_t wake_result;		/* what ended the last wait: 0 or -ETIMEDOUT */
	int64_t steps;			/* events so far */
	int64_t cpu;			/* as spf_fiber_set_cpu() has set it */
};

/*
 * Creates a READY fiber that will call entry, an int64_t (*)(const int64_t *args), with a copy of
 * nargs arguments, on a stack of at least stack_bytes above a guard page.  Returns a handle,
 * -EINVAL or -ENOMEM.
 */
int64_t spf_fiber_new(int64_t entry, int64_t args, int64_t nargs, int64_t stack_bytes);
/* Frees a fiber (not a RUNNING one); what is on its stack is abandoned, not unwound. */
void spf_fiber_free(int64_t handle);
/* Runs a READY fiber to its next step, wait or end; returns its state, or -EINVAL. */
int64_t spf_fiber_resume(int64_t handle);
/*
 * Resumes until the fiber stops at an event of this kind and site (-1: any), waits or ends, but at
 * most max_steps times; returns its state, or -EINVAL when it was not READY.
 */
int64_t spf_fiber_run(int64_t handle, int64_t kind, int64_t site, int64_t max_steps);
/* Ends a wait that has a timeout: the fiber is READY with -ETIMEDOUT.  0, or -EINVAL. */
int64_t spf_fiber_timeout(int64_t handle);
/* A word of the running fiber's own, which the compiled code uses for its CPU block. */
void spf_fiber_set_cpu(int64_t cpu);
int64_t spf_fiber_cpu(void);			/* 0 outside any fiber */

/* Called on a fiber: stops at an event until resumed.  Outside any fiber, returns at once. */
void spf_step(int64_t kind, int64_t site, int64_t a0, int64_t a1, int64_t a2);
/*
 * Steps, then waits if all 64 bits of *addr equal expected (else -EAGAIN); returns wake_result.
 * Outside any fiber nobody could end the wait: -EDEADLK.
 */
int64_t spf_step_futex_wait(int64_t site, int64_t addr, int64_t expected, int64_t timeout_ns);
/* Steps, then makes up to n fibers waiting on addr READY, oldest wait first; returns how many. */
int64_t spf_step_futex_wake(int64_t site, int64_t addr, int64_t n);
/* The deterministic clock: steps of all fibers since the last reset. */
int64_t spf_step_clock(void);
void spf_step_clock_reset(void);

#endif
