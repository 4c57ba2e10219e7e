/* SPDX-License-Identifier: MIT */
/* Assertions that end the test program, and what several tests share. */
#ifndef SPF_TESTS_CHECK_H
#define SPF_TESTS_CHECK_H

#include "spf_shims.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(condition)								\
	do {										\
		if (!(condition)) {							\
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);	\
			exit(1);							\
		}									\
	} while (0)

#define CHECK_EQ(actual, expected)							\
	do {										\
		int64_t actual_ = (actual), expected_ = (expected);			\
		if (actual_ != expected_) {						\
			fprintf(stderr, "%s:%d: %s is %" PRId64 ", not %" PRId64 "\n",	\
				__FILE__, __LINE__, #actual, actual_, expected_);	\
			exit(1);							\
		}									\
	} while (0)

#define RUN_TESTS(...)									\
	int main(void)									\
	{										\
		void (*const tests[])(void) = { __VA_ARGS__ };				\
		const size_t n = sizeof(tests) / sizeof(tests[0]);			\
											\
		for (size_t i = 0; i < n; i++)						\
			tests[i]();							\
		printf("%zu tests passed\n", n);					\
	}

static inline int64_t addr_of(const void *p)
{
	return (int64_t)(uintptr_t)p;
}

/* Zeroed words that forked children share with their parent. */
static inline int64_t *shared_words(size_t n)
{
	void *p = mmap(NULL, n * sizeof(int64_t), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	CHECK(p != MAP_FAILED);
	return p;
}

static inline void join(pid_t pid)
{
	int status;

	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
}

#endif
