// Where threads meet: collective operations of warps and warpgroups, and barriers of blocks. The functions of
// emulator/execution.h.
#include <cstring>

#include "scheduler.h"

namespace emulator {

void warp_collective(uint32_t mask, WarpFunction compute, void* arguments, const char* name) {
  Scheduler::current()->warp_collective(mask, compute, arguments, name);
}

void warpgroup_collective(WarpgroupFunction compute, void* arguments, const char* name) {
  Scheduler& scheduler = *Scheduler::current();
  Thread& thread = scheduler.thread();
  Block& block = *thread.block;
  Warpgroup& group = block.warpgroups[thread.number / 128];
  if (thread.number / 128 * 128 + 128 > block.thread_count)
    scheduler.fail(cudaErrorIllegalInstruction, name + std::string(": the block has no whole warpgroup here"));
  if (group.arrived == 0) group.compute = compute;
  if (group.compute != compute)
    scheduler.fail(cudaErrorIllegalInstruction, name + std::string(": other warps of the warpgroup are elsewhere"));
  group.arguments[thread.number % 128] = arguments;
  if (++group.arrived < 128) {
    scheduler.block_running(name, 0);
    return;
  }
  compute(group.arguments);
  group.arrived = 0;
  for (unsigned w = 0; w < 4; ++w) {
    Warp& warp = block.warps[thread.number / 128 * 4 + w];
    scheduler.make_ready(warp, warp.alive);
  }
  scheduler.reschedule(true);
}

int Scheduler::expected_at(const Block& block, const Barrier& barrier) const {
  if (barrier.expected > 0) return barrier.expected;
  if (&barrier != &block.cluster_barrier) return static_cast<int>(block.alive);
  unsigned alive = 0;
  for (unsigned rank = 0; rank < kernel_.cluster; ++rank) alive += block.cluster[rank]->alive;
  return static_cast<int>(alive);
}

void Scheduler::open_if_complete(Block& block, Barrier& barrier) {
  if (barrier.expected < 0 || barrier.arrived < expected_at(block, barrier)) return;
  barrier.result = barrier.vote == BlockVote::all   ? barrier.votes == barrier.arrived
                   : barrier.vote == BlockVote::any ? barrier.votes > 0
                                                    : barrier.votes;
  barrier.expected = -1;
  barrier.arrived = 0;
  barrier.votes = 0;
  for (Thread* thread : barrier.waiting) make_ready(*thread);
  barrier.waiting.clear();
}

// The running thread, which has been counted.
void Scheduler::wait_at(Block& block, Barrier& barrier, const char* name) {
  Thread& thread = *running_;
  barrier.waiting.push_back(&thread);
  thread.warp->ready &= ~(1u << thread.number % 32);
  thread.waits_for = name;
  thread.waits_mask = 0;
  thread.waits_key = &barrier;
  open_if_complete(block, barrier);
  reschedule(barrier.waiting.empty());
}

namespace {

Barrier& arrive(int id, int threads, BlockVote vote, const char* name) {
  Scheduler& scheduler = *Scheduler::current();
  if (id < 0 || id > 15 || threads < 0 || threads % 32)
    scheduler.fail(cudaErrorIllegalInstruction, name + std::string(": barrier ") + std::to_string(id) + " of " +
                                                    std::to_string(threads) + " threads, expected 0 to 15, and warps");
  Barrier& barrier = scheduler.thread().block->barriers[static_cast<size_t>(id)];
  if (barrier.expected < 0) {
    barrier.expected = threads;
    barrier.vote = vote;
  }
  if (barrier.expected != threads || barrier.vote != vote)
    scheduler.fail(cudaErrorIllegalInstruction, name + std::string(": threads come to barrier ") + std::to_string(id) +
                                                    " with other counts of threads, or other votes");
  ++barrier.arrived;
  return barrier;
}

}  // namespace

void barrier_sync(int id, int threads, const char* name) {
  Barrier& barrier = arrive(id, threads, BlockVote::none, name);
  Scheduler& scheduler = *Scheduler::current();
  scheduler.wait_at(*scheduler.thread().block, barrier, name);
}

void barrier_arrive(int id, int threads) {
  Scheduler& scheduler = *Scheduler::current();
  Barrier& barrier = arrive(id, threads, BlockVote::none, "bar.arrive");
  scheduler.open_if_complete(*scheduler.thread().block, barrier);
}

int barrier_vote(BlockVote vote, bool predicate) {
  constexpr char kName[] = "__syncthreads with a vote";
  Barrier& barrier = arrive(0, 0, vote, kName);
  barrier.votes += predicate;
  Scheduler& scheduler = *Scheduler::current();
  scheduler.wait_at(*scheduler.thread().block, barrier, kName);
  return barrier.result;
}

unsigned cluster_rank() { return Scheduler::current()->block().rank; }
unsigned cluster_blocks() { return Scheduler::current()->kernel().cluster; }

void cluster_sync() {
  Scheduler& scheduler = *Scheduler::current();
  Block& first = **scheduler.block().cluster;
  first.cluster_barrier.expected = 0;
  ++first.cluster_barrier.arrived;
  scheduler.wait_at(first, first.cluster_barrier, "barrier.cluster");
}

void* in_cluster(const void* p, unsigned rank, size_t bytes, size_t alignment, const char* name) {
  Scheduler& scheduler = *Scheduler::current();
  const uint32_t offset = on_shared(p, bytes, alignment, name);
  if (rank >= scheduler.kernel().cluster)
    fail(cudaErrorIllegalAddress, name + std::string(": block ") + std::to_string(rank) + " of a cluster of " +
                                      std::to_string(scheduler.kernel().cluster));
  const Block& block = *scheduler.block().cluster[rank];
  if (block.alive == 0)
    fail(cudaErrorIllegalAddress, name + std::string(": block ") + std::to_string(rank) + " of the cluster has ended");
  return block.shared + offset;
}

void pause() { Scheduler::current()->spin(); }
void park(const void* key, const char* name) { Scheduler::current()->park(key, name); }
void wake(const void* key) { Scheduler::current()->wake(key); }
void defer(std::function<void()> operation) { Scheduler::current()->defer(std::move(operation)); }
void fail(cudaError_t error, const std::string& message) { Scheduler::current()->fail(error, message); }

char* shared_memory() { return Scheduler::current()->block().shared; }
size_t shared_bytes() { return Scheduler::current()->block().shared_bytes; }

void check_aligned(const void* p, size_t alignment, const char* name) {
  if (reinterpret_cast<uintptr_t>(p) % alignment)
    fail(cudaErrorMisalignedAddress,
         name + std::string(": an address is not a multiple of ") + std::to_string(alignment));
}

uint32_t on_shared(const void* p, size_t bytes, size_t alignment, const char* name) {
  const Block& block = Scheduler::current()->block();
  const char* at = static_cast<const char*>(p);
  if (at < block.shared || at + bytes > block.shared + block.shared_bytes)
    fail(cudaErrorIllegalAddress, name + std::string(": ") + std::to_string(bytes) + " bytes at offset " +
                                      std::to_string(at - block.shared) + " of " + std::to_string(block.shared_bytes) +
                                      " bytes of shared memory");
  check_aligned(p, alignment, name);
  return static_cast<uint32_t>(at - block.shared);
}

unsigned thread_in_block() { return Scheduler::current()->thread().number; }
uint32_t alive_lanes() { return Scheduler::current()->thread().warp->alive; }
std::shared_ptr<void>& block_state(const void* type) { return Scheduler::current()->block().states[type]; }

// The destination is poisoned at once, and written when it is waited for: the earliest and the latest that may happen.
void copy_async(void* to, const void* from, size_t bytes, bool valid) {
  on_shared(to, bytes, bytes, "cp.async");
  if (valid) check_aligned(from, bytes, "cp.async");
  Thread& thread = Scheduler::current()->thread();
  std::memset(to, 0xff, bytes);
  thread.copies.push_back({to, from, static_cast<uint32_t>(bytes), valid, thread.copy_group});
}

void copy_async_commit() { ++Scheduler::current()->thread().copy_group; }

void copy_async_wait(uint64_t pending) {
  Thread& thread = Scheduler::current()->thread();
  size_t n = 0;
  for (; n < thread.copies.size() && thread.copies[n].group + pending < thread.copy_group; ++n) {
    const Copy& copy = thread.copies[n];
    if (copy.valid)
      std::memcpy(copy.to, copy.from, copy.bytes);
    else
      std::memset(copy.to, 0, copy.bytes);
  }
  thread.copies.erase(thread.copies.begin(), thread.copies.begin() + static_cast<std::ptrdiff_t>(n));
}

}  // namespace emulator
