// Fibers: stacks, and the switch from one to another. AddressSanitizer is told of each switch.
#pragma once

#include <cstddef>
#include <memory>

#if defined(__SANITIZE_ADDRESS__)
#define EMULATOR_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMULATOR_ASAN 1
#endif
#endif
#ifndef EMULATOR_ASAN
#define EMULATOR_ASAN 0
#endif

namespace emulator {

struct Fiber {
  void* stack_pointer = nullptr;
  const void* bottom = nullptr;  // of its stack, the lowest address
  size_t bytes = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
};

// Stacks that are used again and again; each has an inaccessible page below it, up to some number of them.
class Stacks {
 public:
  Stacks(size_t count, size_t bytes_each);
  ~Stacks();
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  size_t count() const { return count_; }
  // A fiber that starts at `entry`, which never returns, when it is switched to for the first time.
  void prepare(size_t i, Fiber& fiber, void (*entry)());

 private:
  char* base_ = nullptr;
  size_t count_, bytes_each_, guard_;
};

void switch_fiber(Fiber& from, Fiber& to, bool from_ends = false);
// To be called first in `entry`; `before` is the fiber that was switched from.
void fiber_started(Fiber& before);
size_t stack_bytes();

}  // namespace emulator
