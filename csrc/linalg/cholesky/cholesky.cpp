#include "linalg/cholesky/cholesky.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/buffer.h"
#include "linalg/gemm/gemm.h"

namespace dvt {
namespace {

constexpr int64_t kBlock = 96;

// inverse [size, size] = L^-1 of the lower triangle at l, zeros above. With the inverse of each diagonal block, every
// triangular solve below is a matrix product.
void invert_lower(int64_t size, const float* l, int64_t lda, float* inverse) {
  std::memset(inverse, 0, sizeof(float) * static_cast<size_t>(size * size));
  for (int64_t i = 0; i < size; ++i) {
    double row[kBlock] = {};
    for (int64_t k = 0; k < i; ++k)
      for (int64_t j = 0; j <= k; ++j) row[j] -= static_cast<double>(l[i * lda + k]) * inverse[k * size + j];
    row[i] = 1.0;
    for (int64_t j = 0; j <= i; ++j) inverse[i * size + j] = static_cast<float>(row[j] / l[i * lda + i]);
  }
}

Status factor_block(int64_t size, float* a, int64_t lda, int64_t offset) {
  for (int64_t i = 0; i < size; ++i)
    for (int64_t j = 0; j <= i; ++j) {
      double value = a[i * lda + j];
      for (int64_t k = 0; k < j; ++k) value -= static_cast<double>(a[i * lda + k]) * a[j * lda + k];
      if (i == j) {
        if (!(value > 0)) return invalid_argument("matrix is not positive definite at row ", offset + i);
        a[i * lda + i] = static_cast<float>(std::sqrt(value));
      } else {
        a[i * lda + j] = static_cast<float>(value / a[j * lda + j]);
      }
    }
  return Status();
}

}  // namespace

Status cholesky_factor(int64_t n, float* a, int64_t lda) {
  Buffer<float> inverse(kBlock * kBlock), panel(n * kBlock);
  for (int64_t k = 0; k < n; k += kBlock) {
    const int64_t size = std::min(kBlock, n - k), below = n - k - size;
    float* diagonal = a + k * lda + k;
    DVT_RETURN_IF_ERROR(factor_block(size, diagonal, lda, k));
    if (below == 0) break;
    invert_lower(size, diagonal, lda, inverse.data());
    float* under = diagonal + size * lda;
    gemm(Transpose::no, Transpose::yes, {below, size, size}, 1.0f, under, lda, inverse.data(), size, 0.0f, panel.data(),
         size);
    for (int64_t i = 0; i < below; ++i)
      std::memcpy(under + i * lda, panel.data() + i * size, sizeof(float) * static_cast<size_t>(size));
    // The trailing lower triangle, in column strips that start at the diagonal.
    constexpr int64_t kStrip = 384;
    for (int64_t j = 0; j < below; j += kStrip)
      gemm(Transpose::no, Transpose::yes, {below - j, std::min(kStrip, below - j), size}, -1.0f,
           panel.data() + j * size, size, panel.data() + j * size, size, 1.0f, under + j * lda + size + j, lda);
  }
  return Status();
}

void cholesky_solve(int64_t n, const float* l, int64_t lda, int64_t columns, float* b, int64_t ldb) {
  Buffer<float> inverse(kBlock * kBlock), solved(kBlock * columns);
  const int64_t blocks = (n + kBlock - 1) / kBlock;
  for (const bool forward : {true, false})
    for (int64_t step = 0; step < blocks; ++step) {
      const int64_t k = (forward ? step : blocks - 1 - step) * kBlock, size = std::min(kBlock, n - k);
      invert_lower(size, l + k * lda + k, lda, inverse.data());
      gemm(forward ? Transpose::no : Transpose::yes, Transpose::no, {size, columns, size}, 1.0f, inverse.data(), size,
           b + k * ldb, ldb, 0.0f, solved.data(), columns);
      for (int64_t i = 0; i < size; ++i)
        std::memcpy(b + (k + i) * ldb, solved.data() + i * columns, sizeof(float) * static_cast<size_t>(columns));
      if (forward && k + size < n)
        gemm(Transpose::no, Transpose::no, {n - k - size, columns, size}, -1.0f, l + (k + size) * lda + k, lda,
             solved.data(), columns, 1.0f, b + (k + size) * ldb, ldb);
      if (!forward && k > 0)
        gemm(Transpose::yes, Transpose::no, {k, columns, size}, -1.0f, l + k * lda, lda, solved.data(), columns, 1.0f,
             b, ldb);
    }
}

}  // namespace dvt
