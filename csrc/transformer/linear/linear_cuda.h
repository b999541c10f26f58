// y = activation(x W^T + b), or y = residual + x W^T + b, on the device: every product of a transformer.
//
// Weights are rows of output channels, as torch.nn.Linear keeps them, in the type of x. Where the MLP is gated,
// y = activation(gate) * value, rows of gate and value alternate, so that both are in the same tile and the same lane.
// What stands before or after a product and is linear is packed into it on the CPU, as linear.h says.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/status.h"
#include "core/tensor.h"
#include "linalg/gemm/gemm_cuda.h"
#include "transformer/activation/activation.h"

namespace dvt::cuda {

// What x and the weights hold. tf32: float32 numbers that are rounded to tf32 already (cuda/numeric.cuh); what such a
// product writes for the next one is rounded too. float32: three products of tf32 parts, which leave the error of
// float32 arithmetic.
enum class LinearType { float16, bfloat16, tf32, float32 };

constexpr int64_t size_of(LinearType type) {
  return type == LinearType::float16 || type == LinearType::bfloat16 ? 2 : 4;
}
constexpr Dtype storage_of(LinearType type) {
  return type == LinearType::float16 ? Dtype::float16 : type == LinearType::bfloat16 ? Dtype::bfloat16 : Dtype::float32;
}

struct LinearCudaCall {
  LinearType type = LinearType::bfloat16;
  int64_t rows = 0, in = 0, out = 0;  // of x, and of y
  const void* x = nullptr;            // [rows, x_stride], rows of whole 16 bytes; what lies beyond `in` may be anything
  int64_t x_stride = 0;
  const void* weight = nullptr;  // [out, weight_stride], or gated [2 * out, weight_stride]: gate 0, value 0, gate 1 ...
  int64_t weight_stride = 0;     // rows of whole 16 bytes
  const float* bias = nullptr;   // as many as the weight has rows, or null
  bool activate = false, gated = false;
  Activation activation = Activation::gelu;
  const float* residual = nullptr;  // [rows, residual_stride], added last; may be y. Only where not activated
  int64_t residual_stride = 0;
  void* y = nullptr;  // [rows, y_stride]
  int64_t y_stride = 0;
  Dtype y_type = Dtype::float32;           // any floating type where not activated, else that of x
  bool round_y = false;                    // float32 y: rounded to tf32, for a product of that type
  uint32_t* not_finite = nullptr;          // |= 1 where a number of y is NaN or infinite; only where not activated
  GemmTiles tiles = GemmTiles::automatic;  // of the portable kernels
  bool overlap = false;                    // may start before the kernel before it ends; weights are read before that
  cudaStream_t stream = nullptr;
};

// On the current device. Allocates nothing, does not synchronise; same bits on every run.
Status linear_forward(const LinearCudaCall& call);

// Rows of a packed weight and elements from one to the next.
constexpr int64_t linear_weight_rows(int64_t out, bool gated) { return gated ? 2 * out : out; }
constexpr int64_t linear_weight_stride(LinearType type, int64_t in) {
  const int64_t piece = 16 / size_of(type);
  return (in + piece - 1) / piece * piece;
}
// Packs `weight` [rows, in] of float32 (gated: all gates, then all values) to `packed` [rows, weight_stride] in main
// memory, zeros beyond `in`; and likewise a bias.
void pack_linear_weight(LinearType type, int64_t rows, int64_t in, bool gated, const float* weight, void* packed);
void pack_linear_bias(int64_t rows, bool gated, const float* bias, float* packed);

}  // namespace dvt::cuda
