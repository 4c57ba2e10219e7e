/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "check.h"

#include <errno.h>
#include <fenv.h>
#include <signal.h>

enum { STACK = 64 << 10 };

static struct spf_fiber *spawn(int64_t (*entry)(const int64_t *), int64_t arg, int64_t stack_bytes)
{
	int64_t args[] = { arg, 0 };
	int64_t handle = spf_fiber_new((int64_t)(uintptr_t)entry, addr_of(args), 1, stack_bytes);

	args[0] = -1;		/* the fiber has its own copy */
	CHECK(handle > 0);
	return spf_pointer(handle);
}

static int64_t resume(struct spf_fiber *fiber)
{
	return spf_fiber_resume(addr_of(fiber));
}

static void finish(struct spf_fiber *fiber, int64_t expected_result)
{
	while (fiber->state == SPF_FIBER_READY)
		resume(fiber);
	CHECK_EQ(fiber->state, SPF_FIBER_DONE);
	CHECK_EQ(fiber->result, expected_result);
	spf_fiber_free(addr_of(fiber));
}

static void check_event(const struct spf_fiber *fiber, int64_t kind, int64_t site, int64_t a0)
{
	CHECK_EQ(fiber->kind, kind);
	CHECK_EQ(fiber->site, site);
	CHECK_EQ(fiber->a0, a0);
}

/* Steps args[0] times, at sites 0, 1, 2, ... of kinds 0, 1, 2, 0, ... */
static int64_t stepper(const int64_t *args)
{
	for (int64_t i = 0; i < args[0]; i++)
		spf_step(i % 3, i, -i, INT64_MAX, INT64_MIN);
	return args[0] + 1;
}

static void test_events_and_states(void)
{
	struct spf_fiber *fiber = spawn(stepper, 2, STACK);

	spf_step_clock_reset();
	CHECK_EQ(fiber->state, SPF_FIBER_READY);
	check_event(fiber, -1, -1, 0);
	CHECK_EQ(resume(fiber), SPF_FIBER_READY);
	check_event(fiber, 0, 0, 0);
	CHECK_EQ(resume(fiber), SPF_FIBER_READY);
	check_event(fiber, 1, 1, -1);
	CHECK(fiber->a1 == INT64_MAX && fiber->a2 == INT64_MIN);
	CHECK_EQ(fiber->steps, 2);
	CHECK_EQ(resume(fiber), SPF_FIBER_DONE);
	CHECK_EQ(fiber->result, 3);
	CHECK_EQ(spf_step_clock(), 2);
	CHECK_EQ(resume(fiber), -EINVAL);
	CHECK_EQ(spf_fiber_run(addr_of(fiber), -1, -1, 1), -EINVAL);
	spf_fiber_free(addr_of(fiber));
	CHECK_EQ(fiber->state, SPF_FIBER_FREED);
}

static void test_new_refuses(void)
{
	int64_t entry = (int64_t)(uintptr_t)stepper;
	int64_t args[SPF_FIBER_ARGS_MAX + 1] = { 0 };
	int64_t a = addr_of(args);

	CHECK_EQ(spf_fiber_new(0, a, 1, STACK), -EINVAL);
	CHECK_EQ(spf_fiber_new(entry, a, -1, STACK), -EINVAL);
	CHECK_EQ(spf_fiber_new(entry, a, SPF_FIBER_ARGS_MAX + 1, STACK), -EINVAL);
	CHECK_EQ(spf_fiber_new(entry, a, 1, -1), -EINVAL);
	CHECK_EQ(spf_fiber_new(entry, a, 1, INT64_MAX), -EINVAL);
}

