// Pixels to what a ViT wants, on a device: engine/pixels.h says what is computed, and the plan is the same.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "core/status.h"
#include "core/tensor.h"
#include "engine/pixels.h"

namespace dvt::cuda {

// Bytes of device memory, 16-byte aligned, for the filter tables of any source up to the plan's largest.
size_t pixels_tables_bytes(const PixelsPlan& plan);

// Makes the tables for sources of height x width pixels of `kind`, uint8 or float32. They stay good until they are
// filled again; work that is already on the stream still sees the old ones. Nothing is uploaded, so that this can be
// part of a graph.
Status pixels_fill_tables(const PixelsPlan& plan, int64_t height, int64_t width, Dtype kind, void* tables, bool overlap,
                          cudaStream_t stream);

// images: device memory, uint8 [B, H, W, 3] or [H, W, 3], or float32 [B, 3, H, W] or [3, H, W] in [0, 1], any strides.
// tables: filled for H, W and that dtype. out: [B, 3, height, width] of out_type (float32, float16 or bfloat16),
// contiguous. Of uint8 images, float32 results are those of `prepare_pixels` to the bit, and 16-bit ones these,
// rounded.
Status pixels_forward(const PixelsPlan& plan, const TensorView& images, void* tables, Dtype out_type, void* out,
                      bool overlap, cudaStream_t stream);

}  // namespace dvt::cuda
