// The filters of a resize, made on the device: a table of weights for every axis and view.
//
// The weights are made by the operations of Pillow's C code in double, in its order and each rounded by itself, so that
// they are Pillow's to the last bit. Nothing is uploaded but the kernel's parameters: other sizes need no
// synchronisation, and a graph may have this in it.
//
// Operations: about 20 in double a weight, found twice, and a division; a thread makes the weights of one target pixel.
#include <algorithm>
#include <cmath>

#include "cuda/numeric.cuh"
#include "cuda/ptx.cuh"
#include "cuda/runtime.h"
#include "engine/resize_axis.h"
#include "engine/resize_cuda.h"

namespace dvt::cuda {
namespace {

constexpr int kTableThreads = 64;

// Double arithmetic without fused multiply-adds: Pillow's code rounds after every operation.
DVT_DEVICE double plus(double a, double b) { return __dadd_rn(a, b); }
DVT_DEVICE double minus(double a, double b) { return __dadd_rn(a, -b); }
DVT_DEVICE double times(double a, double b) { return __dmul_rn(a, b); }

// The cubic convolution kernel of Keys with a = -1/2.
DVT_DEVICE double bicubic(double x) {
  x = x < 0 ? -x : x;
  if (x < 1) return plus(times(times(minus(times(1.5, x), 2.5), x), x), 1);
  if (x < 2) return times(minus(times(plus(times(minus(x, 5), x), 8), x), 4), -0.5);
  return 0;
}

DVT_DEVICE int32_t weight_bits(double weight, bool fixed) {
  if (!fixed) return __float_as_int(static_cast<float>(weight));
  return static_cast<int32_t>(plus(times(weight, 1 << kFractionBits), weight < 0 ? -0.5 : 0.5));
}

// A thread a target pixel, of axis blockIdx.y and view blockIdx.z. Weights are found twice, first for their sum: that
// is cheaper than a place for them. Those that are 0 at the ends are left out, all but one where nothing is resized: so
// a value that is not finite stays where it was.
__global__ void resize_tables_kernel(ResizeTables tables, ResizeSpans spans, bool fixed) {
  const bool along_x = blockIdx.y == 0;
  const ResizeTable table = along_x ? tables.x : tables.y;
  const int view = static_cast<int>(blockIdx.z);
  const int i = static_cast<int>(blockIdx.x) * kTableThreads + static_cast<int>(threadIdx.x);
  ptx::allow_next();
  ptx::wait_for_previous();
  if (i >= table.target) return;
  const ResizeSpan span = along_x ? spans.x[view] : spans.y[view];
  const double stretch = span.step > 1 ? span.step : 1.0;
  const double inverse = __ddiv_rn(1.0, stretch), support = times(2, stretch);
  const double center = plus(span.begin, times(plus(i, 0.5), span.step));
  const int begin = max(static_cast<int>(plus(minus(center, support), 0.5)), 0);
  const int end = min(static_cast<int>(plus(plus(center, support), 0.5)), table.source);
  const auto weight_at = [&](int x) { return bicubic(times(plus(minus(x, center), 0.5), inverse)); };

  double total = 0;
  for (int x = begin; x < end; ++x) total = plus(total, weight_at(x));
  int32_t* weights = table.weights + static_cast<int64_t>(view) * table.capacity * table.target + i;
  int first = begin, taps = 0, used = 0;
  for (int x = begin; x < end && taps < table.capacity; ++x) {
    const double weight = __ddiv_rn(weight_at(x), total);
    const int32_t bits = weight_bits(weight, fixed);
    const bool zero = fixed ? bits == 0 : weight == 0;
    if (zero && taps == 0) continue;
    if (taps == 0) first = x;
    weights[static_cast<int64_t>(taps++) * table.target] = bits;
    if (!zero) used = taps;
  }
  table.first[static_cast<int64_t>(view) * table.target + i] = first;
  table.taps[static_cast<int64_t>(view) * table.target + i] = used;
}

struct TablesLayout {
  size_t first[2], taps[2], weights[2], bytes;
  TablesLayout(int64_t views, const int64_t (&target)[2], const int64_t (&capacity)[2]) {
    Layout layout;
    for (int axis = 0; axis < 2; ++axis) {
      first[axis] = layout.add<int32_t>(views * target[axis]);
      taps[axis] = layout.add<int32_t>(views * target[axis]);
      weights[axis] = layout.add<int32_t>(views * target[axis] * capacity[axis]);
    }
    bytes = layout.bytes();
  }
};

}  // namespace

int64_t resize_taps(double step, int64_t source) {
  const double window = std::ceil(2 * std::max(step, 1.0)) * 2 + 1;
  return std::min(static_cast<int64_t>(std::min(window, 0x1p31)), source);
}

size_t resize_tables_bytes(int64_t views, int64_t height, int64_t width, int64_t capacity_y, int64_t capacity_x) {
  return TablesLayout(views, {width, height}, {capacity_x, capacity_y}).bytes;
}

ResizeTables resize_tables(void* memory, int64_t views, int64_t height, int64_t width, int64_t capacity_y,
                           int64_t capacity_x) {
  const TablesLayout layout(views, {width, height}, {capacity_x, capacity_y});
  const auto at = [&](size_t offset) { return reinterpret_cast<int32_t*>(static_cast<char*>(memory) + offset); };
  const auto table = [&](int axis, int64_t target, int64_t capacity) {
    return ResizeTable{at(layout.first[axis]),       at(layout.taps[axis]),         at(layout.weights[axis]), 0,
                       static_cast<int32_t>(target), static_cast<int32_t>(capacity)};
  };
  return {table(0, width, capacity_x), table(1, height, capacity_y)};
}

Status resize_fill_tables(const ResizeTables& tables, const ResizeSpans& spans, int64_t views, Dtype kind, bool overlap,
                          cudaStream_t stream) {
  Launch how;
  how.grid = dim3(static_cast<unsigned>(ceil_div(std::max(tables.x.target, tables.y.target), kTableThreads)), 2,
                  static_cast<unsigned>(views));
  how.block = dim3(kTableThreads);
  how.stream = stream;
  how.overlap = overlap;
  return launch("making the filters of pixels", resize_tables_kernel, how, tables, spans, kind == Dtype::uint8);
}

}  // namespace dvt::cuda
