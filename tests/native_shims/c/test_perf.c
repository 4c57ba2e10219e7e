/* SPDX-License-Identifier: MIT */
#include "check.h"

#include <errno.h>

/* perf_event_open(2): what a machine without the counter, or a kernel that forbids it, answers. */
static int says_unavailable(int64_t error)
{
	return error == -ENOENT || error == -EOPNOTSUPP || error == -ENODEV ||
	       error == -EACCES || error == -EPERM || error == -ENOSYS;
}

static void check_counts_work(int64_t fd)
{
	int64_t before, after;

	CHECK_EQ(spf_perf_read(fd), 0);
	CHECK_EQ(spf_perf_enable(fd), 0);
	before = spf_perf_read(fd);
	for (volatile int i = 0; i < 1000000; i++)
		;
	CHECK_EQ(spf_perf_disable(fd), 0);
	after = spf_perf_read(fd);
	CHECK(after == -ENODATA || after > before);
	CHECK_EQ(spf_perf_read(fd), after);
	CHECK_EQ(spf_perf_reset(fd), 0);
	CHECK(spf_perf_read(fd) <= 0);
}

static void test_counters_count_or_say_why_not(void)
{
	for (int64_t kind = SPF_PERF_CYCLES; kind <= SPF_PERF_CACHE_MISSES; kind++) {
		int64_t fd = spf_perf_open(kind, 0, 0);

		if (fd < 0) {
			CHECK(says_unavailable(fd));
			continue;
		}
		if (kind <= SPF_PERF_INSTRUCTIONS)	/* a loop need not miss a cache */
			check_counts_work(fd);
		CHECK_EQ(spf_perf_close(fd), 0);
		CHECK_EQ(spf_perf_read(fd), -EBADF);
	}
}

static void test_bad_arguments(void)
{
	CHECK_EQ(spf_perf_open(-1, 0, 0), -EINVAL);
	CHECK_EQ(spf_perf_open(SPF_PERF_CACHE_MISSES + 1, 0, 0), -EINVAL);
	CHECK_EQ(spf_perf_enable(-1), -EBADF);
	CHECK_EQ(spf_perf_disable(-1), -EBADF);
	CHECK_EQ(spf_perf_reset(-1), -EBADF);
	CHECK_EQ(spf_perf_close(-1), -EBADF);
}

/* A pipe stands in for a counter that shared its hardware: reading does not care. */
static int64_t read_back(uint64_t count, uint64_t enabled_ns, uint64_t running_ns)
{
	uint64_t value[] = { count, enabled_ns, running_ns };
	int pipe_fds[2];
	int64_t result;

	CHECK_EQ(pipe(pipe_fds), 0);
	CHECK_EQ(write(pipe_fds[1], value, sizeof(value)), sizeof(value));
	result = spf_perf_read(pipe_fds[0]);
	close(pipe_fds[0]);
	close(pipe_fds[1]);
	return result;
}

static void test_scaling(void)
{
	CHECK_EQ(read_back(1000, 500, 500), 1000);
	CHECK_EQ(read_back(1000, 500, 250), 2000);
	CHECK_EQ(read_back(0, 500, 250), 0);
	CHECK_EQ(read_back(0, 0, 0), 0);
	CHECK_EQ(read_back(0, 500, 0), -ENODATA);
}

static void test_short_read(void)
{
	int pipe_fds[2];

	CHECK_EQ(pipe(pipe_fds), 0);
	close(pipe_fds[1]);
	CHECK_EQ(spf_perf_read(pipe_fds[0]), -EIO);
	close(pipe_fds[0]);
}

RUN_TESTS(test_counters_count_or_say_why_not, test_bad_arguments, test_scaling, test_short_read)
