// What device code asks of the emulator's scheduler. Intrinsics and the twins of ptx.cuh and ptx_sm90.cuh are written
// with it; kernels never see it.
//
// How a kernel runs. Each thread of a block is a fiber with its own stack. A fiber runs, alone, until it has to wait
// for others; then the scheduler picks another one at random (DVT_EMULATOR_SEED). So between two points where threads
// meet, they run one after the other in an order that no kernel may rely on: a missing barrier shows as a wrong result
// for some seed, usually for all. A thread can wait in three ways:
//
//   warp_collective        the lanes of a mask meet (shuffles, votes, mma, ldmatrix, __syncwarp). The last one to
//   arrive
//                          computes for all: `compute(arguments, lanes)` gets a pointer from each lane (null where the
//                          lane isn't in `lanes`), usually to a struct on its stack with operands and results.
//   warpgroup_collective   the same for the 128 threads of four aligned warps (wgmma), arguments[0..127].
//   barrier_sync           barrier 0 to 15 of the block for so many threads; 0 threads: all that have not exited.
//   wait_until             a condition on memory that another thread or an asynchronous operation of this block makes
//                          true; whoever does so calls wake(key) with the same key (say, the address of an mbarrier).
//   pause                  a turn of a spin loop, for what another block writes.
//
// Asynchronous hardware (bulk copies, wgmma). defer(operation) leaves work to "the hardware": it runs at some random
// later moment, at the latest when every thread of the block waits. The operation may call wake(), on_shared(), fail(),
// and no function that waits. AsyncGroups holds operations back until wait(), which is the latest legal moment.
//
// If nobody can go on, the kernel is ended: who waits where goes to stderr, and the launch has failed (a sticky error).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "emulator/errors.h"
#include "emulator/vector_types.h"

namespace emulator {

using WarpFunction = void (*)(void* const* arguments, uint32_t lanes);
void warp_collective(uint32_t mask, WarpFunction compute, void* arguments, const char* name);

using WarpgroupFunction = void (*)(void* const* arguments);
void warpgroup_collective(WarpgroupFunction compute, void* arguments, const char* name);

void barrier_sync(int id, int threads, const char* name);
void barrier_arrive(int id, int threads);  // is counted, and does not wait
enum class BlockVote { none, count, any, all };
int barrier_vote(BlockVote vote, bool predicate);  // on barrier 0, all threads

void pause();
void park(const void* key, const char* name);  // until wake(key); may also return without a reason
void wake(const void* key);
template <class Condition>
void wait_until(const void* key, Condition is_true, const char* name) {
  while (!is_true()) park(key, name);
}

void defer(std::function<void()> operation);

// Ends the kernel with a sticky error, and says why, in which kernel and thread.
[[noreturn]] void fail(cudaError_t error, const std::string& message);

// The block's dynamic shared memory: exactly as large as the launch said.
char* shared_memory();
size_t shared_bytes();
// The offset in it of [p, p + bytes); fails where that is outside, or `p` not a multiple of `alignment`.
uint32_t on_shared(const void* p, size_t bytes, size_t alignment, const char* name);
// Fails where `p` isn't a multiple of `alignment`.
void check_aligned(const void* p, size_t alignment, const char* name);

// Clusters: the block's rank in its own, how many blocks that has, a barrier of all their threads, and where in block
// `rank` the place is that `p` is in this one (checked as by on_shared; that block must not have ended).
unsigned cluster_rank();
unsigned cluster_blocks();
void cluster_sync();
void* in_cluster(const void* p, unsigned rank, size_t bytes, size_t alignment, const char* name);

unsigned thread_in_block();  // x fastest
inline unsigned warp_in_block() { return thread_in_block() / 32; }
inline unsigned lane_in_warp() { return thread_in_block() % 32; }
uint32_t alive_lanes();  // of this warp: those that have not exited

// An object of type T that the block has from its first use to its end.
std::shared_ptr<void>& block_state(const void* type);
template <class T>
T& block_state() {
  static const char type = 0;
  std::shared_ptr<void>& slot = block_state(&type);
  if (!slot) slot = std::make_shared<T>();
  return *static_cast<T*>(slot.get());
}

// Groups of operations, as of cp.async and wgmma: they run when they are waited for, in their order.
class AsyncGroups {
 public:
  void add(std::function<void()> operation) { operations_.push_back({committed_, std::move(operation)}); }
  void commit() { ++committed_; }
  void wait(uint64_t pending) {
    size_t n = 0;
    while (n < operations_.size() && operations_[n].group + pending < committed_) operations_[n++].run();
    operations_.erase(operations_.begin(), operations_.begin() + static_cast<std::ptrdiff_t>(n));
  }
  bool empty() const { return operations_.empty(); }

 private:
  struct Operation {
    uint64_t group;
    std::function<void()> run;
  };
  std::vector<Operation> operations_;
  uint64_t committed_ = 0;
};

// cp.async of this thread.
void copy_async(void* to, const void* from, size_t bytes, bool valid);
void copy_async_commit();
void copy_async_wait(uint64_t pending);

}  // namespace emulator
