// The norms of layer_norm.h on the device: of rows of the residual stream for the product that follows, or of what a
// product wrote.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/status.h"
#include "core/tensor.h"
#include "engine/weights.h"

namespace dvt::cuda {

constexpr int64_t kMaxNormDim = 8192;

struct LayerNormCudaCall {
  NormWeights::Kind kind = NormWeights::Kind::layer;  // none copies
  float eps = 1e-6f;
  const float* weight = nullptr;  // [dim] or null
  const float* bias = nullptr;
  int64_t rows = 0, dim = 0;
  const void* x = nullptr;  // [rows, x_stride]
  Dtype x_type = Dtype::float32;
  int64_t x_stride = 0;            // in elements
  void* y = nullptr;               // [rows, y_stride]; may be x
  Dtype y_type = Dtype::bfloat16;  // any where x is float32, else that of x
  int64_t y_stride = 0;
  bool round_y = false;  // float32 y: rounded to tf32, for a product of that type
  bool overlap = false;  // may start before the kernel before it ends
  cudaStream_t stream = nullptr;
};

// On the current device. Allocates nothing, does not synchronise; same bits on every run. Rows that are aligned to 16
// bytes (8 where they are 16-bit) are read and written fastest.
Status layer_norm_forward(const LayerNormCudaCall& call);

}  // namespace dvt::cuda
