// What stands between the products of a transformer, a row at a time and in one kernel: rows are read from a tensor of
// the caller or from the residual stream, normalised, written to a tensor of the caller, moved by their position
// embedding, normalised again, kept as the residual stream, and normalised for the product that follows. Each step is
// left out where it is not asked for.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/status.h"
#include "core/tensor.h"
#include "engine/cuda/engine_backend.h"

namespace dvt::cuda {

// (x - mean) / sqrt(variance + eps) or x / sqrt(mean square + eps), then the weight and the bias where there are any.
struct RowNorm {
  enum Kind : int32_t { kNone = 0, kLayer, kRms };
  Kind kind = kNone;
  float eps = 1e-6f;
  const float* weight = nullptr;  // [dim], zeros up to a multiple of 4; or null
  const float* bias = nullptr;
};

// Rows of patches somewhere in memory: [image, y, x, channel] with any strides, in elements.
struct PatchRows {
  void* data = nullptr;  // null: there are none
  Dtype dtype = Dtype::float32;
  int64_t image = 0, y = 0, x = 0, channel = 1;
};

struct TokensCall {
  int64_t batch = 1, tokens = 0, dim = 0;
  int64_t first_patch = 0, patches = 0, grid_width = 1;  // the tokens that are patches

  PatchRows source;                  // of the patches
  const float* extra = nullptr;      // [tokens - patches, row_floats(dim)], of the others
  RowNorm first;                     // of the patches
  PatchRows outputs[2];              // then written here
  const float* positions = nullptr;  // then moved: [patches, row_floats(dim)], or null
  RowNorm second;                    // of all tokens
  float* x = nullptr;                // then kept here: [batch * tokens, x_stride], or null
  int64_t x_stride = 0;              // a multiple of 4
  RowNorm third;                     // of all tokens
  void* normed = nullptr;            // then written here: [batch * tokens, normed_stride], zeros after dim; or null
  EngineCompute type = EngineCompute::bfloat16;  // of normed; tf32: float32 rounded to it
  int64_t normed_stride = 0;                     // a multiple of 8

  uint32_t* clear = nullptr;       // set to 0
  uint32_t* non_finite = nullptr;  // not 0 after an output holds NaN or infinity
  bool overlap = false;
  cudaStream_t stream = nullptr;
};

// Floats from row to row of vectors that kernels read four at a time.
constexpr int64_t row_floats(int64_t dim) { return (dim + 3) / 4 * 4; }
constexpr int64_t kMaxRow = 12000;  // of `dim`: a row is kept in 48 KB

Status tokens_forward(const TokensCall& call);

}  // namespace dvt::cuda
