// Blocking and threads of the matrix product; the tiles are in gemm_kernels.cpp.
#include "linalg/gemm/gemm.h"

#include <algorithm>

#include "core/buffer.h"
#include "core/flush_denormals.h"
#include "core/threads.h"

namespace dvt {
namespace {

// A packed block of A (kRowBlock x kDepth floats, 96 KB) stays in L2 beside the streaming panels of B.
constexpr int64_t kDepth = 256;
constexpr int64_t kRowBlock = 96;
constexpr int64_t kColumnBlock = 4096;

int64_t round_up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

}  // namespace

void gemm(Transpose trans_a, Transpose trans_b, GemmShape shape, float alpha, const float* a, int64_t lda,
          const float* b, int64_t ldb, float beta, float* c, int64_t ldc, const GemmEpilogue& epilogue) {
  const GemmKernels& kernels = gemm_kernels();
  const int64_t m = shape.m, n = shape.n, k = shape.k;
  if (m <= 0 || n <= 0) return;
  // k == 0 still scales C and runs the epilogue.
  thread_local Buffer<float> packed_b_buffer;
  for (int64_t j0 = 0; j0 < n; j0 += kColumnBlock) {
    const int64_t columns = std::min(kColumnBlock, n - j0);
    float* packed_b =
        packed_b_buffer.at_least(std::max<int64_t>(1, std::min(kDepth, k)) * round_up(columns, kernels.nr));
    int64_t p0 = 0;
    do {
      const int64_t depth = std::min(kDepth, k - p0);
      const bool last = p0 + depth >= k;
      const int64_t panels = (columns + kernels.nr - 1) / kernels.nr;
      parallel_for(panels, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, depth * kernels.nr)),
                   [&](int64_t begin, int64_t end) {
                     const int64_t j = begin * kernels.nr, width = std::min(columns, end * kernels.nr) - j;
                     const float* from = trans_b == Transpose::no ? b + p0 * ldb + j0 + j : b + (j0 + j) * ldb + p0;
                     kernels.pack_b(trans_b, depth, width, from, ldb, packed_b + j * depth);
                   });
      // Rows are cut into mr-high strips so that few rows still feed every thread.
      const int64_t strips = (m + kernels.mr - 1) / kernels.mr;
      const int64_t strips_per_block = std::max<int64_t>(1, kRowBlock / kernels.mr);
      parallel_for(strips, strips_per_block, [&](int64_t begin, int64_t end) {
        const FlushDenormals flush;
        thread_local Buffer<float> packed_a_buffer;
        for (int64_t s = begin; s < end; s += strips_per_block) {
          const int64_t i = s * kernels.mr;
          const int64_t rows = std::min(m, std::min(end, s + strips_per_block) * kernels.mr) - i;
          float* packed_a = packed_a_buffer.at_least(std::max<int64_t>(1, depth) * round_up(rows, kernels.mr));
          const float* from = trans_a == Transpose::no ? a + i * lda + p0 : a + p0 * lda + i;
          kernels.pack_a(trans_a, rows, depth, from, lda, packed_a);
          GemmEpilogue block_epilogue = epilogue;
          if (epilogue.bias) block_epilogue.bias += j0;
          if (epilogue.relu_mask) block_epilogue.relu_mask += i * epilogue.relu_mask_stride + j0;
          kernels.block(rows, columns, depth, alpha, packed_a, packed_b, p0 == 0 ? beta : 1.0f, c + i * ldc + j0, ldc,
                        last ? &block_epilogue : nullptr);
        }
      });
      p0 += depth;
    } while (p0 < k);
  }
}

}  // namespace dvt
