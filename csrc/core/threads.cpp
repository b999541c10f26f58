#include "core/threads.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace dvt {
namespace {

int default_threads() {
  if (const char* text = std::getenv("DVT_FAST_NUM_THREADS")) {
    const int n = std::atoi(text);
    if (n > 0) return n;
  }
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

std::atomic<int> requested_threads{0};
thread_local bool inside_task = false;

struct Job {
  detail::TaskFunction function;
  void* context;
  int64_t count, piece;
  std::atomic<int64_t> next{0};

  void work() {
    inside_task = true;
    for (;;) {
      const int64_t begin = next.fetch_add(piece, std::memory_order_relaxed);
      if (begin >= count) break;
      function(context, begin, std::min(count, begin + piece));
    }
    inside_task = false;
  }
};

class Pool {
 public:
  explicit Pool(int workers) {
    for (int i = 0; i < workers; ++i) threads_.emplace_back([this] { loop(); });
  }
  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
      generation_.fetch_add(1);
    }
    wake_.notify_all();
    for (auto& t : threads_) t.join();
  }
  int size() const { return static_cast<int>(threads_.size()); }

  void run(Job& job) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job;
      running_.store(size(), std::memory_order_relaxed);
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    job.work();
    // Workers finish within a piece of each other: spin a little before going to sleep.
    for (int spin = 0; spin < kSpins; ++spin)
      if (running_.load(std::memory_order_acquire) == 0) return;
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return running_.load(std::memory_order_acquire) == 0; });
  }

 private:
  static constexpr int kSpins = 2000;

  void loop() {
    uint64_t seen = 0;
    for (;;) {
      for (int spin = 0; spin < kSpins && generation_.load(std::memory_order_acquire) == seen; ++spin) {
      }
      Job* job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_.load(std::memory_order_relaxed) != seen; });
        seen = generation_.load(std::memory_order_relaxed);
        if (stop_) return;
        job = job_;
      }
      job->work();
      if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        std::lock_guard<std::mutex> lock(mutex_);  // so that the waiter cannot miss it between test and sleep
        done_.notify_one();
      }
    }
  }

  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> running_{0};
  Job* job_ = nullptr;
  bool stop_ = false;
};

std::mutex pool_mutex;
Pool* pool = nullptr;  // never destroyed at exit: its threads may outlive static destructors otherwise

void forget_pool_in_child() {
  pool = nullptr;  // the threads exist only in the parent; a new pool is made on first use
  new (&pool_mutex) std::mutex;
}

}  // namespace

int num_threads() {
  const int n = requested_threads.load(std::memory_order_relaxed);
  if (n > 0) return n;
  static const int standard = default_threads();
  return standard;
}

void set_num_threads(int n) { requested_threads.store(std::max(0, n), std::memory_order_relaxed); }

namespace detail {

void parallel_for(int64_t count, int64_t grain, TaskFunction function, void* context) {
  if (count <= 0) return;
  grain = std::max<int64_t>(1, grain);
  const int64_t threads = std::min<int64_t>(num_threads(), (count + grain - 1) / grain);
  if (threads <= 1 || inside_task) {
    function(context, 0, count);
    return;
  }
  // Callers on several threads take turns; whoever finds the pool busy works alone rather than wait.
  std::unique_lock<std::mutex> lock(pool_mutex, std::try_to_lock);
  if (!lock.owns_lock()) {
    function(context, 0, count);
    return;
  }
  if (!pool || pool->size() != num_threads() - 1) {
    static const int registered = pthread_atfork(nullptr, nullptr, forget_pool_in_child);
    (void)registered;
    delete pool;
    pool = new Pool(num_threads() - 1);
  }
  // Four pieces a thread even out uneven work.
  const int64_t piece = std::max(grain, (count + threads * 4 - 1) / (threads * 4));
  Job job{function, context, count, piece};
  pool->run(job);
}

}  // namespace detail
}  // namespace dvt
