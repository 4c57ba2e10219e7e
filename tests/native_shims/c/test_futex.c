/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "check.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>

enum { ROUNDS = 2000, WAITERS = 3 };

static const int64_t MILLISECOND_NS = 1000000;

static void test_different_value(void)
{
	int64_t *word = shared_words(1);

	*word = 8;
	CHECK_EQ(spf_futex_wait(addr_of(word), 7, -1), -EAGAIN);
}

static void test_timeout(void)
{
	int64_t *word = shared_words(1);

	*word = INT64_C(-5);
	CHECK_EQ(spf_futex_wait(addr_of(word), -5, MILLISECOND_NS), -ETIMEDOUT);
	CHECK_EQ(spf_futex_wait(addr_of(word), -5, 0), -ETIMEDOUT);
}

static void test_only_the_low_half_counts(void)
{
	int64_t *word = shared_words(1);

	*word = (INT64_C(1) << 32) | 9;
	CHECK_EQ(spf_futex_wait(addr_of(word), 9, MILLISECOND_NS), -ETIMEDOUT);
	CHECK_EQ(spf_futex_wait(addr_of(word), INT64_C(1) << 32, -1), -EAGAIN);
}

static void test_bad_address(void)
{
	CHECK_EQ(spf_futex_wait(0, 0, -1), -EFAULT);
	CHECK_EQ(spf_futex_wake(0, 1), -EFAULT);
}

/* The state letter that follows the command in /proc/PID/stat. */
static char process_state(pid_t pid)
{
	char path[64], line[256] = "";
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	file = fopen(path, "r");
	CHECK(file && fgets(line, sizeof(line), file));
	fclose(file);
	return strrchr(line, ')')[2];
}

/* A child of these tests sleeps nowhere else than in the futex. */
static void until_asleep(pid_t pid)
{
	while (process_state(pid) != 'S')
		sched_yield();
}

static pid_t fork_waiter(int64_t addr, int64_t expected_result)
{
	pid_t pid = fork();

	CHECK(pid >= 0);
	if (!pid)
		_exit(spf_futex_wait(addr, 0, -1) != expected_result);
	until_asleep(pid);
	return pid;
}

static void test_wake_counts_processes(void)
{
	int64_t addr = addr_of(shared_words(1));
	pid_t pids[WAITERS];

	CHECK_EQ(spf_futex_wake(addr, 1), 0);
	for (int i = 0; i < WAITERS; i++)
		pids[i] = fork_waiter(addr, 0);
	CHECK_EQ(spf_futex_wake(addr + 8, WAITERS), 0);
	CHECK_EQ(spf_futex_wake(addr, 0), 0);
	CHECK_EQ(spf_futex_wake(addr, WAITERS - 1), WAITERS - 1);
	CHECK_EQ(spf_futex_wake(addr, INT64_MAX), 1);
	for (int i = 0; i < WAITERS; i++)
		join(pids[i]);
}

static void on_signal(int signal)
{
	(void)signal;
}

static void test_signal_interrupts(void)
{
	struct sigaction action = { .sa_handler = on_signal };
	pid_t pid;

	CHECK_EQ(sigaction(SIGUSR1, &action, NULL), 0);
	pid = fork_waiter(addr_of(shared_words(1)), -EINTR);
	CHECK_EQ(kill(pid, SIGUSR1), 0);
	join(pid);
}

/* Takes every second turn, sleeping in between: a lost wake-up would hang both sides. */
static void take_turns(int64_t addr, int64_t parity)
{
	for (int64_t turn = parity; turn < ROUNDS; turn += 2) {
		int64_t now;

		while ((now = spf_smp_load_acquire(addr)) != turn)
			CHECK(spf_futex_wait(addr, now, -1) != -EINTR);
		spf_smp_store_release(addr, turn + 1);
		spf_futex_wake(addr, 1);
	}
}

static void test_processes_alternate(void)
{
	int64_t *word = shared_words(1);
	pid_t pid = fork();

	CHECK(pid >= 0);
	take_turns(addr_of(word), pid == 0);
	if (!pid)
		_exit(0);
	join(pid);
	CHECK_EQ(*word, ROUNDS);
}

static void test_raw_syscall(void)
{
	CHECK_EQ(spf_raw_syscall(SYS_getpid, 0, 0, 0, 0, 0, 0), getpid());
	CHECK_EQ(spf_raw_syscall(SYS_close, -1, 0, 0, 0, 0, 0), -EBADF);
}

RUN_TESTS(test_different_value, test_timeout, test_only_the_low_half_counts, test_bad_address,
	  test_wake_counts_processes, test_signal_interrupts, test_processes_alternate,
	  test_raw_syscall)
