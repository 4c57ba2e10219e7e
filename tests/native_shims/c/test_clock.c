/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "check.h"

#include <errno.h>
#include <sched.h>
#include <time.h>

static void pin_to_current_cpu(void)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET((size_t)spf_getcpu(), &set);
	CHECK_EQ(sched_setaffinity(0, sizeof(set), &set), 0);
}

static void test_getcpu_names_every_allowed_cpu(void)
{
	cpu_set_t allowed;

	CHECK_EQ(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
	for (size_t cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		cpu_set_t one;

		if (!CPU_ISSET(cpu, &allowed))
			continue;
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		CHECK_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
		CHECK_EQ(spf_getcpu(), (int64_t)cpu);
	}
	CHECK_EQ(sched_setaffinity(0, sizeof(allowed), &allowed), 0);
}

static void test_cycles_are_monotone(void)
{
	int64_t first, last;

	pin_to_current_cpu();
	first = last = spf_read_cycles();
	for (int i = 0; i < 1000000; i++) {
		int64_t now = spf_read_cycles();

		CHECK(now >= last);
		last = now;
	}
	CHECK(last > first);
}

static int64_t monotonic_ns(void)
{
	struct timespec now;

	CHECK_EQ(clock_gettime(CLOCK_MONOTONIC, &now), 0);
	return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static double cycles_per_ns_by_hand(void)
{
	int64_t start_ns = monotonic_ns(), start = spf_read_cycles(), elapsed_ns;

	do
		elapsed_ns = monotonic_ns() - start_ns;
	while (elapsed_ns < 50000000);
	return (double)(spf_read_cycles() - start) / (double)elapsed_ns;
}

/* Wide margins: another process may take the CPU between two reads. */
static void test_calibration(void)
{
	double coarse = (double)spf_cycles_per_second(5000000) / 1e9;
	double fine = (double)spf_cycles_per_second(20000000) / 1e9;
	double by_hand = cycles_per_ns_by_hand();

	CHECK(fine > 0.95 * coarse && fine < 1.05 * coarse);
	CHECK(fine > 0.5 * by_hand && fine < 2 * by_hand);
	CHECK_EQ(spf_cycles_per_second(0), -EINVAL);
	CHECK_EQ(spf_cycles_per_second(-1), -EINVAL);
}

RUN_TESTS(test_getcpu_names_every_allowed_cpu, test_cycles_are_monotone, test_calibration)
