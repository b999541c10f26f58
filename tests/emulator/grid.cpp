// All blocks of a launch.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <mutex>
#include <thread>

#include "scheduler.h"
#include "settings.h"

namespace emulator {
namespace {

// Stacks are kept for the next launch.
class StackPool {
 public:
  std::unique_ptr<Stacks> take(size_t count) {
    {
      std::lock_guard lock(mutex_);
      for (size_t i = 0; i < free_.size(); ++i)
        if (free_[i]->count() >= count) {
          std::unique_ptr<Stacks> stacks = std::move(free_[i]);
          free_.erase(free_.begin() + static_cast<std::ptrdiff_t>(i));
          return stacks;
        }
    }
    return std::make_unique<Stacks>(std::max<size_t>(count, 1024), stack_bytes());
  }
  void give(std::unique_ptr<Stacks> stacks) {
    if (stacks->count() > 8192) return;
    std::lock_guard lock(mutex_);
    free_.push_back(std::move(stacks));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Stacks>> free_;
};

StackPool& stack_pool() {
  static StackPool& pool = *new StackPool;
  return pool;
}

}  // namespace

cudaError_t run_kernel(const Kernel& kernel) {
  static std::atomic<uint64_t> launches{0};
  const uint64_t seed = static_cast<uint64_t>(setting("DVT_EMULATOR_SEED", 0)) * 1000003 + launches++;
  const size_t blocks = static_cast<size_t>(kernel.grid.x) * kernel.grid.y * kernel.grid.z;
  const size_t threads = static_cast<size_t>(kernel.block.x) * kernel.block.y * kernel.block.z;
  // The blocks of a cluster stay together.
  std::vector<uint3> order(blocks);
  std::vector<unsigned> firsts(blocks / kernel.cluster);
  Random random(seed);
  for (size_t c = 0; c < firsts.size(); ++c) {
    const size_t j = random.below(static_cast<uint32_t>(c + 1));
    firsts[c] = firsts[j];
    firsts[j] = static_cast<unsigned>(c * kernel.cluster);
  }
  for (size_t b = 0; b < blocks; ++b) {
    const unsigned i = firsts[b / kernel.cluster] + static_cast<unsigned>(b % kernel.cluster);
    const unsigned x = kernel.grid.x, y = kernel.grid.y;
    order[b] = {i % x, i / x % y, i / x / y};
  }

  std::atomic<size_t> next{0};
  std::mutex mutex;
  Failure failure;
  const auto work = [&](size_t at_once) {
    std::unique_ptr<Stacks> stacks = stack_pool().take(threads * at_once);
    {
      Scheduler scheduler(kernel, *stacks);
      for (size_t b; (b = next.fetch_add(at_once)) < blocks;) {
        const auto first = order.begin() + static_cast<std::ptrdiff_t>(b);
        const size_t count = std::min(blocks - b, at_once);
        Failure failed = scheduler.run({first, first + static_cast<std::ptrdiff_t>(count)}, seed * 0x10001 + b);
        if (failed.error) {
          next = blocks;
          std::lock_guard lock(mutex);
          if (!failure.error) failure = std::move(failed);
        }
      }
    }
    stack_pool().give(std::move(stacks));
  };
  if (kernel.cooperative) {
    work(blocks);
  } else {
    const size_t workers = std::min(firsts.size(), static_cast<size_t>(setting("DVT_EMULATOR_THREADS", 1)));
    std::vector<std::thread> others;
    for (size_t i = 1; i < workers; ++i) others.emplace_back(work, kernel.cluster);
    work(kernel.cluster);
    for (std::thread& other : others) other.join();
  }
  if (failure.error) std::fprintf(stderr, "emulator: %s\n", failure.message.c_str());
  return failure.error;
}

}  // namespace emulator
