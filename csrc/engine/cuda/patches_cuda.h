// The pixels of every patch as a row, for the product that embeds patches: patches may overlap and images have any
// strides.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/status.h"
#include "core/tensor.h"
#include "engine/cuda/engine_backend.h"

namespace dvt::cuda {

struct PatchesCall {
  int64_t batch = 1, grid_height = 0, grid_width = 0;
  int64_t patch_height = 0, patch_width = 0, stride_height = 0, stride_width = 0;
  // [batch, 3, height, width] with any strides in elements: image, channel, y, x.
  const void* pixels = nullptr;
  Dtype dtype = Dtype::float32;
  int64_t strides[4] = {0, 0, 0, 0};
  // [batch * grid_height * grid_width, out_stride]: 3 * patch_height * patch_width values, ordered (channel, y, x),
  // then zeros. tf32: float32 rounded to it.
  EngineCompute type = EngineCompute::bfloat16;
  void* out = nullptr;
  int64_t out_stride = 0;
  bool overlap = false;
  cudaStream_t stream = nullptr;
};

Status patches_forward(const PatchesCall& call);

}  // namespace dvt::cuda
