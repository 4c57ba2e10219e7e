/* SPDX-License-Identifier: MIT */
/* System calls, and with them futexes on a word that several processes map; see futex(2). */
#define _GNU_SOURCE
#include "spf_shims.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NSEC_PER_SEC 1000000000

int64_t spf_raw_syscall(int64_t number, int64_t a, int64_t b, int64_t c, int64_t d, int64_t e,
			int64_t f)
{
	long ret = syscall(number, a, b, c, d, e, f);

	return ret == -1 ? -errno : ret;
}

/* FUTEX_PRIVATE_FLAG is left out: it would hide the word from the other processes. */
static int64_t futex(int64_t addr, int op, int64_t value, const struct timespec *timeout)
{
	int64_t low_half = addr + (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? 4 : 0);

	return spf_raw_syscall(SYS_futex, low_half, op, value, (intptr_t)timeout, 0, 0);
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
	return futex(addr, FUTEX_WAKE, n > INT_MAX ? INT_MAX : n, NULL);
}
