/* Stands in for malloc and its family, the library's calls included: counts, and fails one of them when told to. Needs
   glibc, whose own functions do the work. Included by one file of a program. */
#ifndef DVT_TESTS_ALLOCATOR_H
#define DVT_TESTS_ALLOCATOR_H

#include <errno.h>
#include <stddef.h>

extern void* __libc_malloc(size_t size);
extern void* __libc_calloc(size_t count, size_t size);
extern void* __libc_realloc(void* memory, size_t size);
extern void* __libc_memalign(size_t alignment, size_t size);
extern void __libc_free(void* memory);

static long allocations = 0; /* so far */
static long living = 0;      /* and not freed */
static long failing = 0;     /* which one fails, as `allocations` counts; 0: none */

static int counted(void) {
  const long number = __atomic_add_fetch(&allocations, 1, __ATOMIC_RELAXED);
  if (number == __atomic_load_n(&failing, __ATOMIC_RELAXED)) {
    errno = ENOMEM;
    return 0;
  }
  return 1;
}

static void* kept(void* memory) {
  if (memory) __atomic_fetch_add(&living, 1, __ATOMIC_RELAXED);
  return memory;
}

void* malloc(size_t size) { return counted() ? kept(__libc_malloc(size)) : NULL; }
void* calloc(size_t number, size_t size) { return counted() ? kept(__libc_calloc(number, size)) : NULL; }
void* memalign(size_t alignment, size_t size) { return counted() ? kept(__libc_memalign(alignment, size)) : NULL; }
void* aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }
int posix_memalign(void** memory, size_t alignment, size_t size) {
  void* found = memalign(alignment, size);
  if (!found) return ENOMEM;
  *memory = found;
  return 0;
}
void* realloc(void* memory, size_t size) {
  if (!counted()) return NULL;
  return memory ? __libc_realloc(memory, size) : kept(__libc_realloc(memory, size));
}
void free(void* memory) {
  if (memory) __atomic_fetch_sub(&living, 1, __ATOMIC_RELAXED);
  __libc_free(memory);
}

static inline long allocations_now(void) { return __atomic_load_n(&allocations, __ATOMIC_RELAXED); }
static inline long living_now(void) { return __atomic_load_n(&living, __ATOMIC_RELAXED); }
/* The n-th allocation from now on fails, once; 0: none. */
static inline void fail_allocation(long n) {
  __atomic_store_n(&failing, n ? allocations_now() + n : 0, __ATOMIC_RELAXED);
}

#endif
