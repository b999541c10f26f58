// C = alpha * op(A) op(B) + beta * C on the device, all matrices row-major: the product of gemm.h for whoever needs no
// epilogue of its own (gemm.cuh is for those).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/status.h"

namespace dvt::cuda {

// What A and B hold. tf32: float32 that is rounded to tf32; float32: three products of tf32 parts, which leave the
// error of float32 arithmetic.
enum class GemmType { float16, bfloat16, tf32, float32 };

// Which tiles C is cut into: the faster by count, or always the same ones (for tests).
enum class GemmTiles { automatic, large, middle, small };

struct GemmCall {
  GemmType type = GemmType::float32;
  bool transpose_a = false, transpose_b = false;  // op(A) is [m, k], op(B) is [k, n]; both transposed: not supported
  int64_t m = 0, n = 0, k = 0;
  const void* a = nullptr;
  const void* b = nullptr;
  int64_t lda = 0, ldb = 0;  // elements between rows as they are stored; times the size a multiple of 16 bytes
  float alpha = 1.0f, beta = 0.0f;
  void* c = nullptr;  // not read where beta is 0
  int64_t ldc = 0;
  bool narrow_c = false;                                     // C has the 16-bit type of A and B instead of float32
  int64_t batch = 1, batch_a = 0, batch_b = 0, batch_c = 0;  // elements from one product to the next
  // Then, in this order:
  const float* bias = nullptr;       // [n]: c += bias[j]
  bool relu = false;                 // c = max(c, 0)
  const float* relu_mask = nullptr;  // like C, [m, n] of rows `mask_stride`: c = relu_mask > 0 ? c : 0
  int64_t mask_stride = 0;
  // With at least gemm_workspace(...) floats here K may be split; null: it is not.
  float* workspace = nullptr;
  int64_t workspace_floats = 0;
  GemmTiles tiles = GemmTiles::automatic;
  bool overlap = false;
  cudaStream_t stream = nullptr;
};

// On the current device. Allocates nothing, does not synchronise; same bits on every run.
Status gemm_forward(const GemmCall& call);

// Floats of workspace that this call makes use of; 0 where K is better not split.
Status gemm_workspace(const GemmCall& call, int64_t* floats);

}  // namespace dvt::cuda
