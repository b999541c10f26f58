// mma.sync and ldmatrix of a whole warp.
#pragma once

#include "emulator/execution.h"

namespace emulator {

// A lane's fragments; the result replaces c.
struct MatrixProduct {
  float* c;
  const uint32_t* a;
  const uint32_t* b;
};
void compute_mma_bf16(void* const* arguments, uint32_t lanes);
void compute_mma_f16(void* const* arguments, uint32_t lanes);
void compute_mma_tf32(void* const* arguments, uint32_t lanes);

struct MatrixLoad {
  uint32_t* out;
  const void* row;
};
void load_matrices(int count, bool transposed, void* const* arguments, uint32_t lanes);
template <int count, bool transposed>
void compute_ldmatrix(void* const* arguments, uint32_t lanes) {
  load_matrices(count, transposed, arguments, lanes);
}

}  // namespace emulator
