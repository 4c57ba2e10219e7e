/* SPDX-License-Identifier: MIT */
#include "check.h"

#include <pthread.h>
#include <sched.h>
#include <string.h>

enum { WORKERS = 4, ROUNDS = 20000 };

static void test_results(void)
{
	int64_t v = 5, *p = &v;
	int64_t a = addr_of(p);

	CHECK_EQ(spf_load(a), 5);
	CHECK_EQ(spf_read_once(a), 5);
	CHECK_EQ(spf_smp_load_acquire(a), 5);
	spf_store(a, INT64_MIN);
	CHECK_EQ(v, INT64_MIN);
	spf_write_once(a, -2);
	CHECK_EQ(v, -2);
	spf_smp_store_release(a, 6);
	CHECK_EQ(v, 6);
	CHECK_EQ(spf_xchg(a, 7), 6);
	CHECK_EQ(spf_atomic_fetch_add(a, 1), 7);
	CHECK_EQ(spf_atomic_fetch_add_acquire(a, 2), 8);
	CHECK_EQ(spf_atomic_fetch_add_release(a, -3), 10);
	CHECK_EQ(spf_atomic_fetch_add_relaxed(a, 5), 7);
	CHECK_EQ(spf_atomic_fetch_or(a, 3), 12);
	CHECK_EQ(spf_atomic_fetch_and(a, 6), 15);
	CHECK_EQ(v, 6);
}

static void test_cmpxchg_returns_what_it_found(void)
{
	int64_t (*const variants[])(int64_t, int64_t, int64_t) = {
		spf_cmpxchg, spf_cmpxchg_acquire, spf_cmpxchg_release, spf_cmpxchg_relaxed,
	};

	for (int i = 0; i < 4; i++) {
		int64_t v = 1;

		CHECK_EQ(variants[i](addr_of(&v), 1, INT64_MAX), 1);
		CHECK_EQ(v, INT64_MAX);
		CHECK_EQ(variants[i](addr_of(&v), 1, 3), INT64_MAX);
		CHECK_EQ(v, INT64_MAX);
	}
}

/* One update through each function; word 0-4 count, 5 and 6 hold a bit per worker, 7 locks 8. */
static void update_all(int64_t *words, int64_t bit, int64_t round)
{
	int64_t a = addr_of(words), old;

	spf_atomic_fetch_add(a, 1);
	spf_atomic_fetch_add_acquire(a + 8, 1);
	spf_atomic_fetch_add_release(a + 16, 1);
	spf_atomic_fetch_add_relaxed(a + 24, 1);
	do
		old = spf_read_once(a + 32);
	while (spf_cmpxchg_relaxed(a + 32, old, old + 1) != old);

	/* Other workers' bits come and go meanwhile; one's own must be as one left it. */
	CHECK_EQ(spf_atomic_fetch_or(a + 40, bit) & bit, 0);
	CHECK_EQ(spf_atomic_fetch_and(a + 40, ~bit) & bit, bit);

	/* The counter behind the lock is plain: both the exclusion and the orderings are needed. */
	for (int spins = 0; round & 1 ? spf_xchg(a + 56, 1) : spf_cmpxchg_acquire(a + 56, 0, 1);)
		if (++spins % 100 == 0)
			sched_yield();
		else
			spf_cpu_relax();
	words[8]++;
	spf_smp_store_release(a + 56, 0);
}

static void check_no_update_lost(const int64_t *words)
{
	for (int i = 0; i < 5; i++)
		CHECK_EQ(words[i], WORKERS * ROUNDS);
	CHECK_EQ(words[5], 0);
	CHECK_EQ(words[8], WORKERS * ROUNDS);
}

static void test_processes_lose_no_update(void)
{
	int64_t *words = shared_words(9);
	pid_t pids[WORKERS];

	for (int w = 0; w < WORKERS; w++) {
		pids[w] = fork();
		CHECK(pids[w] >= 0);
		if (pids[w])
			continue;
		for (int i = 0; i < ROUNDS; i++)
			update_all(words, INT64_C(1) << w, i);
		_exit(0);
	}
	for (int w = 0; w < WORKERS; w++)
		join(pids[w]);
	check_no_update_lost(words);
}

