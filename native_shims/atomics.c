/* SPDX-License-Identifier: MIT */
/* Atomics of the plain engine: one compiler builtin each, so that no call mixes two orderings. */
#include "spf_shims.h"

#include <string.h>

#define PAGE_BYTES 4096

static int64_t *word(int64_t addr)
{
	return spf_pointer(addr);
}

int64_t spf_load(int64_t addr)
{
	return __atomic_load_n(word(addr), __ATOMIC_RELAXED);
}

int64_t spf_read_once(int64_t addr)
{
	return __atomic_load_n(word(addr), __ATOMIC_RELAXED);
}

void spf_store(int64_t addr, int64_t v)
{
	__atomic_store_n(word(addr), v, __ATOMIC_RELAXED);
}

void spf_write_once(int64_t addr, int64_t v)
{
	__atomic_store_n(word(addr), v, __ATOMIC_RELAXED);
}

int64_t spf_smp_load_acquire(int64_t addr)
{
	return __atomic_load_n(word(addr), __ATOMIC_ACQUIRE);
}

void spf_smp_store_release(int64_t addr, int64_t v)
{
	__atomic_store_n(word(addr), v, __ATOMIC_RELEASE);
}

int64_t spf_xchg(int64_t addr, int64_t v)
{
	return __atomic_exchange_n(word(addr), v, __ATOMIC_SEQ_CST);
}

/* The builtin stores the value it found in old when it fails, and old is that value otherwise. */
#define DEFINE_CMPXCHG(name, order)							\
	int64_t name(int64_t addr, int64_t old, int64_t new_)				\
	{										\
		__atomic_compare_exchange_n(word(addr), &old, new_, 0, order,		\
					    __ATOMIC_RELAXED);				\
		return old;								\
	}

DEFINE_CMPXCHG(spf_cmpxchg, __ATOMIC_SEQ_CST)
DEFINE_CMPXCHG(spf_cmpxchg_acquire, __ATOMIC_ACQUIRE)
DEFINE_CMPXCHG(spf_cmpxchg_release, __ATOMIC_RELEASE)
DEFINE_CMPXCHG(spf_cmpxchg_relaxed, __ATOMIC_RELAXED)

int64_t spf_atomic_fetch_add(int64_t addr, int64_t v)
{
	return __atomic_fetch_add(word(addr), v, __ATOMIC_SEQ_CST);
}

int64_t spf_atomic_fetch_add_acquire(int64_t addr, int64_t v)
{
	return __atomic_fetch_add(word(addr), v, __ATOMIC_ACQUIRE);
}

int64_t spf_atomic_fetch_add_release(int64_t addr, int64_t v)
{
	return __atomic_fetch_add(word(addr), v, __ATOMIC_RELEASE);
}

int64_t spf_atomic_fetch_add_relaxed(int64_t addr, int64_t v)
{
	return __atomic_fetch_add(word(addr), v, __ATOMIC_RELAXED);
}

int64_t spf_atomic_fetch_or(int64_t addr, int64_t v)
{
	return __atomic_fetch_or(word(addr), v, __ATOMIC_SEQ_CST);
}

int64_t spf_atomic_fetch_and(int64_t addr, int64_t v)
{
	return __atomic_fetch_and(word(addr), v, __ATOMIC_SEQ_CST);
}

void spf_smp_mb(void)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

void spf_smp_rmb(void)
{
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
}

void spf_smp_wmb(void)
{
	__atomic_thread_fence(__ATOMIC_RELEASE);
}

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
