// softmax(q k^T) v on the device: queries, keys and values are read from where their product left them, side by side in
// the rows of one matrix, and the result is written as the rows that the projection takes.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/status.h"

namespace dvt::cuda {

// How qkv and the result are stored. Both float32 ones run on tf32 products: `tf32` on one for each, `float32` on
// three, which leave the error of float32 arithmetic. What `tf32` writes is rounded to it, for a product of that type.
enum class AttentionType { float16, bfloat16, tf32, float32 };

constexpr int64_t kMaxHeadDim = 128;  // and a multiple of 16, from 32 on: other heads are padded with zero channels

struct AttentionCudaCall {
  AttentionType type = AttentionType::bfloat16;
  int64_t batch = 1, tokens = 0, heads = 0, head_dim = 0;
  // [batch * tokens, qkv_stride]: inner = heads * head_dim columns of queries, that carry log2(e) / sqrt(head_dim)
  // already, then as many of keys, then of values. Rows are aligned to 16 bytes.
  const void* qkv = nullptr;
  int64_t qkv_stride = 0;  // in elements
  void* out = nullptr;     // [batch * tokens, out_stride], of the same type
  int64_t out_stride = 0;
  bool overlap = false;  // may start before the kernel before it ends
  cudaStream_t stream = nullptr;
};

// Any number of tokens, from 1 on. Allocates nothing and does not synchronise. Deterministic.
Status attention_forward(const AttentionCudaCall& call);

}  // namespace dvt::cuda
