// Pillow's bicubic resize on a device, for whoever prepares pixels there: sessions (pixels.cu) and the views of stage 1
// (field/views/views.cu). Two kernels: one makes the filter tables of a call's views, one resizes all of them and
// normalises.
//
// A view is a part of an image, of any place and size, along two axes; every view of a call has the image's size as its
// source and the same target.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "core/status.h"
#include "core/tensor.h"

namespace dvt::cuda {

constexpr int kMaxResizeViews = 64;  // a call: what their places and sizes need fits the parameters of a kernel

// A view along one axis: the centre of target pixel i is source pixel begin + (i + 1/2) * step.
struct ResizeSpan {
  double begin, step;
};
struct ResizeSpans {
  ResizeSpan x[kMaxResizeViews], y[kMaxResizeViews];
};

// The filters of one axis, in device memory. Target pixel i is the sum of `taps` source pixels from `first` on.
struct ResizeTable {
  int32_t* first;    // [views, target]
  int32_t* taps;     // [views, target]
  int32_t* weights;  // [views, capacity, target]: with 22 fractional bits, or the bits of a float
  int32_t source, target, capacity;
};
struct ResizeTables {
  ResizeTable x, y;
};

// How many source pixels a target pixel can see where `step` of them make one: no more than the source has.
int64_t resize_taps(double step, int64_t source);
// The bytes of two tables, and where they lie in memory that is aligned to 16 bytes. capacity_x, capacity_y: of taps.
size_t resize_tables_bytes(int64_t views, int64_t height, int64_t width, int64_t capacity_y, int64_t capacity_x);
ResizeTables resize_tables(void* memory, int64_t views, int64_t height, int64_t width, int64_t capacity_y,
                           int64_t capacity_x);

// Fills the tables, whose source, target and capacity are set. kind: of the source, uint8 or float32.
Status resize_fill_tables(const ResizeTables& tables, const ResizeSpans& spans, int64_t views, Dtype kind, bool overlap,
                          cudaStream_t stream);

struct ResizeCall {
  ResizeTables tables;
  bool table_each;     // a table for each view; or all are resized by the first one
  bool columns_first;  // which axis is resized first; between the two there are 8 bits where the source is uint8
  uint64_t mirrored;   // bit i: view i is turned left to right; for at most 64 views
  int64_t views;
  // uint8 or float32; byte strides of view, row, column and channel, any sign.
  Dtype kind;
  const void* source;
  int64_t strides[4];
  // [views, 3, height, width] of float32, float16 or bfloat16: pixel * scale rounded, then + shift rounded.
  Dtype out_type;
  void* out;
  float scale[3], shift[3];
  bool overlap;
  cudaStream_t stream;
};
Status resize_forward(const ResizeCall& call);

}  // namespace dvt::cuda
