// One step of Adam and its replay on the device, for the kernels that have a parameter in registers.
//
// The same operations in the same order as adam_kernels.cpp, each rounded once and fused where that one fuses: equal
// bits on the CPU (where it has fused multiply-adds) and on the GPU. Square root and divisions are IEEE's.
#pragma once

#include "cuda/numeric.cuh"
#include "field/adam/adam.h"

namespace dvt::cuda {

DVT_DEVICE void adam_step(const AdamConstants& k, AdamStep step, float grad, float& p, float& m, float& v) {
  const float g = __fmaf_rn(p, k.weight_decay, grad);
  m = __fmaf_rn(k.one_minus_beta1, __fadd_rn(g, -m), m);
  v = __fmaf_rn(__fmul_rn(k.one_minus_beta2, g), g, __fmul_rn(v, k.beta2));
  float root = __fsqrt_rn(v);
  // Dividing by one changes no bit: from about step 1,700 on the correction is one in float32.
  if (step.bias_correction2_sqrt != 1.0f) root = __fdiv_rn(root, step.bias_correction2_sqrt);
  p = __fadd_rn(p, __fdiv_rn(__fmul_rn(-step.step_size, m), __fadd_rn(root, k.eps)));
}

// Steps from + 1 ... to of kCount neighbours whose gradients are zero; steps [0] is step 1.
template <int kCount>
DVT_DEVICE void adam_replay(const AdamConstants& k, const AdamStep* steps, int32_t from, int32_t to, float* p, float* m,
                            float* v) {
  for (int32_t t = from; t < to; ++t) {
    const AdamStep step = steps[t];
#pragma unroll
    for (int i = 0; i < kCount; ++i) adam_step(k, step, 0.0f, p[i], m[i], v[i]);
  }
}

}  // namespace dvt::cuda
