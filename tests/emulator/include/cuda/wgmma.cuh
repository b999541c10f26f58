// The twin of csrc/cuda/wgmma.cuh for the CPU. Descriptors are decoded from their bits and memory is read through the
// swizzle, as late as is legal: each warp does its 16 rows when it waits for the group, also reading A from registers
// then. Whoever hands memory back before all four warps have waited gets wrong results.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "cuda/numeric.cuh"
#include "cuda/ptx_sm90.cuh"
#include "emulator/warpgroup.h"

namespace dvt::ptx {

inline uint64_t tile_descriptor(const void* start, uint32_t stride = 1024, uint32_t leading = 16) {
  const uint64_t address = shared_address(start);
  return (address >> 4 & 0x3fff) | static_cast<uint64_t>(leading >> 4 & 0x3fff) << 16 |
         static_cast<uint64_t>(stride >> 4 & 0x3fff) << 32 | 1ull << 62;
}
inline uint64_t advance(uint64_t descriptor, uint32_t bytes) { return descriptor + (bytes >> 4); }

inline void wgmma_fence() { emulator::warpgroup_fence(); }
inline void wgmma_commit() { emulator::warpgroup_commit(); }
template <int kPending>
void wgmma_wait() {
  emulator::warpgroup_wait(kPending);
}
template <int kCount>
void hold(float (&)[kCount]) {}
template <int kCount>
void hold(uint32_t (&)[kCount]) {}

namespace emulated {
template <class T>
constexpr emulator::WarpgroupType kWarpgroupType = emulator::WarpgroupType::bf16;
template <>
inline constexpr emulator::WarpgroupType kWarpgroupType<cuda::f16> = emulator::WarpgroupType::f16;
template <>
inline constexpr emulator::WarpgroupType kWarpgroupType<cuda::tf32> = emulator::WarpgroupType::tf32;
}  // namespace emulated

template <class T, bool kMnMajor = false>
struct Wgmma {
  static_assert(!kMnMajor || sizeof(T) == 2, "only 16-bit types may be MN-major");
  template <int kHalf>
  static void run(float (&d)[kHalf], uint64_t a, uint64_t b, bool accumulate) {
    static_assert(kHalf % 4 == 0 && kHalf <= 128);
    emulator::warpgroup_product({emulated::kWarpgroupType<T>, 2 * kHalf, kMnMajor, accumulate, a, b, nullptr, d});
  }
  template <int kHalf>
  static void run(float (&d)[kHalf], uint32_t (&a)[4], uint64_t b, bool accumulate) {
    static_assert(sizeof(T) == 2 && kHalf % 4 == 0 && kHalf <= 128);
    emulator::warpgroup_product({emulated::kWarpgroupType<T>, 2 * kHalf, kMnMajor, accumulate, 0, b, a, d});
  }
};

}  // namespace dvt::ptx
