// exp and the activations of transformers on vectors of floats: vexp2, vexp_nonpositive, vexp, vgelu, vgelu_tanh,
// vsigmoid, vsilu, vquick_gelu, vrelu.
//
// Included only by kernel sources, like simd.h. Straight lines of vector operations: no table, no branch, nothing that
// one instruction set has and another lacks; AVX-512 only takes shorter roads to the same polynomials, whose
// coefficients tools/fit_vector_math.py prints. NaN comes out as NaN: in vmax and vmin the limit stands first. The
// errors given here are checked by tests/test_activation.py.
#pragma once

#include "core/simd.h"

namespace dvt {
namespace DVT_ISA {

template <int kDegree>
DVT_INLINE vfloat polynomial(const float (&c)[kDegree + 1], vfloat x) {
  vfloat p = broadcast(c[kDegree]);
#pragma GCC unroll 8
  for (int i = kDegree - 1; i >= 0; --i) p = p * x + c[i];
  return p;
}

DVT_INLINE vfloat vabs(vfloat x) { return (vfloat)((vint)x & 0x7fffffff); }

// Adding 1.5 * 2^23 rounds to the nearest integer, which is then in the low bits of the sum. With 127 more, the bias of
// an exponent, these bits shifted left by 23 are the power of two: 2^n for n in [-126, 127], and 0 for -127.
constexpr float kRound = 12582912.0f, kRoundAndBias = kRound + 127.0f;
DVT_INLINE vfloat power_of_two(vfloat n_plus_round_and_bias) { return (vfloat)((vint)n_plus_round_and_bias << 23); }

// 2^x for x < 127.5, and 0 below -126.5; relative error 2e-7. In a softmax take this, with the factor log2(e) in the
// scale of the queries: the largest weight, 2^0, is exactly 1.
DVT_INLINE vfloat vexp2(vfloat x) {
  constexpr float c[] = {1.0f, 0.693147004f, 0.240222424f, 0.0555073358f, 0.00967151299f, 0.00132647273f};
#if defined(__AVX512F__)
  const vfloat r = _mm512_reduce_ps(x, 0);  // x - round(x)
  return _mm512_scalef_ps(polynomial<5>(c, r), x - r);
#else
  x = vmax(broadcast(-127.0f), x);
  const vfloat biased = x + kRoundAndBias;
  return polynomial<5>(c, x - (biased - kRoundAndBias)) * power_of_two(biased);
#endif
}

// e^x for x <= 0 (and up to 88), 0 below -87.7: within 1.3e-7 of it, and within 2e-7 + 6e-8 |x| of itself.
DVT_INLINE vfloat vexp_nonpositive(vfloat x) {
  constexpr float c[] = {1.0f, 0.999999702f, 0.499991506f, 0.166676357f, 0.0418979302f, 0.00829031505f};
  x = vmax(broadcast(-88.0296936f), x);  // -127 ln 2
  const vfloat biased = x * 1.44269504f + kRoundAndBias, n = biased - kRoundAndBias;
  return polynomial<5>(c, x - n * 0.693147182f) * power_of_two(biased);
}

// e^x for every x, within 2 ulp: infinity above 88.73, subnormal below -87.34 (0 where the processor flushes those).
DVT_INLINE vfloat vexp(vfloat x) {
  constexpr float c[] = {1.0f, 1.0f, 0.49999994f, 0.166664317f, 0.0416680016f, 0.0083741555f, 0.00138436537f};
  x = vmin(broadcast(89.0f), vmax(broadcast(-104.0f), x));
  const vfloat n = (x * 1.44269504f + kRound) - kRound;
  // ln 2 in two parts, the first of so few bits that its product with n is exact without fused operations.
  const vfloat p = polynomial<6>(c, (x - n * 0.693359375f) + n * 2.12194440e-4f);
#if defined(__AVX512F__)
  return _mm512_scalef_ps(p, n);
#else
  // 2^n in two factors: n reaches 128 and -150.
  const vfloat half = (n * 0.5f + kRound) - kRound;
  return p * power_of_two(half + kRoundAndBias) * power_of_two((n - half) + kRoundAndBias);
#endif
}

// x Phi(x), the exact GELU. With t = |x| it is max(x, 0) - t Phi(-t), and Phi(-t)^(1/8) is nearly a straight line: a
// polynomial of degree 8, three squarings, and no division, exp, or cancellation where x is negative. 15 operations
// (14 with AVX-512); the rational approximations of erf take as many and a division, and lose the negative tail.
// Absolute error 1.4e-7 max(1, |x|); relative error 6e-7 around 0, and 3e-3 in the negative tail down to -5.8, where
// the result is -2e-8; below -7 the result is -8e-12.
DVT_INLINE vfloat vgelu(vfloat x) {
  constexpr float c[] = {0.917004049f,    -0.0914578438f,   -0.0319267362f,  -0.000673764851f, 0.00150549191f,
                         3.40330153e-05f, -6.02931395e-05f, 7.50539448e-06f, -2.98993513e-07f};
#if defined(__AVX512F__)
  const vfloat t = _mm512_range_ps(x, broadcast(7.0f), 10);  // the smaller magnitude, without its sign
#else
  const vfloat t = vmin(broadcast(7.0f), vabs(x));
#endif
  vfloat r = polynomial<8>(c, t);
  r *= r;
  r *= r;
  return vmax(vfloat{}, x) - (t * r) * r;
}

// 1 / (1 + e^-x)
DVT_INLINE vfloat vsigmoid(vfloat x) { return 1.0f / (1.0f + vexp2(vmax(broadcast(-88.0f), x) * -1.44269504f)); }

// x sigmoid(x). The limits here and below keep -infinity from dividing itself; what they cut is below 1e-35.
DVT_INLINE vfloat vsilu(vfloat x) {
  x = vmax(broadcast(-88.0f), x);
  return x / (1.0f + vexp2(x * -1.44269504f));
}

// x sigmoid(1.702 x), CLIP's
DVT_INLINE vfloat vquick_gelu(vfloat x) {
  x = vmax(broadcast(-51.0f), x);
  return x / (1.0f + vexp2(x * (-1.702f * 1.44269504f)));
}

// x (1 + tanh(u)) / 2 = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
DVT_INLINE vfloat vgelu_tanh(vfloat x) {
  constexpr float a = -2.0f * 0.797884561f * 1.44269504f, b = a * 0.044715f;
  x = vmax(broadcast(-10.0f), x);
  return x / (1.0f + vexp2(x * (x * x * b + a)));
}

DVT_INLINE vfloat vrelu(vfloat x) { return vmax(vfloat{}, x); }

}  // namespace DVT_ISA
}  // namespace dvt
