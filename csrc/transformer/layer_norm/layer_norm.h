// y = (x - mean) / sqrt(variance + eps), or x / sqrt(mean square + eps), over the channels of each row; then the weight
// and bias where they are not packed into the product that follows.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "engine/weights.h"

namespace dvt {

struct NormCall {
  NormWeights::Kind kind = NormWeights::Kind::layer;  // none copies
  float eps = 1e-6f;
  const float* weight = nullptr;  // [dim] or null
  const float* bias = nullptr;
  int64_t rows = 0, dim = 0;
  const float* x = nullptr;
  int64_t x_stride = 0;
  float* y = nullptr;  // may be x
  int64_t y_stride = 0;
};

void layer_norm(const NormCall& call);
void layer_norm_reference(const NormCall& call);

struct LayerNormKernels {
  const char* isa;
  void (*run)(const NormCall& call);
};
DVT_DECLARE_KERNELS(LayerNormKernels, layer_norm_kernels)

}  // namespace dvt
