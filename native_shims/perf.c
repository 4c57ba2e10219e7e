/* SPDX-License-Identifier: MIT */
/* Hardware performance counters, one event per file descriptor; see perf_event_open(2). */
#define _GNU_SOURCE
#include "spf_shims.h"

#include <errno.h>
#include <linux/ioctl.h>
#include <linux/perf_event.h>
#include <sys/syscall.h>
#include <unistd.h>

static const uint64_t hardware_event[] = {
	[SPF_PERF_CYCLES] = PERF_COUNT_HW_CPU_CYCLES,
	[SPF_PERF_INSTRUCTIONS] = PERF_COUNT_HW_INSTRUCTIONS,
	[SPF_PERF_CACHE_REFERENCES] = PERF_COUNT_HW_CACHE_REFERENCES,
	[SPF_PERF_CACHE_MISSES] = PERF_COUNT_HW_CACHE_MISSES,
};

int64_t spf_perf_open(int64_t kind, int64_t pid, int64_t inherit)
{
	if (kind < SPF_PERF_CYCLES || kind > SPF_PERF_CACHE_MISSES)
		return -EINVAL;

	struct perf_event_attr attr = {
		.type = PERF_TYPE_HARDWARE,
		.size = sizeof(attr),
		.config = hardware_event[kind],
		.read_format = PERF_FORMAT_TOTAL_TIME_ENABLED | PERF_FORMAT_TOTAL_TIME_RUNNING,
		.disabled = 1,
		.inherit = inherit != 0,
		.exclude_kernel = 1,
		.exclude_hv = 1,
	};

	return spf_raw_syscall(SYS_perf_event_open, (intptr_t)&attr, pid, -1, -1,
			       PERF_FLAG_FD_CLOEXEC, 0);
}

int64_t spf_perf_enable(int64_t fd)
{
	return spf_raw_syscall(SYS_ioctl, fd, PERF_EVENT_IOC_ENABLE, 0, 0, 0, 0);
}

int64_t spf_perf_disable(int64_t fd)
{
	return spf_raw_syscall(SYS_ioctl, fd, PERF_EVENT_IOC_DISABLE, 0, 0, 0, 0);
}

int64_t spf_perf_reset(int64_t fd)
{
	return spf_raw_syscall(SYS_ioctl, fd, PERF_EVENT_IOC_RESET, 0, 0, 0, 0);
}

int64_t spf_perf_read(int64_t fd)
{
	struct {
		uint64_t count, time_enabled_ns, time_running_ns;
	} value;
	ssize_t bytes = read((int)fd, &value, sizeof(value));

	if (bytes < 0)
		return -errno;
	if (bytes != sizeof(value))	/* the end of file of an event in error state */
		return -EIO;
	if (value.time_running_ns == value.time_enabled_ns)
		return (int64_t)value.count;
	if (value.time_running_ns == 0)
		return -ENODATA;
	return (int64_t)((double)value.count * (double)value.time_enabled_ns /
			 (double)value.time_running_ns);
}

int64_t spf_perf_close(int64_t fd)
{
	return spf_raw_syscall(SYS_close, fd, 0, 0, 0, 0, 0);
}
