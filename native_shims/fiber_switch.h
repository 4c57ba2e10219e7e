/* SPDX-License-Identifier: MIT */
/*
 * Switching between stacks, for fiber.c alone.  x86-64 and arm64 save what their calling convention
 * lets a callee expect to be preserved; other machines, and builds with -DSPF_FIBER_UCONTEXT, use
 * ucontext, which is slower by two system calls per switch.
 */
#ifndef SPF_FIBER_SWITCH_H
#define SPF_FIBER_SWITCH_H

#include <stddef.h>
#include <stdint.h>

#if defined(__SANITIZE_ADDRESS__)
#define SPF_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SPF_ASAN 1
#endif
#endif

#ifdef SPF_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__) && !defined(__aarch64__) && !defined(SPF_FIBER_UCONTEXT)
#define SPF_FIBER_UCONTEXT 1
#endif

#ifdef SPF_FIBER_UCONTEXT
#include <ucontext.h>
#endif

/* A suspended flow of control. */
struct context {
#ifdef SPF_FIBER_UCONTEXT
	ucontext_t ucontext;
#else
	void *sp;		/* the callee-saved registers lie there */
#endif
#ifdef SPF_ASAN
	void *fake_stack;
	const void *stack;
	size_t stack_bytes;
#endif
};

#ifndef SPF_FIBER_UCONTEXT
/* Saves the caller's registers and stack pointer to *save_sp, then continues what load_sp saved. */
void spf_fiber_switch(void **save_sp, void *load_sp) __attribute__((visibility("hidden")));

#define DEFINE_SWITCH(body)								\
	__asm__(".pushsection .text\n"							\
		".globl spf_fiber_switch\n"						\
		".hidden spf_fiber_switch\n"						\
		".type spf_fiber_switch, %function\n"					\
		".balign 16\n"								\
		"spf_fiber_switch:\n" body						\
		".size spf_fiber_switch, . - spf_fiber_switch\n"			\
		".popsection\n");
#endif

#if defined(__x86_64__) && !defined(SPF_FIBER_UCONTEXT)
/* System V ABI: rbx, rbp, r12-r15, and the control words of SSE and x87. */
DEFINE_SWITCH(
	"	pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n"
	"	subq $8, %rsp; stmxcsr (%rsp); fnstcw 4(%rsp)\n"
	"	movq %rsp, (%rdi)\n"
	"	movq %rsi, %rsp\n"
	"	ldmxcsr (%rsp); fldcw 4(%rsp); addq $8, %rsp\n"
	"	popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp\n"
	"	ret\n")

/*
 * A frame as the switch leaves it: control words, six registers, the address to return to (main's),
 * and above it, where main looks for its own return address, a null that ends backtraces.
 */
static void *first_frame(char *stack_top, void (*main)(void))
{
	uint64_t *sp = (uint64_t *)stack_top - 9;

	for (int i = 1; i < 9; i++)
		sp[i] = 0;
	__asm__ volatile("stmxcsr %0\n\tfnstcw %1" : "=m"(*(uint32_t *)sp),
			 "=m"(*(uint16_t *)((uint32_t *)sp + 1)));
	sp[7] = (uintptr_t)main;
	return sp;
}
#elif defined(__aarch64__) && !defined(SPF_FIBER_UCONTEXT)
/* AAPCS64: x19-x28, frame pointer x29, return address x30, and the low halves of v8-v15. */
DEFINE_SWITCH(
	"	sub sp, sp, #160\n"
	"	stp x19, x20, [sp, #0]; stp x21, x22, [sp, #16]; stp x23, x24, [sp, #32]\n"
	"	stp x25, x26, [sp, #48]; stp x27, x28, [sp, #64]; stp x29, x30, [sp, #80]\n"
	"	stp d8, d9, [sp, #96]; stp d10, d11, [sp, #112]\n"
	"	stp d12, d13, [sp, #128]; stp d14, d15, [sp, #144]\n"
	"	mov x9, sp\n"
	"	str x9, [x0]\n"
	"	mov sp, x1\n"
	"	ldp x19, x20, [sp, #0]; ldp x21, x22, [sp, #16]; ldp x23, x24, [sp, #32]\n"
	"	ldp x25, x26, [sp, #48]; ldp x27, x28, [sp, #64]; ldp x29, x30, [sp, #80]\n"
	"	ldp d8, d9, [sp, #96]; ldp d10, d11, [sp, #112]\n"
	"	ldp d12, d13, [sp, #128]; ldp d14, d15, [sp, #144]\n"
	"	add sp, sp, #160\n"
	"	ret\n")

/* A frame as the switch leaves it: null registers, but x30, to which it returns, is main. */
static void *first_frame(char *stack_top, void (*main)(void))
{
	uint64_t *sp = (uint64_t *)stack_top - 20;

	for (int i = 0; i < 20; i++)
		sp[i] = 0;
	sp[11] = (uintptr_t)main;
	return sp;
}
#endif

/* Makes self a flow that will call main on this stack. */
static void context_init(struct context *self, char *stack, size_t bytes, void (*main)(void))
{
#ifdef SPF_FIBER_UCONTEXT
	getcontext(&self->ucontext);
	self->ucontext.uc_stack.ss_sp = stack;
	self->ucontext.uc_stack.ss_size = bytes;
	self->ucontext.uc_link = NULL;
	makecontext(&self->ucontext, main, 0);
#else
	self->sp = first_frame(stack + bytes, main);
#endif
#ifdef SPF_ASAN
	self->fake_stack = NULL;
	self->stack = stack;
	self->stack_bytes = bytes;
#endif
}

/* AddressSanitizer must hear of a switch before it, and on arrival, of which stack was left. */
static void context_entered(struct context *left)
{
#ifdef SPF_ASAN
	__sanitizer_finish_switch_fiber(NULL, &left->stack, &left->stack_bytes);
#else
	(void)left;
#endif
}

/* Leaves from for to; returns when something switches back, and never if from ends. */
static void context_switch(struct context *from, struct context *to, int from_ends)
{
#ifdef SPF_ASAN
	__sanitizer_start_switch_fiber(from_ends ? NULL : &from->fake_stack, to->stack,
				       to->stack_bytes);
#else
	(void)from_ends;
#endif
#ifdef SPF_FIBER_UCONTEXT
	swapcontext(&from->ucontext, &to->ucontext);
#else
	spf_fiber_switch(&from->sp, to->sp);
#endif
#ifdef SPF_ASAN
	__sanitizer_finish_switch_fiber(from->fake_stack, &to->stack, &to->stack_bytes);
#endif
}

/* Frames that will never return leave their redzones behind. */
static void stack_abandoned(char *stack, size_t bytes)
{
#ifdef SPF_ASAN
	__asan_unpoison_memory_region(stack, bytes);
#else
	(void)stack;
	(void)bytes;
#endif
}

#endif
