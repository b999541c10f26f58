// Dense Cholesky factorisation A = L L^T in float32 and solves with many right-hand sides, blocked so that nearly all
// of the work is matrix products.
#pragma once

#include <cstdint>

#include "core/status.h"

namespace dvt {

// a [n, n], rows lda apart: the lower triangle is replaced by L; the upper one is not read. An error if a pivot is
// not positive.
Status cholesky_factor(int64_t n, float* a, int64_t lda);

// b [n, columns], rows ldb apart, is replaced by (L L^T)^-1 b.
void cholesky_solve(int64_t n, const float* l, int64_t lda, int64_t columns, float* b, int64_t ldb);

}  // namespace dvt
