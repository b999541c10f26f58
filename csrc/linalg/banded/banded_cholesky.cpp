#include "linalg/banded/banded_cholesky.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/flush_denormals.h"
#include "core/threads.h"

namespace dvt {

Status BandedCholesky::factor(int64_t n, int64_t band, const double* band_rows) {
  const FlushDenormals flush;
  n_ = n;
  band_ = band;
  const int64_t width = band + 1;
  double* exact = exact_.at_least(n * width);
  float* factor = factor_.at_least(n * width);
  float* transposed = transposed_.zeroed(n * width);
  for (int64_t i = 0; i < n; ++i) {
    double* row = exact + i * width;
    const double* given = band_rows + i * width;
    const int64_t first = std::max<int64_t>(0, i - band);  // first column of row i
    for (int64_t j = first; j < i; ++j) {
      // Both rows are contiguous in the column, so this is a dot product of what they share.
      const double* other = exact + j * width;
      const int64_t from = std::max(first, j - band);
      const double *x = row + (from - i + band), *y = other + (from - j + band);
      double dot[4] = {};
      int64_t k = 0;
      const int64_t length = j - from;
      for (; k + 4 <= length; k += 4)
        for (int l = 0; l < 4; ++l) dot[l] += x[k + l] * y[k + l];
      for (; k < length; ++k) dot[0] += x[k] * y[k];
      row[j - i + band] = (given[j - i + band] - (dot[0] + dot[1] + dot[2] + dot[3])) / other[band];
    }
    double pivot = given[band];
    for (int64_t j = first; j < i; ++j) pivot -= row[j - i + band] * row[j - i + band];
    if (!(pivot > 0)) return invalid_argument("band matrix is not positive definite at row ", i, " of ", n);
    row[band] = std::sqrt(pivot);
    for (int64_t k = 0; k < band; ++k) factor[i * width + k] = k < first - i + band ? 0.0f : static_cast<float>(row[k]);
    factor[i * width + band] = static_cast<float>(1.0 / row[band]);
    for (int64_t j = first; j < i; ++j) transposed[j * width + (i - j - 1)] = factor[i * width + j - i + band];
    transposed[i * width + band] = factor[i * width + band];
  }
  return Status();
}

void BandedCholesky::solve(bool forward, bool backward, int64_t columns, float* b, int64_t ldb) const {
  const BandedKernels& kernels = banded_kernels();
  const int64_t block = kernels.columns;
  parallel_for((columns + block - 1) / block, 1, [&](int64_t begin, int64_t end) {
    const FlushDenormals flush;
    // A block of columns is copied next to each other: its band stays in the first-level cache whatever ldb is.
    thread_local Buffer<float> buffer;
    float* x = buffer.at_least(n_ * block);
    for (int64_t k = begin; k < end; ++k) {
      const int64_t c0 = k * block, width = std::min(block, columns - c0);
      const size_t bytes = static_cast<size_t>(width) * sizeof(float);
      if (width < block) std::memset(x, 0, static_cast<size_t>(n_ * block) * sizeof(float));
      for (int64_t i = 0; i < n_; ++i) std::memcpy(x + i * block, b + i * ldb + c0, bytes);
      if (forward) kernels.forward(n_, band_, factor_.data(), x);
      if (backward) kernels.backward(n_, band_, transposed_.data(), x);
      for (int64_t i = 0; i < n_; ++i) std::memcpy(b + i * ldb + c0, x + i * block, bytes);
    }
  });
}

void BandedCholesky::solve_forward(int64_t columns, float* b, int64_t ldb) const {
  solve(true, false, columns, b, ldb);
}
void BandedCholesky::solve_backward(int64_t columns, float* b, int64_t ldb) const {
  solve(false, true, columns, b, ldb);
}

}  // namespace dvt
