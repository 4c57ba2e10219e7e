/* SPDX-License-Identifier: MIT */
/* The atomics of the plain engine: each line is one function, one compiler builtin. */
#include "spf_shims.h"

#include <string.h>

#define PAGE_BYTES 4096

static int64_t *word(int64_t addr)
{
	return spf_pointer(addr);
}

#define DEFINE_LOAD(name, order)							\
	int64_t name(int64_t addr) { return __atomic_load_n(word(addr), order); }

#define DEFINE_STORE(name, order)							\
	void name(int64_t addr, int64_t v) { __atomic_store_n(word(addr), v, order); }

#define DEFINE_UPDATE(name, builtin, order)						\
	int64_t name(int64_t addr, int64_t v) { return builtin(word(addr), v, order); }

/* The builtin stores the value it found in old when it fails, and old is that value otherwise. */
#define DEFINE_CMPXCHG(name, order, failure_order)					\
	int64_t name(int64_t addr, int64_t old, int64_t new_)				\
	{										\
		__atomic_compare_exchange_n(word(addr), &old, new_, 0, order,		\
					    failure_order);				\
		return old;								\
	}

#define DEFINE_FENCE(name, order)							\
	void name(void) { __atomic_thread_fence(order); }

DEFINE_LOAD(spf_load, __ATOMIC_RELAXED)
DEFINE_LOAD(spf_read_once, __ATOMIC_RELAXED)
DEFINE_LOAD(spf_smp_load_acquire, __ATOMIC_ACQUIRE)
DEFINE_STORE(spf_store, __ATOMIC_RELAXED)
DEFINE_STORE(spf_write_once, __ATOMIC_RELAXED)
DEFINE_STORE(spf_smp_store_release, __ATOMIC_RELEASE)
DEFINE_UPDATE(spf_xchg, __atomic_exchange_n, __ATOMIC_SEQ_CST)
DEFINE_CMPXCHG(spf_cmpxchg, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE)
DEFINE_CMPXCHG(spf_cmpxchg_acquire, __ATOMIC_ACQUIRE, __ATOMIC_ACQUIRE)
DEFINE_CMPXCHG(spf_cmpxchg_release, __ATOMIC_RELEASE, __ATOMIC_RELAXED)
DEFINE_CMPXCHG(spf_cmpxchg_relaxed, __ATOMIC_RELAXED, __ATOMIC_RELAXED)
DEFINE_UPDATE(spf_atomic_fetch_add, __atomic_fetch_add, __ATOMIC_SEQ_CST)
DEFINE_UPDATE(spf_atomic_fetch_add_acquire, __atomic_fetch_add, __ATOMIC_ACQUIRE)
DEFINE_UPDATE(spf_atomic_fetch_add_release, __atomic_fetch_add, __ATOMIC_RELEASE)
DEFINE_UPDATE(spf_atomic_fetch_add_relaxed, __atomic_fetch_add, __ATOMIC_RELAXED)
DEFINE_UPDATE(spf_atomic_fetch_or, __atomic_fetch_or, __ATOMIC_SEQ_CST)
DEFINE_UPDATE(spf_atomic_fetch_and, __atomic_fetch_and, __ATOMIC_SEQ_CST)
DEFINE_FENCE(spf_smp_mb, __ATOMIC_SEQ_CST)
DEFINE_FENCE(spf_smp_rmb, __ATOMIC_ACQUIRE)
DEFINE_FENCE(spf_smp_wmb, __ATOMIC_RELEASE)

void spf_cpu_relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield" ::: "memory");
#else
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
#endif
}

void spf_clear_page(int64_t addr)
{
	memset(spf_pointer(addr), 0, PAGE_BYTES);
}

void spf_copy_page(int64_t dst, int64_t src)
{
	memcpy(spf_pointer(dst), spf_pointer(src), PAGE_BYTES);
}
