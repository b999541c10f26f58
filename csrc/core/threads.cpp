#include "core/threads.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

namespace dvt {
namespace {

struct Default {
  int threads;
  Status status;
};

Default default_threads() {
  const char* text = std::getenv("DVT_FAST_NUM_THREADS");
  if (text && *text) {
    char* end = nullptr;
    const long n = std::strtol(text, &end, 10);  // the ends of `long` where it does not fit
    if (*end == '\0' && n >= 1 && n <= kMaxThreads) return {static_cast<int>(n), Status()};
    return {1, invalid_argument("DVT_FAST_NUM_THREADS must be a whole number from 1 to ", kMaxThreads, ", got '", text,
                                "'")};
  }
  int cores = static_cast<int>(std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) cores = CPU_COUNT(&set);
#endif
  return {std::clamp(cores, 1, kMaxThreads), Status()};
}

const Default& standard() {
  static const Default found = default_threads();
  return found;
}

std::atomic<int> requested_threads{0};
thread_local bool inside_task = false;

class InsideTask {
 public:
  InsideTask() { inside_task = true; }
  ~InsideTask() { inside_task = false; }
  InsideTask(const InsideTask&) = delete;
  InsideTask& operator=(const InsideTask&) = delete;
};

struct Job {
  detail::TaskFunction function;
  void* context;
  int64_t count, piece;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error{};  // the first; the caller reads it when nobody works any more

  void work() noexcept {
    const InsideTask inside;
    try {
      for (;;) {
        const int64_t begin = next.fetch_add(piece, std::memory_order_relaxed);
        if (begin >= count) break;
        function(context, begin, std::min(count, begin + piece));
      }
    } catch (...) {
      next.store(count, std::memory_order_relaxed);  // no piece that has not begun is worth its time
      if (!failed.exchange(true)) error = std::current_exception();
    }
  }
};

class Pool {
 public:
  explicit Pool(int workers) {
    try {
      for (int i = 0; i < workers; ++i) threads_.emplace_back([this] { loop(); });
    } catch (const std::system_error& e) {
      stop();
      throw std::system_error(e.code(), "cannot start " + std::to_string(workers + 1) + " threads");
    } catch (...) {
      stop();
      throw;
    }
  }
  ~Pool() { stop(); }
  int size() const { return static_cast<int>(threads_.size()); }

  // Works on the job together with all threads, and returns when nobody does any more.
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

  void stop() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
      generation_.fetch_add(1);
    }
    wake_.notify_all();
    for (auto& t : threads_) t.join();
  }

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
  return standard().threads;
}

Status threads_status() { return requested_threads.load(std::memory_order_relaxed) > 0 ? Status() : standard().status; }

Status set_num_threads(int64_t n) {
  if (n < 0 || n > kMaxThreads)
    return invalid_argument("the number of threads must be 1 to ", kMaxThreads, ", or 0 for the default, got ", n);
  requested_threads.store(static_cast<int>(n), std::memory_order_relaxed);
  return Status();
}

namespace detail {

void parallel_for(int64_t count, int64_t grain, TaskFunction function, void* context) {
  if (count <= 0) return;
  grain = std::max<int64_t>(1, grain);
  const int64_t threads = std::min<int64_t>(num_threads(), (count + grain - 1) / grain);
  if (threads <= 1 || inside_task) {
    function(context, 0, count);
    return;
  }
  // One caller has the pool at a time; whoever finds it busy works alone rather than wait.
  std::unique_lock<std::mutex> lock(pool_mutex, std::try_to_lock);
  if (!lock.owns_lock()) {
    function(context, 0, count);
    return;
  }
  if (!pool || pool->size() != num_threads() - 1) {
    static const int registered = pthread_atfork(nullptr, nullptr, forget_pool_in_child);
    (void)registered;
    delete pool;
    pool = nullptr;  // stays so if the threads cannot be started
    pool = new Pool(num_threads() - 1);
  }
  // Four pieces a thread even out uneven work.
  const int64_t piece = std::max(grain, (count + threads * 4 - 1) / (threads * 4));
  Job job{function, context, count, piece};
  pool->run(job);
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace detail
}  // namespace dvt
