// wgmma: products of a warpgroup, by warps.
#pragma once

#include <cstdint>

namespace emulator {

enum class WarpgroupType { bf16, f16, tf32 };

struct WarpgroupProduct {
  WarpgroupType type;
  int n;
  bool mn_major;  // B
  bool accumulate;
  uint64_t a, b;              // descriptors
  const uint32_t* registers;  // of A, instead of `a`, or null
  float* d;
};

void warpgroup_fence();
void warpgroup_product(const WarpgroupProduct& product);
void warpgroup_commit();
void warpgroup_wait(uint64_t pending);

}  // namespace emulator
