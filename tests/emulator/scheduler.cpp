// Who runs next, and what happens when a thread ends or nobody can go on.
#include "scheduler.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "settings.h"

EMULATOR_THREAD_LOCAL uint3 threadIdx;
EMULATOR_THREAD_LOCAL uint3 blockIdx;
EMULATOR_THREAD_LOCAL uint3 blockDim;
EMULATOR_THREAD_LOCAL uint3 gridDim;

namespace emulator {
namespace {

constexpr size_t kGuard = EMULATOR_ASAN ? 0 : 256;  // bytes behind shared memory, watched
constexpr unsigned char kGuardByte = 0xa5;

}  // namespace

EMULATOR_THREAD_LOCAL Scheduler* Scheduler::current_;

Scheduler::~Scheduler() {
  for (auto& block : blocks_) std::free(block->shared);
}

void Scheduler::prepare(Block& block, uint3 index, size_t first_stack) {
  const dim3& shape = kernel_.block;
  const unsigned count = shape.x * shape.y * shape.z, warps = (count + 31) / 32;
  block.index = index;
  block.thread_count = block.alive = count;
  if (!block.shared) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 1024, kernel_.shared_bytes + kGuard)) throw std::bad_alloc();
    block.shared = static_cast<char*>(memory);
    block.shared_bytes = kernel_.shared_bytes;
    block.threads.resize(count);
    block.warps.resize(warps);
  }
  std::memset(block.shared, 0xff, block.shared_bytes);
  std::memset(block.shared + block.shared_bytes, kGuardByte, kGuard);
  block.barriers = {};
  block.warpgroups.assign((warps + 3) / 4, {});
  block.states.clear();
  for (unsigned w = 0; w < warps; ++w) {
    Warp& warp = block.warps[w];
    warp.block = &block;
    warp.first = w * 32;
    warp.alive = count - w * 32 >= 32 ? ~0u : (1u << (count - w * 32)) - 1;
    warp.ready = 0;
    warp.listed = false;
    warp.meetings.clear();
    make_ready(warp, warp.alive);
  }
  for (unsigned i = 0; i < count; ++i) {
    Thread& thread = block.threads[i];
    thread.index = {i % shape.x, i / shape.x % shape.y, i / (shape.x * shape.y)};
    thread.number = i;
    thread.block = &block;
    thread.warp = &block.warps[i / 32];
    thread.waits_for = nullptr;
    thread.copies.clear();
    thread.copy_group = 0;
    stacks_.prepare(first_stack + i, thread.fiber, entry);
  }
  alive_ += count;
}

Failure Scheduler::run(const std::vector<uint3>& blocks, uint64_t seed) {
  Scheduler* const before = current_;
  current_ = this;
  random_ = Random(seed);
  blockDim = kernel_.block;
  gridDim = kernel_.grid;
  listed_.clear();
  parked_.clear();
  deferred_.clear();
  deferred_block_ = nullptr;
  alive_ = 0;
  spins_ = 0;
  size_t stack = 0;
  while (blocks_.size() < blocks.size()) blocks_.push_back(std::make_unique<Block>());
  for (size_t b = 0; b < blocks.size(); ++b) {
    prepare(*blocks_[b], blocks[b], stack);
    stack += blocks_[b]->thread_count;
  }
  in_clusters_.clear();
  for (size_t b = 0; b < blocks.size(); ++b) in_clusters_.push_back(blocks_[b].get());
  for (size_t b = 0; b < blocks.size(); ++b) {
    blocks_[b]->rank = static_cast<unsigned>(b % kernel_.cluster);
    blocks_[b]->cluster = &in_clusters_[b - b % kernel_.cluster];
  }
  running_ = nullptr;
  Thread* first = next(true);
  enter(*first);
  switch_fiber(host_, first->fiber);
  running_ = nullptr;
  try {
    while (!failure_.error && run_deferred(true)) {
    }
  } catch (const Abandoned&) {
  }
  check_guards();
  current_ = before;
  return failure_;
}

void Scheduler::check_guards() {
  for (size_t b = 0; b < in_clusters_.size() && !failure_.error; ++b) {
    const auto* guard = reinterpret_cast<const unsigned char*>(in_clusters_[b]->shared) + kernel_.shared_bytes;
    for (size_t i = 0; i < kGuard; ++i)
      if (guard[i] != kGuardByte) {
        failure_ = {cudaErrorIllegalAddress, "kernel " + function_name(kernel_.function) + " wrote byte " +
                                                 std::to_string(i) + " behind its shared memory of " +
                                                 std::to_string(kernel_.shared_bytes) + " bytes"};
        break;
      }
  }
}

void Scheduler::entry() {
  fiber_started(current_->host_);
  current_->kernel_.body();
  current_->thread_ends();
}

void Scheduler::make_ready(Warp& warp, uint32_t lanes) {
  warp.ready |= lanes;
  spins_ = 0;
  if (!warp.listed) {
    warp.listed = true;
    listed_.push_back(&warp);
  }
}

void Scheduler::enter(Thread& thread) {
  running_ = &thread;
  thread.waits_for = nullptr;
  threadIdx = thread.index;
  blockIdx = thread.block->index;
}

// A lane that is ready, from a random one on.
Thread* Scheduler::pick(Warp& warp) {
  const unsigned turn = random_.next() & 31;
  const uint32_t turned = warp.ready >> turn | (turn ? warp.ready << (32 - turn) : 0);
  return &warp.thread((static_cast<unsigned>(__builtin_ctz(turned)) + turn) & 31);
}

