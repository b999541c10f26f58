// Cholesky factorisation of a symmetric positive definite band matrix, and solves with many right-hand sides.
//
// A grid of ny x nx nodes whose neighbours couple (a 9-point stencil) is a band matrix of half-width nx + 1. With no
// fill outside the band, the factor costs n * band^2 and a solve 4 * n * band a column: for 74 x 74 nodes 30 MFLOP
// and 1.3 GFLOP for 768 columns, less than two sweeps of an iterative method over a few hundred views.
#pragma once

#include <cstdint>

#include "core/buffer.h"
#include "core/isa.h"
#include "core/status.h"

namespace dvt {

// The matrix is given by rows of its lower triangle: band_rows[i * (band + 1) + k] = A[i, i - band + k], k = 0..band;
// entries left of column 0 are ignored.
class BandedCholesky {
 public:
  // Factors in double and keeps the factor in float32. An error if a pivot is not positive.
  Status factor(int64_t n, int64_t band, const double* band_rows);

  // b [n, columns], rows ldb apart, is replaced by L^-1 b (forward) or L^-T b (backward).
  void solve_forward(int64_t columns, float* b, int64_t ldb) const;
  void solve_backward(int64_t columns, float* b, int64_t ldb) const;

 private:
  void solve(bool forward, bool backward, int64_t columns, float* b, int64_t ldb) const;

  int64_t n_ = 0, band_ = 0;
  Buffer<double> exact_;      // [n, band + 1], the factor while it is computed
  Buffer<float> factor_;      // [n, band + 1], off-diagonal entries of L; the last of a row holds 1 / L[i, i]
  Buffer<float> transposed_;  // [n, band + 1], column i of L: [k] = L[i + 1 + k, i], the last 1 / L[i, i]
};

struct BandedKernels {
  int columns;  // how many right-hand sides one call takes
  // x [n, columns] contiguous, solved in place; factor and transposed as above.
  void (*forward)(int64_t n, int64_t band, const float* factor, float* x);
  void (*backward)(int64_t n, int64_t band, const float* transposed, float* x);
};
DVT_DECLARE_KERNELS(BandedKernels, banded_kernels)

}  // namespace dvt