static void test_run_stops_where_told(void)
{
	struct spf_fiber *fiber = spawn(stepper, 100, STACK);
	int64_t handle = addr_of(fiber);

	CHECK_EQ(spf_fiber_run(handle, -1, 10, 50), SPF_FIBER_READY);
	check_event(fiber, 1, 10, -10);
	CHECK_EQ(spf_fiber_run(handle, 0, -1, 50), SPF_FIBER_READY);
	check_event(fiber, 0, 12, -12);
	CHECK_EQ(spf_fiber_run(handle, 2, 20, 50), SPF_FIBER_READY);
	check_event(fiber, 2, 20, -20);
	CHECK_EQ(spf_fiber_run(handle, -1, -1, 50), SPF_FIBER_READY);
	check_event(fiber, 0, 21, -21);
	CHECK_EQ(spf_fiber_run(handle, 0, 1, 4), SPF_FIBER_READY);	/* no such event */
	check_event(fiber, 1, 25, -25);
	CHECK_EQ(spf_fiber_run(handle, -1, -1, 0), SPF_FIBER_READY);
	CHECK_EQ(fiber->steps, 26);
	CHECK_EQ(spf_fiber_run(handle, 0, 1, 1000), SPF_FIBER_DONE);
	CHECK_EQ(fiber->steps, 100);
	spf_fiber_free(handle);
}

static void test_many_fibers_take_turns(void)
{
	enum { FIBERS = 600, STEPS = 50 };	/* more than are kept for reuse */
	struct spf_fiber *fibers[FIBERS];

	for (int round = 0; round < 2; round++) {
		spf_step_clock_reset();
		for (int i = 0; i < FIBERS; i++)
			fibers[i] = spawn(stepper, STEPS + i % 3, STACK);
		for (int step = 0; step < STEPS; step++)
			for (int i = 0; i < FIBERS; i++) {
				CHECK_EQ(resume(fibers[i]), SPF_FIBER_READY);
				CHECK_EQ(fibers[i]->site, step);
			}
		CHECK_EQ(spf_step_clock(), FIBERS * STEPS);
		for (int i = 0; i < FIBERS; i++)
			finish(fibers[i], STEPS + i % 3 + 1);
	}
}

static int64_t resume_inner(const int64_t *args)
{
	struct spf_fiber *inner = spf_pointer(args[0]);

	CHECK_EQ(resume(inner), SPF_FIBER_READY);
	spf_step(7, 7, 0, 0, 0);
	CHECK_EQ(resume(inner), SPF_FIBER_READY);
	return inner->site;
}

static void test_a_fiber_resumes_another(void)
{
	struct spf_fiber *inner = spawn(stepper, 5, STACK);
	struct spf_fiber *outer = spawn(resume_inner, addr_of(inner), STACK);

	CHECK_EQ(resume(outer), SPF_FIBER_READY);
	check_event(outer, 7, 7, 0);
	check_event(inner, 0, 0, 0);
	finish(outer, 1);
	finish(inner, 6);
}

/* x86-64 preserves the control words of x87 and SSE; arm64's FPCR belongs to the thread. */
#if defined(__x86_64__)
#define ROUNDING_MODE_IS_CALLEE_SAVED 1
#define CALLEE_SAVED(V) V("rbx") V("r12") V("r13") V("r14") V("r15")
#define CALLEE_SAVED_FP(V)
#elif defined(__aarch64__)
#define ROUNDING_MODE_IS_CALLEE_SAVED 0
#define CALLEE_SAVED(V) V("x19") V("x20") V("x21") V("x22") V("x23") V("x24") V("x25") V("x26") \
	V("x27") V("x28")
#define CALLEE_SAVED_FP(V) V("d8") V("d9") V("d10") V("d11") V("d12") V("d13") V("d14") V("d15")
#else
#define ROUNDING_MODE_IS_CALLEE_SAVED 0
#define CALLEE_SAVED(V)
#define CALLEE_SAVED_FP(V)
#endif

/* Holds a value in one register across steps; the asm statements keep it there. */
#define CHECK_REGISTER(name)								\
	{										\
		register int64_t value __asm__(name) = seed * 3;			\
		__asm__ volatile("" : "+r"(value));					\
		spf_step(0, 0, 0, 0, 0);						\
		__asm__ volatile("" : "+r"(value));					\
		CHECK_EQ(value, seed * 3);						\
	}