// Null: no thread can go on.
Thread* Scheduler::next(bool any_warp) {
  if (!any_warp && running_->warp->ready) return pick(*running_->warp);
  if (!deferred_.empty() && random_.below(4) == 0) run_deferred(false);
  for (;;) {
    while (!listed_.empty()) {
      const size_t i = random_.below(static_cast<uint32_t>(listed_.size()));
      if (listed_[i]->ready) return pick(*listed_[i]);
      listed_[i]->listed = false;
      listed_[i] = listed_.back();
      listed_.pop_back();
    }
    if (!run_deferred(true)) return nullptr;
  }
}

void Scheduler::reschedule(bool any_warp) {
  Thread* const from = running_;
  Thread* const to = next(any_warp);
  if (!to) deadlock();
  if (to == from) {
    from->waits_for = nullptr;
    return;
  }
  enter(*to);
  switch_fiber(from->fiber, to->fiber);
}

void Scheduler::warp_collective(uint32_t mask, WarpFunction compute, void* arguments, const char* name) {
  Warp& warp = *running_->warp;
  const unsigned lane = running_->number % 32;
  if (!(mask >> lane & 1)) {
    char text[64];
    std::snprintf(text, sizeof text, ": the mask 0x%08x lacks the lane that calls, %u", mask, lane);
    fail(cudaErrorIllegalInstruction, name + std::string(text));
  }
  Meeting* meeting = nullptr;
  Meeting* unused = nullptr;
  for (Meeting& m : warp.meetings) {
    if (m.compute == compute && m.mask == mask) meeting = &m;
    if (!m.compute) unused = &m;
  }
  if (!meeting) {
    if (!unused) {
      warp.meetings.emplace_back();
      unused = &warp.meetings.back();
    }
    meeting = unused;
    meeting->compute = compute;
    meeting->mask = mask;
    meeting->arrived = 0;
    std::memset(meeting->arguments, 0, sizeof meeting->arguments);
  }
  meeting->arguments[lane] = arguments;
  meeting->arrived |= 1u << lane;
  if (meeting->arrived != (mask & warp.alive)) {
    block_running(name, mask);
    return;
  }
  compute(meeting->arguments, meeting->arrived);
  meeting->compute = nullptr;
  make_ready(warp, meeting->arrived);
  reschedule(random_.below(8) == 0);
}

// After a lane has ended: the others no longer wait for it.
void Scheduler::complete_meetings(Warp& warp) {
  for (Meeting& meeting : warp.meetings)
    if (meeting.compute && meeting.arrived == (meeting.mask & warp.alive)) {
      meeting.compute(meeting.arguments, meeting.arrived);
      meeting.compute = nullptr;
      make_ready(warp, meeting.arrived);
    }
}

void Scheduler::block_running(const char* name, uint32_t mask, const void* key) {
  Thread& thread = *running_;
  thread.waits_for = name;
  thread.waits_mask = mask;
  thread.waits_key = key;
  thread.warp->ready &= ~(1u << thread.number % 32);
  reschedule(false);
}

void Scheduler::thread_ends() {
  Thread& thread = *running_;
  Warp& warp = *thread.warp;
  const uint32_t bit = 1u << thread.number % 32;
  warp.ready &= ~bit;
  warp.alive &= ~bit;
  --thread.block->alive;
  --alive_;
  spins_ = 0;
  complete_meetings(warp);
  open_if_complete(*thread.block, thread.block->barriers[0]);
  open_if_complete(**thread.block->cluster, (*thread.block->cluster)->cluster_barrier);
  Thread* const to = alive_ ? next(false) : nullptr;
  if (!to) {
    if (alive_) deadlock();
    switch_fiber(thread.fiber, host_, true);
  } else {
    enter(*to);
    switch_fiber(thread.fiber, to->fiber, true);
  }
  __builtin_unreachable();
}

void Scheduler::defer(std::function<void()> operation) {
  deferred_.push_back({&block(), random_.below(2) == 0, std::move(operation)});
}

// One of them, unless it is not yet time for it.
bool Scheduler::run_deferred(bool idle) {
  if (deferred_.empty() || deferred_block_) return false;
  const size_t i = random_.below(static_cast<uint32_t>(deferred_.size()));
  if (deferred_[i].late && !idle) return false;
  const Deferred operation = std::move(deferred_[i]);
  deferred_.erase(deferred_.begin() + static_cast<std::ptrdiff_t>(i));
  deferred_block_ = operation.block;
  operation.run();
  deferred_block_ = nullptr;
  return true;
}

void Scheduler::park(const void* key, const char* name) {
  parked_.push_back(running_);
  block_running(name, 0, key);
}

void Scheduler::wake(const void* key) {
  for (size_t i = parked_.size(); i-- > 0;)
    if (parked_[i]->waits_key == key) {
      Thread* thread = parked_[i];
      parked_[i] = parked_.back();
      parked_.pop_back();
      make_ready(*thread);
    }
}

void Scheduler::spin() {
  using std::chrono::steady_clock;
  if (spins_++ == 0) spins_since_ = steady_clock::now();
  if (spins_ % 4096 == 0 &&
      std::chrono::duration<double>(steady_clock::now() - spins_since_).count() > setting("DVT_EMULATOR_TIMEOUT", 20))
    fail(cudaErrorLaunchTimeout, "threads spin and nothing else happens");
  if (!deferred_.empty() && random_.below(4) == 0) run_deferred(true);
  Thread* const from = running_;
  from->waits_for = "a spin loop";
  Thread* const to = next(true);
  if (to == from) return;
  enter(*to);
  switch_fiber(from->fiber, to->fiber);
}

}  // namespace emulator
