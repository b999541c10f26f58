#include <cmath>

#include "transformer/layer_norm/layer_norm.h"

namespace dvt {

void layer_norm_reference(const NormCall& call) {
  for (int64_t r = 0; r < call.rows; ++r) {
    const float* x = call.x + r * call.x_stride;
    float* y = call.y + r * call.y_stride;
    double mean = 0, scale = 1;
    if (call.kind == NormWeights::Kind::layer) {
      for (int64_t c = 0; c < call.dim; ++c) mean += x[c];
      mean /= static_cast<double>(call.dim);
    }
    if (call.kind != NormWeights::Kind::none) {
      double squares = 0;
      for (int64_t c = 0; c < call.dim; ++c) squares += (x[c] - mean) * (x[c] - mean);
      scale = 1 / std::sqrt(squares / static_cast<double>(call.dim) + call.eps);
    }
    for (int64_t c = 0; c < call.dim; ++c) {
      double v = (x[c] - mean) * scale;
      if (call.weight) v *= call.weight[c];
      if (call.bias) v += call.bias[c];
      y[c] = static_cast<float>(v);
    }
  }
}

}  // namespace dvt
