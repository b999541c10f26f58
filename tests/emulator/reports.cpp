// What is said of a kernel that cannot go on.
#include <cstdio>

#include "scheduler.h"

namespace emulator {
namespace {

std::string text_of(uint3 v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}

}  // namespace

void Scheduler::fail(cudaError_t error, const std::string& message) {
  std::string where = "kernel " + function_name(kernel_.function);
  if (running_)
    where += ", block " + text_of(block().index) + (deferred_block_ ? ", asynchronous operation" : "") +
             (deferred_block_ ? "" : ", thread " + text_of(running_->index));
  failure_ = {error, where + ": " + message};
  Thread* const from = running_;
  deferred_block_ = nullptr;
  switch_fiber(from->fiber, host_);
  __builtin_unreachable();
}

// Lanes that wait for the same are named together.
void Scheduler::deadlock() {
  std::string message = "threads wait for others that never come:";
  unsigned lines = 0;
  for (const auto& block : blocks_)
    for (Warp& warp : block->warps)
      for (uint32_t rest = warp.alive; rest && lines < 24;) {
        const Thread& first = warp.thread(static_cast<unsigned>(__builtin_ctz(rest)));
        uint32_t same = 0;
        for (unsigned lane = 0; lane < 32; ++lane)
          if (rest >> lane & 1 && warp.thread(lane).waits_for == first.waits_for &&
              warp.thread(lane).waits_mask == first.waits_mask && warp.thread(lane).waits_key == first.waits_key)
            same |= 1u << lane;
        rest &= ~same;
        char line[200];
        std::snprintf(line, sizeof line, "\n  block %s warp %u: lanes 0x%08x at %s", text_of(block->index).c_str(),
                      warp.first / 32, same, first.waits_for ? first.waits_for : "nothing");
        message += line;
        if (first.waits_mask) {
          std::snprintf(line, sizeof line, " of lanes 0x%08x", first.waits_mask);
          message += line;
        }
        if (++lines == 24) message += "\n  ...";
      }
  fail(cudaErrorLaunchFailure, message);
}

}  // namespace emulator