struct worker {
	int64_t *words;
	int index;
};

static void *update_rounds(void *arg)
{
	struct worker *worker = arg;

	for (int i = 0; i < ROUNDS; i++)
		update_all(worker->words, INT64_C(1) << worker->index, i);
	return NULL;
}

static void in_threads(void *(*body)(void *), int64_t *words, int n)
{
	pthread_t threads[WORKERS];
	struct worker workers[WORKERS];

	for (int w = 0; w < n; w++) {
		workers[w] = (struct worker){ words, w };
		CHECK_EQ(pthread_create(&threads[w], NULL, body, &workers[w]), 0);
	}
	for (int w = 0; w < n; w++)
		CHECK_EQ(pthread_join(threads[w], NULL), 0);
}

static void test_threads_lose_no_update(void)
{
	int64_t *words = shared_words(9);

	in_threads(update_rounds, words, WORKERS);
	check_no_update_lost(words);
}

/* Both threads of a litmus test enter each round together. */
static void rendezvous(int64_t *arrived, int64_t round)
{
	spf_atomic_fetch_add(addr_of(arrived), 1);
	for (int spins = 1; spf_smp_load_acquire(addr_of(arrived)) < 2 * (round + 1); spins++)
		if (spins % 1000 == 0)
			sched_yield();
}

/* Store buffering: each thread stores its own word, then loads the other's. */
static void *store_buffering(void *arg)
{
	struct worker *worker = arg;
	int64_t *mine = worker->words + 16 + worker->index * 16;
	int64_t *others = worker->words + 16 + !worker->index * 16;
	int64_t *seen = worker->words + 64 + worker->index * ROUNDS;

	for (int64_t i = 0; i < ROUNDS; i++) {
		rendezvous(worker->words, i);
		spf_write_once(addr_of(mine), i + 1);
		spf_smp_mb();
		seen[i] = spf_read_once(addr_of(others));
	}
	return NULL;
}

static void test_smp_mb_forbids_store_buffering(void)
{
	int64_t *words = shared_words(64 + 2 * ROUNDS);

	in_threads(store_buffering, words, 2);
	for (int64_t i = 0; i < ROUNDS; i++)
		CHECK(words[64 + i] > i || words[64 + ROUNDS + i] > i);
}

/* Message passing: thread 0 fills the data before the flag, thread 1 reads the flag first. */
static void *message_passing(void *arg)
{
	struct worker *worker = arg;
	int64_t data = addr_of(worker->words + 16), flag = addr_of(worker->words + 32);

	for (int64_t i = 1; i <= ROUNDS; i++) {
		if (worker->index == 0) {
			spf_store(data, i);
			spf_smp_wmb();		/* pairs with the smp_rmb() below */
			spf_write_once(flag, i);
		} else {
			int64_t seen = spf_read_once(flag);

			spf_smp_rmb();		/* pairs with the smp_wmb() above */
			CHECK(spf_load(data) >= seen);
		}
	}
	return NULL;
}

static void test_barriers_pass_messages(void)
{
	in_threads(message_passing, shared_words(64), 2);
}

static void test_pages(void)
{
	static unsigned char pages[3][4096];

	memset(pages, 0xab, sizeof(pages));
	spf_clear_page(addr_of(pages[1]));
	for (int i = 0; i < 4096; i++)
		CHECK(pages[1][i] == 0 && pages[0][i] == 0xab && pages[2][i] == 0xab);
	pages[0][4095] = 1;
	spf_copy_page(addr_of(pages[1]), addr_of(pages[0]));
	CHECK_EQ(memcmp(pages[0], pages[1], 4096), 0);
	CHECK_EQ(pages[2][0], 0xab);
}

RUN_TESTS(test_results, test_cmpxchg_returns_what_it_found, test_processes_lose_no_update,
	  test_threads_lose_no_update, test_smp_mb_forbids_store_buffering,
	  test_barriers_pass_messages, test_pages)
