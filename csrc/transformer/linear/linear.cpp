#include "transformer/linear/linear.h"

#include <algorithm>

#include "core/half.h"

namespace dvt {
namespace {

// Weights beyond the range of a narrow type become its largest number: they stay finite.
uint16_t narrowed(float x, Dtype dtype) {
  if (dtype == Dtype::float16) return float_to_half(std::clamp(x, -65504.0f, 65504.0f));
  return float_to_bfloat16(std::clamp(x, -3.38e38f, 3.38e38f));
}

}  // namespace

PackedLinear pack_linear(const LinearWeights& weights, Dtype dtype, Slabs& memory, const NormWeights* before,
                         const std::vector<float>& row_scale) {
  PackedLinear packed;
  packed.kernels = &linear_kernels();
  packed.nr = packed.kernels->nr;
  packed.in = weights.in;
  packed.out = weights.out;
  packed.dtype = dtype;
  const int64_t nr = packed.nr, panels = packed.panel_count(), in = weights.in;
  const int64_t values = panels * in * nr;
  const bool narrow = dtype != Dtype::float32;
  const int64_t floats = narrow ? (values + 1) / 2 : values;
  float* wide = memory.take(floats);
  std::fill_n(wide, floats, 0.0f);
  packed.panels = wide;
  uint16_t* halves = reinterpret_cast<uint16_t*>(wide);
  float* bias = memory.take(panels * nr);
  std::fill_n(bias, panels * nr, 0.0f);
  packed.bias = bias;
  const float* gain = before && !before->weight.empty() ? before->weight.data() : nullptr;
  const float* offset = before && !before->bias.empty() ? before->bias.data() : nullptr;
  for (int64_t o = 0; o < weights.out; ++o) {
    const float* row = weights.weight.data() + o * in;
    const double scale = row_scale.empty() ? 1.0 : row_scale[static_cast<size_t>(o)];
    double sum = weights.bias.empty() ? 0.0 : weights.bias[static_cast<size_t>(o)];
    const int64_t at = (o / nr) * in * nr + o % nr;
    for (int64_t i = 0; i < in; ++i) {
      if (offset) sum += static_cast<double>(row[i]) * offset[i];
      const float value = static_cast<float>(scale * (gain ? static_cast<double>(row[i]) * gain[i] : row[i]));
      if (!narrow)
        wide[at + i * nr] = value;
      else
        halves[at + i * nr] = narrowed(value, dtype);
    }
    bias[o] = static_cast<float>(scale * sum);
  }
  return packed;
}

void linear(const LinearCall& call) { call.weights->kernels->run(call); }

}  // namespace dvt