#define CHECK_REGISTER_FP(name)								\
	{										\
		register double value __asm__(name) = (double)seed * 0.5;		\
		__asm__ volatile("" : "+w"(value));					\
		spf_step(0, 0, 0, 0, 0);						\
		__asm__ volatile("" : "+w"(value));					\
		CHECK(value == (double)seed * 0.5);					\
	}

static int64_t register_user(const int64_t *args)
{
	volatile int64_t seed = args[0];

	for (int i = 0; i < 50; i++) {
		CALLEE_SAVED(CHECK_REGISTER)
		CALLEE_SAVED_FP(CHECK_REGISTER_FP)
		seed += 1000;
	}
	return seed;
}

/* More live values than there are registers, whichever of them the compiler picks. */
static int64_t float_user(const int64_t *args)
{
	double sum[8], product = 1.0;

	for (int i = 0; i < 8; i++)
		sum[i] = (double)args[0];
	for (int step = 0; step < 100; step++) {
		for (int i = 0; i < 8; i++)
			sum[i] += i * 0.25;
		product = product * 1.5 + (double)args[0];
		spf_step(0, step, 0, 0, 0);
		product = (product - (double)args[0]) / 1.5;
	}
	for (int i = 0; i < 8; i++)
		CHECK(sum[i] == (double)args[0] + 100 * i * 0.25);
	CHECK(product > 0.999 && product < 1.001);
	return args[0];
}

static void interleave(int64_t (*entry)(const int64_t *), int64_t increment)
{
	struct spf_fiber *one = spawn(entry, 1, STACK), *two = spawn(entry, 2, STACK);

	while (one->state != SPF_FIBER_DONE) {
		CHECK_EQ(resume(one), resume(two));
	}
	finish(one, 1 + increment);
	finish(two, 2 + increment);
}

static void test_registers_survive_switches(void)
{
	interleave(register_user, 50 * 1000);
	interleave(float_user, 0);
}

/* Volatile throughout: the compiler may otherwise divide before or after a change of mode. */
static double third(void)
{
	volatile double three = 3.0, quotient = 1.0 / three;

	return quotient;
}

/* x87 and SSE each have a rounding mode: fegetround() shows the first, a division the second. */
static int64_t rounding_user(const int64_t *args)
{
	int mode = args[0] == 1 ? FE_UPWARD : FE_DOWNWARD;
	double nearest = third(), rounded;

	CHECK_EQ(fegetround(), FE_TONEAREST);
	fesetround(mode);
	rounded = third();
	CHECK((rounded > nearest) == (mode == FE_UPWARD));
	for (int i = 0; i < 10; i++) {
		spf_step(0, 0, 0, 0, 0);
		CHECK_EQ(fegetround(), mode);
		CHECK(third() == rounded);
	}
	return args[0];
}

static void test_rounding_mode_is_callee_saved(void)
{
	if (ROUNDING_MODE_IS_CALLEE_SAVED)
		interleave(rounding_user, 0);
	CHECK_EQ(fegetround(), FE_TONEAREST);
}

static int64_t recurse(int64_t depth)
{
	volatile char frame[256];

	frame[0] = frame[255] = (char)depth;
	if (depth == 0)
		spf_step(0, 0, 0, 0, 0);
	else
		CHECK_EQ(recurse(depth - 1), depth - 1);
	CHECK(frame[0] == (char)depth && frame[255] == (char)depth);
	return depth;
}

static int64_t deep(const int64_t *args)
{
	return recurse(args[0]);
}

static void test_deep_stacks(void)
{
	struct spf_fiber *one = spawn(deep, 4000, 4 << 20), *two = spawn(deep, 3999, 4 << 20);

	CHECK_EQ(resume(one), SPF_FIBER_READY);
	CHECK_EQ(resume(two), SPF_FIBER_READY);
	finish(one, 4000);
	finish(two, 3999);
}

static void fill(volatile char *bytes, int n)
{
	for (int i = 0; i < n; i++)
		bytes[i] = 1;
}

