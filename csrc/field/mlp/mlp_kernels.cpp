// Sums over the rows of a matrix, one instruction set a compilation.
#include "core/simd.h"
#include "field/mlp/mlp.h"

namespace dvt {
namespace DVT_ISA {
namespace {

constexpr int kVectors = 4;

void column_sums(const float* x, int64_t rows, int64_t columns, int64_t stride, float* sums) {
  int64_t j = 0;
  for (; j + kVectors * kLanes <= columns; j += kVectors * kLanes) {
    vfloat acc[kVectors] = {};
    for (int64_t i = 0; i < rows; ++i)
      for (int v = 0; v < kVectors; ++v) acc[v] += load(x + i * stride + j + v * kLanes);
    for (int v = 0; v < kVectors; ++v) store(sums + j + v * kLanes, acc[v]);
  }
  for (; j < columns; j += kLanes) {
    const int lanes = columns - j < kLanes ? static_cast<int>(columns - j) : kLanes;
    vfloat acc = {};
    for (int64_t i = 0; i < rows; ++i) acc += load_partial(x + i * stride + j, lanes);
    store_partial(sums + j, acc, lanes);
  }
}

}  // namespace

const MlpKernels mlp_kernels = {kVectors * kLanes, column_sums};

}  // namespace DVT_ISA
}  // namespace dvt
