// Pixels to what a ViT wants: resized as Pillow does it, scaled and shifted.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/status.h"
#include "core/tensor.h"

namespace dvt {

// Everything is laid out when the target is known; a source of another size only refills the filter tables, in place.
struct PixelsPlan {
  int64_t height, width;  // of the target
  int64_t max_source_height, max_source_width;
  float scale[3], shift[3];  // normalised = pixel (0..255) * scale + shift, a channel
};

constexpr int64_t kMaxPixelsSide = 1 << 16;  // of source and target

// Refuses sizes that are not from 1 to kMaxPixelsSide, and scales and shifts that are not finite.
Status check_pixels_plan(const PixelsPlan& plan);

// Whether Pillow resizes uint8 pixels along columns first, as it does since version 13: where the height shrinks by
// more than twice as many pixels as the width. Older versions never do.
inline bool pixels_columns_first(const PixelsPlan& plan, int64_t height, int64_t width) {
  return height > plan.height && height - plan.height > 2 * (width - plan.width);
}

// Bytes of scratch, 64-byte aligned, for `prepare_pixels`. Its contents are undefined before and after a call.
size_t pixels_scratch_bytes(const PixelsPlan& plan);

// One image: uint8 [H, W, 3] or float32 [3, H, W] in [0, 1] with any strides -> float32 [3, height, width], contiguous.
// uint8 pixels are resized with Pillow's own fixed-point arithmetic (bicubic, antialias), to the bit; float ones with
// the same filter in float32, and not clamped. Then the product with `scale` is rounded and `shift` added, so that
// uint8 pixels give the bits of ViT.to_input. Allocates nothing where it succeeds, does not throw.
// plan: one that `check_pixels_plan` accepts. Errors: invalid_argument.
Status prepare_pixels(const PixelsPlan& plan, const TensorView& image, void* scratch, float* out) noexcept;

}  // namespace dvt
