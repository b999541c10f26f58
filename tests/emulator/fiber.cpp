#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#include "settings.h"

#if EMULATOR_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// emulator_switch(void** from, void* to): pushes the registers that a function has to keep, leaves the stack pointer in
// *from and goes on where `to` was left.
extern "C" void emulator_switch(void** from, void* to);

#if defined(__x86_64__)
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch, @function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rdx
  jmpq *%rdx  # a ret would be predicted to go where this fiber was called from
.size emulator_switch, .-emulator_switch
)");
namespace {
// As emulator_switch would have left it: six registers, and where to return to, with the stack aligned as after a call.
void* first_frame(char* top, void (*entry)()) {
  void** frame = reinterpret_cast<void**>(top) - 2;
  frame[0] = reinterpret_cast<void*>(entry);
  frame[1] = nullptr;
  frame -= 6;
  for (int i = 0; i < 6; ++i) frame[i] = nullptr;
  return frame;
}
}  // namespace
#elif defined(__aarch64__)
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch, %function
emulator_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x9, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  br x9
.size emulator_switch, .-emulator_switch
)");
namespace {
void* first_frame(char* top, void (*entry)()) {
  void** frame = reinterpret_cast<void**>(top - 160);
  for (int i = 0; i < 20; ++i) frame[i] = nullptr;
  frame[11] = reinterpret_cast<void*>(entry);  // x30
  return frame;
}
}  // namespace
#else
#error "the emulator switches fibers on x86-64 and AArch64 only"
#endif

namespace emulator {

constexpr size_t kPage = 4096;
constexpr size_t kGuarded = 4096;  // a process has 65530 mappings at most

size_t stack_bytes() {
  const size_t kilobytes = static_cast<size_t>(setting("DVT_EMULATOR_STACK", EMULATOR_ASAN ? 512 : 256));
  return (kilobytes * 1024 + kPage - 1) / kPage * kPage;
}

Stacks::Stacks(size_t count, size_t bytes_each)
    : count_(count), bytes_each_(bytes_each), guard_(count <= kGuarded ? kPage : 0) {
  void* memory = mmap(nullptr, count * (bytes_each + guard_), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  base_ = static_cast<char*>(memory);
  if (guard_)
    for (size_t i = 0; i < count; ++i) mprotect(base_ + i * (bytes_each + guard_), guard_, PROT_NONE);
}

Stacks::~Stacks() { munmap(base_, count_ * (bytes_each_ + guard_)); }

void Stacks::prepare(size_t i, Fiber& fiber, void (*entry)()) {
  char* bottom = base_ + i * (bytes_each_ + guard_) + guard_;
#if EMULATOR_ASAN
  __asan_unpoison_memory_region(bottom, bytes_each_);  // of a fiber that was given up
#endif
  fiber.bottom = bottom;
  fiber.bytes = bytes_each_;
  fiber.fake_stack = nullptr;
  // Each at another offset, or the ends of all stacks would share one set of the cache.
  fiber.stack_pointer = first_frame(bottom + bytes_each_ - 64 - i % 64 * 320, entry);
}

void switch_fiber(Fiber& from, Fiber& to, [[maybe_unused]] bool from_ends) {
#if EMULATOR_ASAN
  __sanitizer_start_switch_fiber(from_ends ? nullptr : &from.fake_stack, to.bottom, to.bytes);
#endif
  emulator_switch(&from.stack_pointer, to.stack_pointer);
#if EMULATOR_ASAN
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

void fiber_started([[maybe_unused]] Fiber& before) {
#if EMULATOR_ASAN
  const void* bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  if (!before.bottom) before.bottom = bottom, before.bytes = bytes;
#endif
}

}  // namespace emulator
