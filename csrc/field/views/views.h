// Views of one image as a ViT takes them: crops of any place and size, mirrored or not, resized as Pillow's
// `resize(size, BICUBIC, box=...)` does it, and normalised. On a device only; on the CPU that is Pillow itself.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/status.h"
#include "core/tensor.h"

namespace dvt {

struct ViewsRequest {
  TensorView image;                    // device memory, uint8 [H, W, 3], any strides
  int64_t views = 0;                   // any number
  const double* boxes = nullptr;       // main memory, [views, 4]: left, top, right, bottom, in pixels of the image
  const uint8_t* mirrored = nullptr;   // main memory, [views]: 1 turns the view left to right; null: none
  bool columns_first = true;           // Pillow 13's order of the two passes, and not the older one
  int64_t height = 0, width = 0;       // of a view
  float scale[3] = {}, shift[3] = {};  // normalised = pixel (0..255) * scale + shift, a channel
  Dtype type = Dtype::float32;         // or float16, bfloat16
  void* out = nullptr;                 // device memory, [views, 3, height, width]
  void* workspace = nullptr;           // device memory, aligned to 16 bytes
  size_t workspace_bytes = 0;
  void* stream = nullptr;
};

}  // namespace dvt
