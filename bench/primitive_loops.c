/* SPDX-License-Identifier: MIT */
/* The loops of primitive_loops.py in C, with the memory orders that spfemu/primitives.py gives. */

#include <stdint.h>
#include <string.h>

#define PAGE_SIZE 4096
#define PAGE_WORDS (PAGE_SIZE / 8)

#define relaxed_load(p) __atomic_load_n(p, __ATOMIC_RELAXED)
#define relaxed_store(p, v) __atomic_store_n(p, v, __ATOMIC_RELAXED)

int64_t loop_load(int64_t *word, int64_t count)
{
    int64_t total = 0;
    for (int64_t i = 0; i < count; i++)
        total += relaxed_load(word + (i & (PAGE_WORDS - 1)));
    return total;
}

int64_t loop_store(int64_t *word, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        relaxed_store(word + (i & (PAGE_WORDS - 1)), i);
    return relaxed_load(word);
}

int64_t loop_read_once(int64_t *word, int64_t count)
{
    int64_t total = 0;
    for (int64_t i = 0; i < count; i++)
        total += relaxed_load(word);
    return total;
}

int64_t loop_write_once(int64_t *word, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        relaxed_store(word, i);
    return relaxed_load(word);
}

int64_t loop_smp_load_acquire(int64_t *word, int64_t count)
{
    int64_t total = 0;
    for (int64_t i = 0; i < count; i++)
        total += __atomic_load_n(word, __ATOMIC_ACQUIRE);
    return total;
}

int64_t loop_smp_store_release(int64_t *word, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        __atomic_store_n(word, i, __ATOMIC_RELEASE);
    return relaxed_load(word);
}

int64_t loop_xchg(int64_t *word, int64_t count)
{
    int64_t total = 0;
    for (int64_t i = 0; i < count; i++)
        total += __atomic_exchange_n(word, i, __ATOMIC_SEQ_CST);
    return total;
}

int64_t loop_cmpxchg(int64_t *word, int64_t count)
{
    int64_t failed = 0;
    relaxed_store(word, 0);
    for (int64_t i = 0; i < count; i++) {
        int64_t old = i;
        __atomic_compare_exchange_n(word, &old, i + 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE);
        if (old != i)
            failed++;
    }
    return failed;
}

int64_t loop_atomic_fetch_add(int64_t *word, int64_t count)
{
    int64_t total = 0;
    for (int64_t i = 0; i < count; i++)
        total += __atomic_fetch_add(word, 1, __ATOMIC_SEQ_CST);
    return total;
}

int64_t loop_atomic_fetch_add_relaxed(int64_t *word, int64_t count)
{
    int64_t total = 0;
    for (int64_t i = 0; i < count; i++)
        total += __atomic_fetch_add(word, 1, __ATOMIC_RELAXED);
    return total;
}

int64_t loop_smp_mb(int64_t *word, int64_t count)
{
    int64_t total = 0;
    for (int64_t i = 0; i < count; i++) {
        relaxed_store(word, i);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        total += relaxed_load(word + 1);
    }
    return total;
}

int64_t loop_clear_page(int64_t *word, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        memset(word, 0, PAGE_SIZE);
        relaxed_store(word + (i & (PAGE_WORDS - 1)), i);
    }
    return relaxed_load(word);
}

int64_t loop_commit(int64_t *word, int64_t count)
{
    int64_t failed = 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t seq = relaxed_load(word);
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        int64_t old = 0;
        __atomic_compare_exchange_n(word + 8, &old, 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_ACQUIRE);
        if (old != 0) {
            failed++;
            continue;
        }
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        if (relaxed_load(word) == seq)
            relaxed_store(word + 16, i);
        else
            failed++;
        __atomic_store_n(word + 8, 0, __ATOMIC_RELEASE);
    }
    return failed + relaxed_load(word + 16);
}
