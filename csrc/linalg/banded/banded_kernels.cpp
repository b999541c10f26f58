// Band triangular solves on a block of columns wide enough to keep the multiply-adders busy: one row's sums stay in
// registers while the earlier rows of the band stream from the first-level cache.
#include "core/simd.h"
#include "linalg/banded/banded_cholesky.h"

namespace dvt {
namespace DVT_ISA {
namespace {

constexpr int kVectors = 4;
constexpr int kColumns = kVectors * kLanes;

// x[i] = (x[i] - sum_k coefficients[k] * others[k]) * inverse_pivot, for `count` consecutive rows `others`.
DVT_INLINE void eliminate(float* xi, const float* others, const float* coefficients, int64_t count, float inverse) {
  // Two sets of sums, for even and odd k: one alone would wait for the latency of each multiply-add.
  vfloat even[kVectors], odd[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    even[v] = load(xi + v * kLanes);
    odd[v] = vfloat{};
  }
  int64_t k = 0;
  for (; k + 2 <= count; k += 2, others += 2 * kColumns) {
    const vfloat c0 = broadcast(coefficients[k]), c1 = broadcast(coefficients[k + 1]);
    for (int v = 0; v < kVectors; ++v) {
      even[v] -= c0 * load(others + v * kLanes);
      odd[v] -= c1 * load(others + kColumns + v * kLanes);
    }
  }
  if (k < count)
    for (int v = 0; v < kVectors; ++v) even[v] -= broadcast(coefficients[k]) * load(others + v * kLanes);
  for (int v = 0; v < kVectors; ++v) store(xi + v * kLanes, (even[v] + odd[v]) * inverse);
}

void forward(int64_t n, int64_t band, const float* factor, float* x) {
  for (int64_t i = 0; i < n; ++i) {
    const float* row = factor + i * (band + 1);
    const int64_t count = i < band ? i : band;
    eliminate(x + i * kColumns, x + (i - count) * kColumns, row + (band - count), count, row[band]);
  }
}

void backward(int64_t n, int64_t band, const float* transposed, float* x) {
  for (int64_t i = n - 1; i >= 0; --i) {
    const float* column = transposed + i * (band + 1);
    const int64_t count = n - 1 - i < band ? n - 1 - i : band;
    eliminate(x + i * kColumns, x + (i + 1) * kColumns, column, count, column[band]);
  }
}

}  // namespace

const BandedKernels banded_kernels = {kColumns, forward, backward};

}  // namespace DVT_ISA
}  // namespace dvt
