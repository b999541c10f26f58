// Packing and the register tile of the matrix product, one instruction set a compilation.
//
// The tile is mr rows by two vectors: 12 x 2 accumulators where there are 32 registers (24 + 2 of B + 1 broadcast of
// A), 6 x 2 where there are 16. Each step of k costs mr broadcasts and 2 loads for 2 mr fused multiply-adds.
#include "core/simd.h"
#include "linalg/gemm/gemm.h"

namespace dvt {
namespace DVT_ISA {
namespace {

constexpr int kMr = kRegisters == 32 ? 12 : 6;
constexpr int kNrVectors = 2;
constexpr int kNr = kNrVectors * kLanes;

void pack_a(Transpose trans, int64_t rows, int64_t k, const float* a, int64_t lda, float* packed) {
  for (int64_t i0 = 0; i0 < rows; i0 += kMr, packed += k * kMr) {
    const int height = rows - i0 < kMr ? static_cast<int>(rows - i0) : kMr;
    if (trans == Transpose::yes) {
      for (int64_t p = 0; p < k; ++p) {
        const float* from = a + p * lda + i0;
        int r = 0;
        for (; r < height; ++r) packed[p * kMr + r] = from[r];
        for (; r < kMr; ++r) packed[p * kMr + r] = 0.0f;
      }
      continue;
    }
    // Blocks of 16 columns keep the reads of every row within one cache line at a time.
    for (int64_t p0 = 0; p0 < k; p0 += 16) {
      const int64_t p1 = p0 + 16 < k ? p0 + 16 : k;
      int r = 0;
      for (; r < height; ++r) {
        const float* from = a + (i0 + r) * lda;
        for (int64_t p = p0; p < p1; ++p) packed[p * kMr + r] = from[p];
      }
      for (; r < kMr; ++r)
        for (int64_t p = p0; p < p1; ++p) packed[p * kMr + r] = 0.0f;
    }
  }
}

void pack_b(Transpose trans, int64_t k, int64_t columns, const float* b, int64_t ldb, float* packed) {
  for (int64_t j0 = 0; j0 < columns; j0 += kNr, packed += k * kNr) {
    const int width = columns - j0 < kNr ? static_cast<int>(columns - j0) : kNr;
    if (trans == Transpose::yes) {
      for (int64_t p0 = 0; p0 < k; p0 += 16) {
        const int64_t p1 = p0 + 16 < k ? p0 + 16 : k;
        int r = 0;
        for (; r < width; ++r) {
          const float* from = b + (j0 + r) * ldb;
          for (int64_t p = p0; p < p1; ++p) packed[p * kNr + r] = from[p];
        }
        for (; r < kNr; ++r)
          for (int64_t p = p0; p < p1; ++p) packed[p * kNr + r] = 0.0f;
      }
    } else if (width == kNr) {
      for (int64_t p = 0; p < k; ++p)
        for (int v = 0; v < kNrVectors; ++v) store(packed + p * kNr + v * kLanes, load(b + p * ldb + j0 + v * kLanes));
    } else {
      for (int64_t p = 0; p < k; ++p) {
        int r = 0;
        for (; r < width; ++r) packed[p * kNr + r] = b[p * ldb + j0 + r];
        for (; r < kNr; ++r) packed[p * kNr + r] = 0.0f;
      }
    }
  }
}

// Applies alpha, beta, the epilogue and the edge masks to a tile and stores it. Kept out of line, so that it takes no
// registers from the loop over k.
__attribute__((noinline)) void finish(const float* tile, int height, int width, float alpha, float beta, float* c,
                                      int64_t ldc, int64_t row, int64_t column, const GemmEpilogue* epilogue) {
  for (int i = 0; i < height; ++i)
    for (int v = 0; v < width; v += kLanes) {
      const int lanes = width - v < kLanes ? width - v : kLanes;
      const bool whole = lanes == kLanes;
      float* to = c + i * ldc + v;
      vfloat x = load(tile + i * kNr + v) * alpha;
      if (beta != 0.0f) x += broadcast(beta) * (whole ? load(to) : load_partial(to, lanes));
      if (epilogue) {
        const int64_t j = column + v;
        if (epilogue->bias) x += whole ? load(epilogue->bias + j) : load_partial(epilogue->bias + j, lanes);
        if (epilogue->relu) x = vmax(x, vfloat{});
        if (epilogue->relu_mask) {
          const float* mask = epilogue->relu_mask + (row + i) * epilogue->relu_mask_stride + j;
          x = (whole ? load(mask) : load_partial(mask, lanes)) > 0.0f ? x : vfloat{};
        }
      }
      if (whole)
        store(to, x);
      else
        store_partial(to, x, lanes);
    }
}

// The product of one panel of A and one of B: [kMr, kNr], in registers until the end.
DVT_INLINE void tile(int64_t k, const float* a, const float* b, float* out) {
  vfloat acc[kMr][kNrVectors] = {};
  for (int64_t p = 0; p < k; ++p, a += kMr, b += kNr) {
    const vfloat b0 = load(b), b1 = load(b + kLanes);
#pragma GCC unroll 12
    for (int i = 0; i < kMr; ++i) {
      const vfloat ai = broadcast(a[i]);
      acc[i][0] += ai * b0;
      acc[i][1] += ai * b1;
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < kMr; ++i) {
    store(out + i * kNr, acc[i][0]);
    store(out + i * kNr + kLanes, acc[i][1]);
  }
}

void block(int64_t rows, int64_t columns, int64_t k, float alpha, const float* packed_a, const float* packed_b,
           float beta, float* c, int64_t ldc, const GemmEpilogue* epilogue) {
  alignas(64) float out[kMr * kNr];
  for (int64_t j = 0; j < columns; j += kNr) {
    const int width = columns - j < kNr ? static_cast<int>(columns - j) : kNr;
    for (int64_t i = 0; i < rows; i += kMr) {
      const int height = rows - i < kMr ? static_cast<int>(rows - i) : kMr;
      tile(k, packed_a + i * k, packed_b + j * k, out);
      finish(out, height, width, alpha, beta, c + i * ldc + j, ldc, i, j, epilogue);
    }
  }
}

}  // namespace

const GemmKernels gemm_kernels = {DVT_TEXT(DVT_ISA), kMr, kNr, pack_a, pack_b, block};

}  // namespace DVT_ISA
}  // namespace dvt
