// Norms within a block that some ViTs have: of queries and keys, with their rotary positions, and of rows between two
// products. Both work in place, on what a product wrote.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/status.h"
#include "engine/cuda/engine_backend.h"
#include "engine/cuda/tokens_cuda.h"

namespace dvt::cuda {

struct QueriesKeysCall {
  EngineCompute type = EngineCompute::bfloat16;
  int64_t batch = 1, tokens = 0, heads = 0;
  int64_t head_dim = 0, padded_dim = 0;  // channels of a head, and with the zeros after them
  void* qkv = nullptr;                   // [batch * tokens, stride]: heads * padded_dim queries, then keys
  int64_t stride = 0;
  RowNorm q_norm, k_norm;  // over a head's channels
  // cos and sin, [patches, head_dim / 2] each, or null; of the tokens first_patch, first_patch + 1, ...
  const float *cos = nullptr, *sin = nullptr;
  bool neighbours = false;  // pairs are channels 2 j and 2 j + 1, or j and j + head_dim / 2
  int64_t first_patch = 0, patches = 0;
  bool overlap = false;
  cudaStream_t stream = nullptr;
};
Status queries_keys_forward(const QueriesKeysCall& call);

struct InnerNormCall {
  EngineCompute type = EngineCompute::bfloat16;
  int64_t rows = 0;
  int64_t groups = 1, group = 0, group_stride = 0;  // a row is groups * group values, the rest of a stride is zeros
  void* x = nullptr;                                // [rows, stride]
  int64_t stride = 0;
  RowNorm norm;  // without weight and bias: these are in the product that follows
  bool overlap = false;
  cudaStream_t stream = nullptr;
};
Status inner_norm_forward(const InnerNormCall& call);

}  // namespace dvt::cuda
