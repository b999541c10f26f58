#include "transformer/layer_norm/layer_norm.h"

#include "core/simd.h"

namespace dvt {
namespace DVT_ISA {
namespace {

DVT_INLINE vfloat load_some(const float* p, int n) { return n == kLanes ? load(p) : load_partial(p, n); }

// Sum over the row of f(x, lanes): four sums at a time, so that additions do not wait for each other.
template <class F>
DVT_INLINE float row_sum(const float* x, int64_t dim, const F& f) {
  vfloat s[4] = {};
  int64_t c = 0;
  for (; c + 4 * kLanes <= dim; c += 4 * kLanes)
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) s[i] += f(load(x + c + i * kLanes));
  for (; c + kLanes <= dim; c += kLanes) s[0] += f(load(x + c));
  float rest = 0;
  for (; c < dim; ++c) {
    vfloat v = {};
    v[0] = x[c];
    rest += f(v)[0];
  }
  return sum((s[0] + s[1]) + (s[2] + s[3])) + rest;
}

// Two passes over a row that is in the first cache: the squares of what is left after the mean is taken away do not
// cancel, which matters for features with a channel or a mean far from zero.
void run(const NormCall& call) {
  for (int64_t r = 0; r < call.rows; ++r) {
    const float* x = call.x + r * call.x_stride;
    float* y = call.y + r * call.y_stride;
    float mean = 0, scale = 1;
    const float n = static_cast<float>(call.dim);
    if (call.kind == NormWeights::Kind::layer) mean = row_sum(x, call.dim, [](vfloat v) { return v; }) / n;
    const vfloat shift = broadcast(mean);
    if (call.kind != NormWeights::Kind::none) {
      const float squares = row_sum(x, call.dim, [&](vfloat v) { return (v - shift) * (v - shift); });
      scale = 1.0f / __builtin_sqrtf(squares / n + call.eps);
    }
    const vfloat gain = broadcast(scale);
    for (int64_t c = 0; c < call.dim; c += kLanes) {
      const int lanes = call.dim - c < kLanes ? static_cast<int>(call.dim - c) : kLanes;
      vfloat v = (load_some(x + c, lanes) - shift) * gain;
      if (call.weight) v *= load_some(call.weight + c, lanes);
      if (call.bias) v += load_some(call.bias + c, lanes);
      if (lanes == kLanes)
        store(y + c, v);
      else
        store_partial(y + c, v, lanes);
    }
  }
}

}  // namespace

const LayerNormKernels layer_norm_kernels = {DVT_TEXT(DVT_ISA), run};

}  // namespace DVT_ISA
}  // namespace dvt
