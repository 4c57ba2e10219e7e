/* SPDX-License-Identifier: MIT */
/*
 * Fibers: every fiber has its own stack, runs when resumed and stops by itself at steps.  One
 * mapping holds, from low to high addresses, a guard page, the stack and the descriptor; freed
 * mappings are kept for the next fiber, since exploring schedules creates millions of them.
 */
#define _GNU_SOURCE
#include "spf_shims.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fiber_switch.h"

#define STACK_BYTES_MIN (INT64_C(16) << 10)
#define STACK_BYTES_MAX (INT64_C(1) << 30)
#define CACHED_MAX 256

struct fiber {
	struct spf_fiber public;	/* first: a handle is the address of both */
	struct fiber *next;		/* in the wait queue or in the cache, never in both */
	char *mapping;
	size_t mapping_bytes;
	char *stack;
	size_t stack_bytes;
	struct context self, resumer;
	int64_t (*entry)(const int64_t *args);
	int64_t args[SPF_FIBER_ARGS_MAX];
};

static struct fiber *current;		/* NULL outside any fiber */
static struct fiber *wait_queue;	/* WAITING fibers, oldest wait first */
static struct fiber *cache;
static int cached;
static int64_t step_clock;

static struct fiber *fiber_of(int64_t handle)
{
	return spf_pointer(handle);
}

static void enqueue_waiter(struct fiber *fiber)
{
	struct fiber **tail = &wait_queue;

	while (*tail)
		tail = &(*tail)->next;
	fiber->next = NULL;
	*tail = fiber;
}

/* Takes the waiter that *link leads to out of the queue and makes it READY. */
static void end_wait(struct fiber **link, int64_t wake_result)
{
	struct fiber *fiber = *link;

	*link = fiber->next;
	fiber->public.wake_result = wake_result;
	fiber->public.state = SPF_FIBER_READY;
}

static struct fiber **waiter_link(const struct fiber *fiber)
{
	struct fiber **link = &wait_queue;

	while (*link != fiber)
		link = &(*link)->next;
	return link;
}

/* Gives control to the resumer; returns when resumed, and never if the fiber is done. */
static void park(struct fiber *fiber, int64_t state)
{
	fiber->public.state = state;
	context_switch(&fiber->self, &fiber->resumer, state == SPF_FIBER_DONE);
}

static void fiber_main(void)
{
	struct fiber *fiber = current;

	context_entered(&fiber->resumer);
	fiber->public.result = fiber->entry(fiber->args);
	park(fiber, SPF_FIBER_DONE);
	__builtin_unreachable();
}

static struct fiber *map_fiber(size_t stack_bytes)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	size_t bytes = page + stack_bytes + ((sizeof(struct fiber) + page - 1) & -page);
	char *mapping = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);

	if (mapping == MAP_FAILED)
		return NULL;
	if (mprotect(mapping, page, PROT_NONE)) {
		munmap(mapping, bytes);
		return NULL;
	}

	struct fiber *fiber = (struct fiber *)(mapping + page + stack_bytes);

	fiber->mapping = mapping;
	fiber->mapping_bytes = bytes;
	fiber->stack = mapping + page;
	fiber->stack_bytes = stack_bytes;
	return fiber;
}

static struct fiber *cached_fiber(size_t stack_bytes)
{
	for (struct fiber **link = &cache; *link; link = &(*link)->next) {
		struct fiber *fiber = *link;

		if (fiber->stack_bytes == stack_bytes) {
			*link = fiber->next;
			cached--;
			return fiber;
		}
	}
	return NULL;
}

int64_t spf_fiber_new(int64_t entry, int64_t args, int64_t nargs, int64_t stack_bytes)
{
	if (!entry || nargs < 0 || nargs > SPF_FIBER_ARGS_MAX || stack_bytes < 0 ||
	    stack_bytes > STACK_BYTES_MAX)
		return -EINVAL;
	if (stack_bytes < STACK_BYTES_MIN)
		stack_bytes = STACK_BYTES_MIN;

	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	size_t rounded = ((size_t)stack_bytes + page - 1) & -page;
	struct fiber *fiber = cached_fiber(rounded);

	if (!fiber)
		fiber = map_fiber(rounded);
	if (!fiber)
		return -ENOMEM;
	fiber->public = (struct spf_fiber){ .state = SPF_FIBER_READY, .kind = -1, .site = -1 };
	fiber->entry = (int64_t (*)(const int64_t *))(uintptr_t)entry;
	if (nargs)
		memcpy(fiber->args, spf_pointer(args), (size_t)nargs * sizeof(int64_t));
	context_init(&fiber->self, fiber->stack, fiber->stack_bytes, fiber_main);
	return (int64_t)(uintptr_t)fiber;
}

