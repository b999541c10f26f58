// The register tile that every product of a transformer runs on: up to kMr rows times kNr columns. For kernel sources.
//
// 12 x 2 vectors of sums where there are 32 registers (24 + 2 of the panel + 1 number of a row), 6 x 2 where there are
// 16. A step costs two loads and a broadcast a row for two fused multiply-adds a row, which keeps both multiply units
// busy from 4 rows on.
#pragma once

#include "core/simd.h"

namespace dvt {
namespace DVT_ISA {

constexpr int kMr = kRegisters == 32 ? 12 : 6;
constexpr int kNr = 2 * kLanes;

struct bfloat16 {
  uint16_t bits;
};

DVT_INLINE vfloat load_weights(const float* p) { return load(p); }
DVT_INLINE vfloat load_weights(const uint16_t* p) { return load(p); }  // float16
DVT_INLINE vfloat load_weights(const bfloat16* p) {
  typedef uint16_t vhalf __attribute__((vector_size(kLanes * 2)));
  typedef uint32_t vuint __attribute__((vector_size(kLanes * 4)));
  vhalf narrow;
  std::memcpy(&narrow, p, sizeof narrow);
  return reinterpret_cast<vfloat>(__builtin_convertvector(narrow, vuint) << 16);
}

// sums += x panel: `k` numbers of each row of x, rows `stride` apart, and a panel [k][kNr]. kAhead: how many steps
// ahead of its use to fetch the panel (and what lies behind it), 0 not at all.
template <int kRows, int kAhead = 0, class Weight>
DVT_INLINE void multiply(int64_t k, const float* x, int64_t stride, const Weight* panel, vfloat (&sums)[kRows][2]) {
  for (int64_t p = 0; p < k; ++p, panel += kNr) {
    if (kAhead > 0) {
#pragma GCC unroll 2
      for (int line = 0; line < kNr * static_cast<int>(sizeof(Weight)) / 64; ++line)
        __builtin_prefetch(reinterpret_cast<const char*>(panel + kAhead * kNr) + 64 * line);
    }
    const vfloat w0 = load_weights(panel), w1 = load_weights(panel + kLanes);
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      const vfloat xi = broadcast(x[i * stride + p]);
      sums[i][0] += xi * w0;
      sums[i][1] += xi * w1;
    }
  }
}

}  // namespace DVT_ISA
}  // namespace dvt
