// The loops of a resize: along rows and along columns, of uint8 pixels and of floats.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "engine/resize_axis.h"

namespace dvt {

// Two neighbours, each from 0 to 255, as the low and the high half of one element.
typedef uint32_t PixelPair;

struct PixelsKernels {
  int64_t rows;  // that the first two take at once, even

  // Pixels of `rows` rows, `pixel_bytes` (3 or 4) each, their channels first -> pairs [count / 2, channel, row].
  // count: a multiple of 4. Reads 16 bytes for every 4 pixels: up to 4 bytes after the last one.
  void (*pair_pixels)(const uint8_t* const* rows, int64_t pixel_bytes, int64_t count, PixelPair* pairs);
  // Target pixels [begin, end) of those rows, from pairs that start at pixel `start` of the axis. out: for each two
  // rows [channel, stride], pairs of what is in the one and the other.
  void (*resize_rows)(const PixelPair* pairs, int64_t start, const ResizeAxis& axis, int64_t begin, int64_t end,
                      PixelPair* const* out, int64_t stride);
  // Target row i of one channel, from taps[i] / 2 pairs of rows; whole vectors of them are read, `width` is any.
  // out = value * scale + shift, rounded after each of the two.
  void (*resize_columns)(const PixelPair* const* rows, const ResizeAxis& axis, int64_t i, int64_t width, float scale,
                         float shift, float* out);
  // Target row i of bytes, of whatever channels they are, from taps[i] rows of bytes.
  void (*mix_rows)(const uint8_t* const* rows, const ResizeAxis& axis, int64_t i, int64_t bytes, uint8_t* out);

  // The same for rows of floats: along the columns, then along the row, which is read up to kMaxLanes floats after its
  // last one: zeros.
  void (*mix_rows_float)(const float* const* rows, const ResizeAxis& axis, int64_t i, int64_t width, float* out);
  void (*resize_row_float)(const float* row, const ResizeAxis& axis, float scale, float shift, float* out);
};

DVT_DECLARE_KERNELS(PixelsKernels, pixels_kernels)

}  // namespace dvt
