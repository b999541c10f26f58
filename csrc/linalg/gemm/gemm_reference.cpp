#include "linalg/gemm/gemm.h"

namespace dvt {

void gemm_reference(Transpose trans_a, Transpose trans_b, GemmShape shape, float alpha, const float* a, int64_t lda,
                    const float* b, int64_t ldb, float beta, float* c, int64_t ldc, const GemmEpilogue& epilogue) {
  for (int64_t i = 0; i < shape.m; ++i)
    for (int64_t j = 0; j < shape.n; ++j) {
      double dot = 0;
      for (int64_t p = 0; p < shape.k; ++p) {
        const float x = trans_a == Transpose::no ? a[i * lda + p] : a[p * lda + i];
        const float y = trans_b == Transpose::no ? b[p * ldb + j] : b[j * ldb + p];
        dot += static_cast<double>(x) * y;
      }
      double value = alpha * dot + (beta != 0 ? beta * static_cast<double>(c[i * ldc + j]) : 0.0);
      if (epilogue.bias) value += epilogue.bias[j];
      if (epilogue.relu && value < 0) value = 0;
      if (epilogue.relu_mask && !(epilogue.relu_mask[i * epilogue.relu_mask_stride + j] > 0)) value = 0;
      c[i * ldc + j] = static_cast<float>(value);
    }
}

}  // namespace dvt