/* Compiled kernel code: AddressSanitizer does not know its frames, but checks what they lend. */
__attribute__((no_sanitize_address)) static int64_t lender(const int64_t *args)
{
	char frame[16 << 10];

	fill(frame, sizeof(frame));
	return args[0] + frame[0];
}

static void test_abandoned_stacks_are_reused(void)
{
	for (int i = 0; i < 1000; i++) {
		struct spf_fiber *abandoned = spawn(deep, 20, STACK);

		CHECK_EQ(resume(abandoned), SPF_FIBER_READY);
		spf_fiber_free(addr_of(abandoned));
		finish(spawn(i % 2 ? deep : lender, 60, STACK), i % 2 ? 60 : 61);
	}
}

static char *guard_page;

static void on_overflow(int signal, siginfo_t *info, void *ucontext)
{
	const char *fault = info->si_addr;

	(void)signal;
	(void)ucontext;
	_exit(fault >= guard_page && fault < guard_page + sysconf(_SC_PAGESIZE) ? 42 : 1);
}

static void overflow_a_fiber(void)
{
	stack_t handler_stack = { .ss_sp = malloc(1 << 16), .ss_size = 1 << 16 };
	struct sigaction action = { .sa_sigaction = on_overflow,
				    .sa_flags = SA_SIGINFO | SA_ONSTACK };
	struct spf_fiber *fiber = spawn(deep, INT64_MAX, STACK);

	spawn(deep, 1, STACK);		/* without the guard page, the overflow would hit this */
	guard_page = (char *)fiber - STACK - sysconf(_SC_PAGESIZE);
	CHECK_EQ(sigaltstack(&handler_stack, NULL), 0);
	CHECK_EQ(sigaction(SIGSEGV, &action, NULL), 0);
	resume(fiber);
}

