// The element of a given rank among many, by one block; see direct_statistics.h.
#pragma once

#include "field/bilinear_grid/bilinear_device.cuh"

namespace dvt::cuda {

struct SelectShared {
  double sums[33 * 2];  // for what follows a selection
  uint32_t counts[256];
  uint32_t prefix, rank;
};

// Unsigned numbers in the order of the floats.
DVT_DEVICE uint32_t ordered_bits(float x) {
  const uint32_t bits = __float_as_uint(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
DVT_DEVICE float from_ordered_bits(uint32_t bits) {
  return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}

// Of load(0) .. load(count - 1), the one that `rank` others precede. Every thread of the block gets it.
template <class Load>
DVT_DEVICE float block_select(int64_t count, int64_t rank, const Load& load, SelectShared& shared) {
  const int lane = threadIdx.x % 32;
  uint32_t prefix = 0, mask = 0;
  if (threadIdx.x == 0) shared.rank = static_cast<uint32_t>(rank);
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = threadIdx.x; i < 256; i += blockDim.x) shared.counts[i] = 0;
    __syncthreads();
    for (int64_t first = 0; first < count; first += blockDim.x) {
      const int64_t i = first + threadIdx.x;
      const uint32_t bits = i < count ? ordered_bits(load(i)) : 0;
      const bool counts = i < count && (bits & mask) == prefix;
      // Most of the values share their upper bits: one addition for all equals of a warp.
      const uint32_t digit = counts ? (bits >> shift) & 255u : 256u;
      const uint32_t same = __match_any_sync(0xffffffffu, digit);
      if (counts && __ffs(static_cast<int>(same)) - 1 == lane)
        atomicAdd(&shared.counts[digit], static_cast<uint32_t>(__popc(same)));
    }
    __syncthreads();
    if (threadIdx.x < 32) {
      uint32_t mine = 0;
      for (int k = 0; k < 8; ++k) mine += shared.counts[lane * 8 + k];
      uint32_t upto = mine;
      for (int step = 1; step < 32; step *= 2) {
        const uint32_t left = __shfl_up_sync(0xffffffffu, upto, step);
        if (lane >= step) upto += left;
      }
      const uint32_t wanted = shared.rank;
      uint32_t before = upto - mine;
      __syncwarp();
      if (before <= wanted && wanted < upto) {
        int digit = lane * 8;
        while (before + shared.counts[digit] <= wanted) before += shared.counts[digit++];
        shared.prefix = prefix | static_cast<uint32_t>(digit) << shift;
        shared.rank = wanted - before;
      }
    }
    __syncthreads();
    prefix = shared.prefix;
    mask |= 255u << shift;
  }
  return from_ordered_bits(prefix);
}

}  // namespace dvt::cuda
