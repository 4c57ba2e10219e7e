/* SPDX-License-Identifier: MIT */
/* The cycle counter, its rate, and the current CPU. */
#define _GNU_SOURCE
#include "spf_shims.h"

#include <errno.h>
#include <sched.h>
#include <time.h>

#define NSEC_PER_SEC INT64_C(1000000000)

static inline int64_t monotonic_raw_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC_RAW, &now);
	return now.tv_sec * NSEC_PER_SEC + now.tv_nsec;
}

int64_t spf_read_cycles(void)
{
#if defined(__x86_64__)
	return (int64_t)__builtin_ia32_rdtsc();
#elif defined(__aarch64__)
	int64_t ticks;

	__asm__ volatile("mrs %0, cntvct_el0" : "=r"(ticks));
	return ticks;
#else
	return monotonic_raw_ns();
#endif
}

#if defined(__x86_64__)
struct clock_pair {
	int64_t ns, cycles;
};

/* Both clocks at one moment: the tightest of several brackets, since any may be interrupted. */
static struct clock_pair read_clock_pair(void)
{
	struct clock_pair best = { 0, 0 };
	int64_t best_width = INT64_MAX;

	for (int i = 0; i < 16; i++) {
		int64_t before = spf_read_cycles();
		int64_t ns = monotonic_raw_ns();
		int64_t width = spf_read_cycles() - before;

		if (width < best_width) {
			best_width = width;
			best = (struct clock_pair){ ns, before + width / 2 };
		}
	}
	return best;
}

static int64_t measure_cycles_per_second(int64_t window_ns)
{
	struct clock_pair start = read_clock_pair(), end;

	do
		end = read_clock_pair();
	while (end.ns - start.ns < window_ns);
	return (int64_t)((double)(end.cycles - start.cycles) * (double)NSEC_PER_SEC /
			 (double)(end.ns - start.ns));
}
#endif

int64_t spf_cycles_per_second(int64_t window_ns)
{
	if (window_ns <= 0)
		return -EINVAL;
#if defined(__x86_64__)
	return measure_cycles_per_second(window_ns);
#elif defined(__aarch64__)
	int64_t ticks_per_second;

	__asm__ volatile("mrs %0, cntfrq_el0" : "=r"(ticks_per_second));
	return ticks_per_second;
#else
	return NSEC_PER_SEC;
#endif
}

int64_t spf_getcpu(void)
{
	int cpu = sched_getcpu();

	return cpu < 0 ? -errno : cpu;
}
