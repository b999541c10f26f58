// The scheduler's own structures: threads, warps and blocks of one run. See emulator/execution.h for the idea.
#pragma once

#include <array>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "emulator/execution.h"
#include "fiber.h"

namespace emulator {

struct Random {
  uint64_t state;
  explicit Random(uint64_t seed) : state((seed + 1) * 0x9e3779b97f4a7c15u | 1) { next(), next(); }
  uint32_t next() {  // xorshift64*
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return static_cast<uint32_t>((state * 0x2545f4914f6cdd1du) >> 32);
  }
  uint32_t below(uint32_t n) { return static_cast<uint32_t>((static_cast<uint64_t>(next()) * n) >> 32); }
};

// One launch of a kernel.
struct Kernel {
  const void* function = nullptr;
  std::function<void()> body;  // what each thread runs
  dim3 grid, block;
  size_t shared_bytes = 0;
  bool cooperative = false;
  unsigned cluster = 1;  // blocks along x that run at once
};

struct Block;
struct Warp;

struct Copy {
  void* to;
  const void* from;
  uint32_t bytes;
  bool valid;
  uint64_t group;
};

struct Thread {
  Fiber fiber;
  uint3 index;
  unsigned number = 0;  // in its block
  Block* block = nullptr;
  Warp* warp = nullptr;
  // What it waits for, for reports; null: nothing.
  const char* waits_for = nullptr;
  uint32_t waits_mask = 0;
  const void* waits_key = nullptr;
  std::vector<Copy> copies;
  uint64_t copy_group = 0;
};

// Lanes on their way to one collective operation.
struct Meeting {
  WarpFunction compute = nullptr;  // null: free
  uint32_t mask = 0, arrived = 0;
  void* arguments[32] = {};
};

struct Warp {
  Block* block = nullptr;
  unsigned first = 0;  // thread
  uint32_t alive = 0;
  uint32_t ready = 0;  // can run or runs
  bool listed = false;
  std::vector<Meeting> meetings;
  Thread& thread(unsigned lane);
};

struct Warpgroup {
  WarpgroupFunction compute = nullptr;
  unsigned arrived = 0;
  void* arguments[128] = {};
};

struct Barrier {
  int expected = -1;  // threads; 0: all that are alive; -1: nobody is there
  int arrived = 0;
  BlockVote vote = BlockVote::none;
  int votes = 0, result = 0;
  std::vector<Thread*> waiting;
};

struct Block {
  uint3 index;
  Block** cluster = nullptr;  // the blocks of its cluster
  unsigned rank = 0;          // in it
  unsigned thread_count = 0, alive = 0;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<Warpgroup> warpgroups;
  std::array<Barrier, 16> barriers;
  Barrier cluster_barrier;  // of the first block of a cluster
  std::map<const void*, std::shared_ptr<void>> states;
  char* shared = nullptr;  // exactly `shared_bytes`, and a guard
  size_t shared_bytes = 0;
};

inline Thread& Warp::thread(unsigned lane) { return block->threads[first + lane]; }

struct Deferred {
  Block* block;
  bool late;  // runs when every thread waits, and not before
  std::function<void()> run;
};

// Thrown where an operation fails that runs after all threads have ended; a thread that fails is left where it is.
struct Abandoned {};

struct Failure {
  cudaError_t error = cudaSuccess;
  std::string message;
};

// Runs one block, or all blocks of a cooperative launch at once, on the calling operating system thread.
class Scheduler {
 public:
  Scheduler(const Kernel& kernel, Stacks& stacks) : kernel_(kernel), stacks_(stacks) {}
  ~Scheduler();
  Failure run(const std::vector<uint3>& blocks, uint64_t seed);

  static Scheduler* current() { return current_; }
  Thread& thread() { return *running_; }
  // Of the running thread, or of the asynchronous operation that is being run.
  Block& block() { return deferred_block_ ? *deferred_block_ : *running_->block; }
  const Kernel& kernel() const { return kernel_; }

  // The running thread gives way; it goes on when its bit in `ready` is set and chance picks it. `any_warp`: chance
  // picks among all warps; else this warp goes on if it can, whose stacks are in the cache.
  void reschedule(bool any_warp);
  void warp_collective(uint32_t mask, WarpFunction compute, void* arguments, const char* name);
  void block_running(const char* name, uint32_t mask, const void* key = nullptr);
  void make_ready(Warp& warp, uint32_t lanes);
  void make_ready(Thread& thread) { make_ready(*thread.warp, 1u << thread.number % 32); }
  int expected_at(const Block& block, const Barrier& barrier) const;
  void open_if_complete(Block& block, Barrier& barrier);
  void wait_at(Block& block, Barrier& barrier, const char* name);
  void complete_meetings(Warp& warp);
  void park(const void* key, const char* name);
  void wake(const void* key);
  void spin();
  void defer(std::function<void()> operation);
  [[noreturn]] void fail(cudaError_t error, const std::string& message);
  [[noreturn]] void thread_ends();
  Random& random() { return random_; }

 private:
  static void entry();
  void prepare(Block& block, uint3 index, size_t first_stack);
  Thread* next(bool any_warp);
  Thread* pick(Warp& warp);
  bool run_deferred(bool idle);
  void enter(Thread& thread);
  void check_guards();
  [[noreturn]] void deadlock();

  static EMULATOR_THREAD_LOCAL Scheduler* current_;
  const Kernel& kernel_;
  Stacks& stacks_;
  Random random_{0};
  Fiber host_;
  Thread* running_ = nullptr;
  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<Block*> in_clusters_;  // the same
  std::vector<Warp*> listed_;        // those that may have a lane that is ready
  std::vector<Thread*> parked_;
  std::vector<Deferred> deferred_;
  Block* deferred_block_ = nullptr;
  size_t alive_ = 0;
  Failure failure_;
  uint64_t spins_ = 0;
  std::chrono::steady_clock::time_point spins_since_;
};

// All blocks, in a random order, on DVT_EMULATOR_THREADS operating system threads. Prints what failed.
cudaError_t run_kernel(const Kernel& kernel);
std::string function_name(const void* function);

}  // namespace emulator
