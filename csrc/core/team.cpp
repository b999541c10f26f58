#include "core/team.h"

#include <sched.h>
#include <unistd.h>

#include <string>
#include <system_error>

namespace dvt {
namespace {

// Members of a team that has a core for each wait a few microseconds at a barrier. Where there are fewer cores, the one
// that is waited for needs this one: from then on give it away.
constexpr int kSpins = 4000;
// How long to look for the next frame before going to sleep.
constexpr int kSpinsBetweenFrames = 2000;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

template <class Condition>
void wait_until(const Condition& condition) {
  for (int spin = 0; !condition(); ++spin) {
    if (spin < kSpins)
      pause();
    else
      sched_yield();
  }
}

}  // namespace

Team::Team(int size) : size_(size), process_(getpid()) {
  try {
    threads_.reserve(static_cast<size_t>(size - 1));
    for (int member = 1; member < size; ++member) threads_.emplace_back([this, member] { member_loop(member); });
  } catch (const std::system_error& error) {
    stop();
    throw std::system_error(error.code(), "cannot start " + std::to_string(size) + " threads");
  } catch (...) {
    stop();
    throw;
  }
}

Team::~Team() { stop(); }

bool Team::in_this_process() const { return size_ == 1 || getpid() == process_; }

void Team::stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    frame_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Team::barrier() {
  if (size_ == 1) {
    next_.store(0, std::memory_order_relaxed);
    return;
  }
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    next_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
  } else {
    wait_until([&] { return phase_.load(std::memory_order_acquire) != phase; });
  }
}

void Team::run(Function function, void* context) {
  next_.store(0, std::memory_order_relaxed);
  if (size_ > 1) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      function_ = function;
      context_ = context;
      working_.store(size_ - 1, std::memory_order_relaxed);
      frame_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
  }
  function(context, 0);
  wait_until([&] { return working_.load(std::memory_order_acquire) == 0; });
}

void Team::member_loop(int member) {
  uint32_t seen = 0;
  for (;;) {
    for (int spin = 0; spin < kSpinsBetweenFrames && frame_.load(std::memory_order_acquire) == seen; ++spin) pause();
    Function function;
    void* context;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return frame_.load(std::memory_order_relaxed) != seen; });
      if (stopping_) return;
      seen = frame_.load(std::memory_order_relaxed);
      function = function_;
      context = context_;
    }
    function(context, member);
    working_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace dvt
