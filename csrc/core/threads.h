// One small pool of threads for the whole library.
//
// `parallel_for(count, grain, task)` calls task(begin, end) on pieces of [0, count) of at least `grain` items (the last
// may be shorter, and one thread gets all in one piece); the caller works too. Pieces are claimed from a counter, so
// which thread runs a piece is not fixed: a task must write only to what its own piece owns, and then results are the
// same bits with any number of threads. A call from inside a task runs serially. What a task throws ends the work
// early, and the first of it is thrown on by parallel_for when no thread works any more.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/status.h"

namespace dvt {

constexpr int kMaxThreads = 1024;

int num_threads();
// 1 to kMaxThreads; 0 restores the default (DVT_FAST_NUM_THREADS, or the cores this process may run on).
Status set_num_threads(int64_t n);
// A DVT_FAST_NUM_THREADS that cannot be honoured is kept as this error, which every entry point of the bindings checks,
// until a number is set.
Status threads_status();

namespace detail {
using TaskFunction = void (*)(void* context, int64_t begin, int64_t end);
void parallel_for(int64_t count, int64_t grain, TaskFunction function, void* context);
}  // namespace detail

template <class Task>
void parallel_for(int64_t count, int64_t grain, Task&& task) {
  using T = std::remove_reference_t<Task>;
  detail::parallel_for(
      count, grain, [](void* context, int64_t begin, int64_t end) { (*static_cast<T*>(context))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&task)));
}

}  // namespace dvt
