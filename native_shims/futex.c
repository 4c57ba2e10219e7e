/* SPDX-License-Identifier: MIT */
/* Futex wait and wake on a word that several processes map; see futex(2). */
#define _GNU_SOURCE
#include "spf_shims.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NSEC_PER_SEC 1000000000

static uint32_t *low_half(int64_t addr)
{
	uint32_t *half = spf_pointer(addr);

	return __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? half + 1 : half;
}

/* FUTEX_PRIVATE_FLAG is left out: it would hide the word from the other processes. */
static int64_t futex(int64_t addr, int op, uint32_t value, const struct timespec *timeout)
{
	long ret = syscall(SYS_futex, low_half(addr), op, value, timeout, NULL, 0);

	return ret < 0 ? -errno : ret;
}

int64_t spf_futex_wait(int64_t addr, int64_t expected, int64_t timeout_ns)
{
	struct timespec timeout = {
		.tv_sec = timeout_ns / NSEC_PER_SEC,
		.tv_nsec = timeout_ns % NSEC_PER_SEC,
	};

	return futex(addr, FUTEX_WAIT, (uint32_t)expected, timeout_ns < 0 ? NULL : &timeout);
}

int64_t spf_futex_wake(int64_t addr, int64_t n)
{
	if (n <= 0)	/* the kernel would wake one */
		return 0;
	return futex(addr, FUTEX_WAKE, n > INT_MAX ? INT_MAX : (uint32_t)n, NULL);
}