static void test_overflow_hits_the_guard_page(void)
{
	int status;
	pid_t pid = fork();

	CHECK(pid >= 0);
	if (!pid) {
		overflow_a_fiber();
		_exit(2);
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK(WIFEXITED(status));
	CHECK_EQ(WEXITSTATUS(status), 42);
}

static int64_t futex_word[2];

static int64_t waiter(const int64_t *args)
{
	return spf_step_futex_wait(3, addr_of(&futex_word[0]), 0, args[0]);
}

static int64_t waker(const int64_t *args)
{
	return spf_step_futex_wake(4, addr_of(&futex_word[0]), args[0]);
}

static struct spf_fiber *spawn_waiting(int64_t timeout_ns)
{
	struct spf_fiber *fiber = spawn(waiter, timeout_ns, STACK);

	CHECK_EQ(resume(fiber), SPF_FIBER_READY);
	CHECK_EQ(fiber->kind, SPF_STEP_FUTEX_WAIT);
	CHECK_EQ(resume(fiber), SPF_FIBER_WAITING);
	check_event(fiber, SPF_STEP_FUTEX_WAIT, 3, addr_of(&futex_word[0]));
	CHECK(fiber->a1 == 0 && fiber->a2 == timeout_ns);
	CHECK_EQ(resume(fiber), -EINVAL);
	return fiber;
}

static void test_wait_sees_a_change_before_it_sleeps(void)
{
	struct spf_fiber *fiber = spawn(waiter, -1, STACK);

	CHECK_EQ(resume(fiber), SPF_FIBER_READY);
	futex_word[0] = INT64_C(1) << 40;
	finish(fiber, -EAGAIN);
	futex_word[0] = 0;
}

static void test_wake_takes_the_oldest_waiters(void)
{
	struct spf_fiber *fibers[4], *wake_two = spawn(waker, 2, STACK);

	for (int i = 0; i < 4; i++)
		fibers[i] = spawn_waiting(-1);
	spf_fiber_free(addr_of(fibers[1]));
	CHECK_EQ(spf_step_futex_wake(0, addr_of(&futex_word[1]), 9), 0);
	CHECK_EQ(resume(wake_two), SPF_FIBER_READY);
	check_event(wake_two, SPF_STEP_FUTEX_WAKE, 4, addr_of(&futex_word[0]));
	CHECK_EQ(wake_two->a1, 2);
	CHECK_EQ(fibers[0]->state, SPF_FIBER_WAITING);
	finish(wake_two, 2);
	CHECK_EQ(fibers[3]->state, SPF_FIBER_WAITING);
	finish(fibers[0], 0);
	finish(fibers[2], 0);
	finish(spawn(waker, 9, STACK), 1);
	finish(fibers[3], 0);
	finish(spawn(waker, 9, STACK), 0);
}

static void test_timeout_ends_a_wait(void)
{
	struct spf_fiber *patient = spawn_waiting(-1), *hasty = spawn_waiting(5);

	CHECK_EQ(spf_fiber_timeout(addr_of(patient)), -EINVAL);
	CHECK_EQ(spf_fiber_timeout(addr_of(hasty)), 0);
	CHECK_EQ(spf_fiber_timeout(addr_of(hasty)), -EINVAL);
	CHECK_EQ(hasty->wake_result, -ETIMEDOUT);
	finish(hasty, -ETIMEDOUT);
	finish(spawn(waker, 9, STACK), 1);
	finish(patient, 0);
}

static void test_outside_any_fiber(void)
{
	struct spf_fiber *fiber = spawn_waiting(-1);

	spf_step_clock_reset();
	spf_step(0, 0, 0, 0, 0);
	CHECK_EQ(spf_step_futex_wait(0, addr_of(&futex_word[0]), 1, -1), -EAGAIN);
	CHECK_EQ(spf_step_futex_wait(0, addr_of(&futex_word[0]), 0, -1), -EDEADLK);
	CHECK_EQ(spf_step_futex_wake(0, addr_of(&futex_word[0]), 1), 1);
	CHECK_EQ(spf_step_clock(), 0);
	finish(fiber, 0);
}

/* A mutex whose owner steps inside; contenders sleep.  futex_word[1] is what it protects. */
static int64_t mutex_user(const int64_t *args)
{
	int64_t lock = addr_of(&futex_word[0]);

	for (int64_t i = 0; i < args[0]; i++) {
		while (spf_cmpxchg_acquire(lock, 0, 1))
			spf_step_futex_wait(1, lock, 1, -1);
		int64_t seen = futex_word[1];

		spf_step(2, 0, 0, 0, 0);
		futex_word[1] = seen + 1;
		spf_smp_store_release(lock, 0);
		spf_step_futex_wake(1, lock, 1);
	}
	return 0;
}

static void test_mutex_between_fibers(void)
{
	struct spf_fiber *fibers[3];
	uint32_t random = 1;
	int done = 0, slept = 0;

	for (int i = 0; i < 3; i++)
		fibers[i] = spawn(mutex_user, 1000, STACK);
	while (done < 3) {
		struct spf_fiber *fiber = fibers[(random >> 16) % 3];

		random = random * 1664525 + 1013904223;
		if (fiber->state == SPF_FIBER_READY) {
			int64_t state = resume(fiber);

			done += state == SPF_FIBER_DONE;
			slept += state == SPF_FIBER_WAITING;
		}
		CHECK(fibers[0]->state != SPF_FIBER_WAITING ||
		      fibers[1]->state != SPF_FIBER_WAITING ||
		      fibers[2]->state != SPF_FIBER_WAITING);
	}
	CHECK_EQ(futex_word[1], 3000);
	CHECK(slept > 100);
	for (int i = 0; i < 3; i++)
		finish(fibers[i], 0);
}

RUN_TESTS(test_events_and_states, test_new_refuses, test_run_stops_where_told,
	  test_many_fibers_take_turns, test_a_fiber_resumes_another,
	  test_registers_survive_switches, test_rounding_mode_is_callee_saved, test_deep_stacks,
	  test_abandoned_stacks_are_reused, test_overflow_hits_the_guard_page,
	  test_wait_sees_a_change_before_it_sleeps, test_wake_takes_the_oldest_waiters,
	  test_timeout_ends_a_wait, test_outside_any_fiber, test_mutex_between_fibers)
