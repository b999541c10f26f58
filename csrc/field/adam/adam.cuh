// One step of Adam and its replay on the device, for the kernels that have a parameter in registers.
//
// The same operations in the same order as adam_kernels.cpp, each rounded once and fused where that one fuses: equal
// bits on the CPU (where it has fused multiply-adds) and on the GPU. Square root and divisions are IEEE's.
#pragma once

#include "cuda/numeric.cuh"
#include "field/adam/adam.h"

namespace dvt::cuda {

DVT_DEVICE void adam_moments(const AdamConstants& k, float grad, float p, float& m, float& v) {
  const float g = __fmaf_rn(p, k.weight_decay, grad);
  m = __fmaf_rn(k.one_minus_beta1, __fadd_rn(g, -m), m);
  v = __fmaf_rn(__fmul_rn(k.one_minus_beta2, g), g, __fmul_rn(v, k.beta2));
}

// p's step: the moved m over the root of the second moment.
DVT_DEVICE float adam_move(const AdamConstants& k, AdamStep step, float moved, float v) {
  float root = __fsqrt_rn(v);
  // Dividing by one changes no bit: from about step 1,700 on the correction is one in float32.
  if (step.bias_correction2_sqrt != 1.0f) root = __fdiv_rn(root, step.bias_correction2_sqrt);
  return __fdiv_rn(moved, __fadd_rn(root, k.eps));
}

DVT_DEVICE void adam_step(const AdamConstants& k, AdamStep step, float grad, float& p, float& m, float& v) {
  adam_moments(k, grad, p, m, v);
  p = __fadd_rn(p, adam_move(k, step, __fmul_rn(-step.step_size, m), v));
}

// One step of kCount neighbours without gradients. Root and quotient have branches for extreme operands, which cost as
// much as they do and keep neighbours from overlapping; here one branch decides for all neighbours, and next to never
// against the short way. kCorrect: the bias correction is not one.
template <int kCount, bool kCorrect>
DVT_DEVICE void adam_zero_step(const AdamConstants& k, AdamStep step, float (&p)[kCount], float (&m)[kCount],
                               float (&v)[kCount]) {
  // v in [2^-100, 2^60], as the distance of its bits from those of the lower end; |m| is at most some ten roots of v,
  // whatever the gradients were, so it needs a lower end only.
  constexpr uint32_t kLeast = (127u - 100u) << 23, kMost = (127u + 60u) << 23;
  float moved[kCount];
  uint32_t span = 0;
  float least_moved = 1.0f;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    adam_moments(k, 0.0f, p[i], m[i], v[i]);
    moved[i] = __fmul_rn(-step.step_size, m[i]);
    span = max(span, __float_as_uint(v[i]) - kLeast);
    least_moved = fminf(least_moved, fabsf(moved[i]));
  }
  const bool usual = k.eps <= 1.0f && step.step_size <= 1e3f && (!kCorrect || step.bias_correction2_sqrt >= 1e-3f);
  if (usual && span <= kMost - kLeast && least_moved >= 0x1p-75f) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      float root = ptx::sqrt_ordinary(v[i]);
      if constexpr (kCorrect) root = ptx::divide_ordinary(root, step.bias_correction2_sqrt);
      p[i] = __fadd_rn(p[i], ptx::divide_ordinary(moved[i], __fadd_rn(root, k.eps)));
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) p[i] = __fadd_rn(p[i], adam_move(k, step, moved[i], v[i]));
  }
}

// Steps from + 1 ... to of kCount neighbours whose gradients are zero; steps [0], aligned to 8 bytes, is step 1.
//
// This is where a fit's arithmetic is: every entry of the hash grid takes every step.
template <int kCount>
DVT_DEVICE void adam_replay(const AdamConstants& k, const AdamStep* steps, int32_t from, int32_t to, float (&p)[kCount],
                            float (&m)[kCount], float (&v)[kCount]) {
  const float2* factors = reinterpret_cast<const float2*>(steps);
  int32_t t = from;
  for (; t < to; ++t) {
    const float2 f = factors[t];
    if (f.y == 1.0f) break;  // it grows towards one and stays
    adam_zero_step<kCount, true>(k, {f.x, f.y}, p, m, v);
  }
  for (; t < to; ++t) adam_zero_step<kCount, false>(k, {factors[t].x, 1.0f}, p, m, v);
}

}  // namespace dvt::cuda
