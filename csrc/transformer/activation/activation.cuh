// Activations of a transformer's MLP on the device, for epilogues; activation.h says what they are.
//
// `Accuracy::narrow` is for results that are rounded to 16 bits: a polynomial and no branch for GELU (the CPU's, see
// core/vector_math.h: absolute error 2.5e-7), the processor's approximate exponential and reciprocal for the others.
// `Accuracy::full` is for float32: what torch computes. NaN comes out as NaN.
//
// silu, quick_gelu and gelu_tanh are one function, x sigmoid(a x + b x^3), of two numbers: kernels take those two at
// run time instead of being compiled for each.
#pragma once

#include "cuda/numeric.cuh"
#include "transformer/activation/activation.h"

namespace dvt::cuda {

enum class Accuracy { narrow, full };

// x Phi(x). With t = |x| it is max(x, 0) - t Phi(-t), and Phi(-t)^(1/8) is nearly a straight line.
template <Accuracy kAccuracy>
DVT_DEVICE float gelu(float x) {
  if (kAccuracy == Accuracy::full) return x * 0.5f * (1.0f + erff(x * 0.707106781f));
  const float magnitude = fabsf(x), t = magnitude > 7.0f ? 7.0f : magnitude;
  float r = -2.98993513e-07f;
  r = fmaf(r, t, 7.50539448e-06f);
  r = fmaf(r, t, -6.02931395e-05f);
  r = fmaf(r, t, 3.40330153e-05f);
  r = fmaf(r, t, 0.00150549191f);
  r = fmaf(r, t, -0.000673764851f);
  r = fmaf(r, t, -0.0319267362f);
  r = fmaf(r, t, -0.0914578438f);
  r = fmaf(r, t, 0.917004049f);
  r *= r;
  r *= r;
  return fmaf(-t * r, r, x > 0.0f ? x : 0.0f);
}

// x sigmoid(linear x + cubic x^3), or max(x, 0).
struct Logistic {
  float linear = 1.0f, cubic = 0.0f;
  float limit = 88.0f;  // beyond it the result is 0 (less than 1e-34) or x, infinity included
  bool relu = false;
};

inline Logistic logistic_of(Activation activation) {
  Logistic l;
  if (activation == Activation::quick_gelu) l.linear = 1.702f, l.limit = 51.0f;
  if (activation == Activation::gelu_tanh) l.linear = 1.595769122f, l.cubic = l.linear * 0.044715f, l.limit = 10.0f;
  l.relu = activation == Activation::relu;
  return l;
}

template <Accuracy kAccuracy>
DVT_DEVICE float logistic(const Logistic& l, float x) {
  if (l.relu) return x < 0.0f ? 0.0f : x;
  x = x < -l.limit ? -l.limit : x;
  const float t = x > l.limit ? l.limit : x, u = t * fmaf(t * t, l.cubic, l.linear);
  if (kAccuracy == Accuracy::full) return x / (1.0f + expf(-u));
  return x * ptx::reciprocal_approx(1.0f + ptx::exp2_approx(u * -1.44269504f));
}

// Whichever it is, where that is only known at run time.
template <Accuracy kAccuracy>
DVT_DEVICE float activate(bool is_gelu, const Logistic& l, float x) {
  return is_gelu ? gelu<kAccuracy>(x) : logistic<kAccuracy>(l, x);
}

}  // namespace dvt::cuda
