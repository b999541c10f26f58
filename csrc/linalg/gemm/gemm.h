// C = alpha * op(A) op(B) + beta * C in float32, all matrices row-major.
//
// The product is cut into KC-deep slices; a slice of B is packed once into panels of `nr` columns, blocks of A into
// panels of `mr` rows, and a register-resident mr x nr tile runs down the slice (Goto and van de Geijn, "Anatomy of
// High-Performance Matrix Multiplication", 2008). Threads share the packed B and take blocks of rows. Subnormal numbers
// count as zero.
#pragma once

#include <cstdint>

#include "core/isa.h"

namespace dvt {

enum class Transpose { no, yes };

struct GemmShape {
  int64_t m, n, k;  // C is [m, n]; op(A) is [m, k]; op(B) is [k, n]
};

// What happens to a finished element c of row i, column j, in this order.
struct GemmEpilogue {
  const float* bias = nullptr;       // [n]: c += bias[j]
  bool relu = false;                 // c = max(c, 0)
  const float* relu_mask = nullptr;  // [m, n], rows `relu_mask_stride` apart: c = relu_mask > 0 ? c : 0
  int64_t relu_mask_stride = 0;
};

// lda, ldb, ldc: elements between rows of A, B, C as they are stored (before op).
void gemm(Transpose trans_a, Transpose trans_b, GemmShape shape, float alpha, const float* a, int64_t lda,
          const float* b, int64_t ldb, float beta, float* c, int64_t ldc, const GemmEpilogue& epilogue = {});

// The same in plain loops with double accumulation, for tests.
void gemm_reference(Transpose trans_a, Transpose trans_b, GemmShape shape, float alpha, const float* a, int64_t lda,
                    const float* b, int64_t ldb, float beta, float* c, int64_t ldc, const GemmEpilogue& epilogue = {});

struct GemmKernels {
  const char* isa;  // what these were compiled for, so that a test can see which ones run
  int mr, nr;
  // Packs a [rows, k] block, rows padded with zeros to a multiple of mr: panel p holds [k][mr].
  void (*pack_a)(Transpose trans, int64_t rows, int64_t k, const float* a, int64_t lda, float* packed);
  // Packs a [k, columns] block, columns padded with zeros to a multiple of nr: panel p holds [k][nr].
  void (*pack_b)(Transpose trans, int64_t k, int64_t columns, const float* b, int64_t ldb, float* packed);
  // C block [rows, columns] = alpha * packed A * packed B + beta * C; the epilogue is applied when not null and its
  // pointers are those of this block.
  void (*block)(int64_t rows, int64_t columns, int64_t k, float alpha, const float* packed_a, const float* packed_b,
                float beta, float* c, int64_t ldc, const GemmEpilogue* epilogue);
};
DVT_DECLARE_KERNELS(GemmKernels, gemm_kernels)

}  // namespace dvt