void spf_fiber_free(int64_t handle)
{
	struct fiber *fiber = fiber_of(handle);

	if (fiber->public.state == SPF_FIBER_RUNNING || fiber->public.state == SPF_FIBER_FREED)
		return;
	if (fiber->public.state == SPF_FIBER_WAITING)
		end_wait(waiter_link(fiber), -ECANCELED);
	fiber->public.state = SPF_FIBER_FREED;
	stack_abandoned(fiber->stack, fiber->stack_bytes);
	if (cached == CACHED_MAX) {
		munmap(fiber->mapping, fiber->mapping_bytes);
		return;
	}
	fiber->next = cache;
	cache = fiber;
	cached++;
}

int64_t spf_fiber_resume(int64_t handle)
{
	struct fiber *fiber = fiber_of(handle), *outer = current;

	if (fiber->public.state != SPF_FIBER_READY)
		return -EINVAL;
	fiber->public.state = SPF_FIBER_RUNNING;
	current = fiber;
	context_switch(&fiber->resumer, &fiber->self, 0);
	current = outer;
	return fiber->public.state;
}

static int stopped_at(const struct spf_fiber *fiber, int64_t kind, int64_t site)
{
	return (kind == -1 || fiber->kind == kind) && (site == -1 || fiber->site == site);
}

int64_t spf_fiber_run(int64_t handle, int64_t kind, int64_t site, int64_t max_steps)
{
	const struct spf_fiber *fiber = spf_pointer(handle);

	if (fiber->state != SPF_FIBER_READY)
		return -EINVAL;
	for (int64_t i = 0; i < max_steps; i++) {
		int64_t state = spf_fiber_resume(handle);

		if (state != SPF_FIBER_READY || stopped_at(fiber, kind, site))
			return state;
	}
	return fiber->state;
}

int64_t spf_fiber_timeout(int64_t handle)
{
	struct fiber *fiber = fiber_of(handle);

	if (fiber->public.state != SPF_FIBER_WAITING || fiber->public.a2 < 0)
		return -EINVAL;
	end_wait(waiter_link(fiber), -ETIMEDOUT);
	return 0;
}

void spf_fiber_set_cpu(int64_t cpu)
{
	if (current)
		current->public.cpu = cpu;
}

int64_t spf_fiber_cpu(void)
{
	return current ? current->public.cpu : 0;
}

void spf_step(int64_t kind, int64_t site, int64_t a0, int64_t a1, int64_t a2)
{
	struct fiber *fiber = current;

	if (!fiber)
		return;
	fiber->public.kind = kind;
	fiber->public.site = site;
	fiber->public.a0 = a0;
	fiber->public.a1 = a1;
	fiber->public.a2 = a2;
	fiber->public.steps++;
	step_clock++;
	park(fiber, SPF_FIBER_READY);
}

int64_t spf_step_futex_wait(int64_t site, int64_t addr, int64_t expected, int64_t timeout_ns)
{
	struct fiber *fiber = current;

	spf_step(SPF_STEP_FUTEX_WAIT, site, addr, expected, timeout_ns);
	if (spf_read_once(addr) != expected)
		return -EAGAIN;
	if (!fiber)
		return -EDEADLK;
	enqueue_waiter(fiber);
	park(fiber, SPF_FIBER_WAITING);
	return fiber->public.wake_result;
}

int64_t spf_step_futex_wake(int64_t site, int64_t addr, int64_t n)
{
	struct fiber **link = &wait_queue;
	int64_t woken = 0;

	spf_step(SPF_STEP_FUTEX_WAKE, site, addr, n, 0);
	while (*link && woken < n) {
		if ((*link)->public.a0 == addr) {
			end_wait(link, 0);
			woken++;
		} else {
			link = &(*link)->next;
		}
	}
	return woken;
}

int64_t spf_step_clock(void)
{
	return step_clock;
}

void spf_step_clock_reset(void)
{
	step_clock = 0;
}
