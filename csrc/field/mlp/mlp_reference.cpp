// The perceptron one sample at a time in double, for tests.
#include <algorithm>
#include <vector>

#include "field/mlp/mlp.h"

namespace dvt {

void mlp_reference(const MlpShape& shape, const float* params, const float* x, const float* d_out, int64_t n,
                   float* out, double* d_params, double* d_x) {
  std::fill_n(d_params, shape.n_params(), 0.0);
  std::vector<std::vector<double>> value(static_cast<size_t>(shape.n_layers) + 1);
  for (int64_t sample = 0; sample < n; ++sample) {
    value[0].assign(x + sample * shape.inputs(), x + (sample + 1) * shape.inputs());
    const float* layer = params;
    for (int i = 0; i < shape.n_layers; ++i) {
      const int64_t inputs = shape.widths[i], outputs = shape.widths[i + 1];
      std::vector<double>& y = value[static_cast<size_t>(i) + 1];
      y.assign(layer + inputs * outputs, layer + (inputs + 1) * outputs);
      for (int64_t o = 0; o < outputs; ++o) {
        for (int64_t k = 0; k < inputs; ++k)
          y[static_cast<size_t>(o)] +=
              static_cast<double>(layer[o * inputs + k]) * value[static_cast<size_t>(i)][static_cast<size_t>(k)];
        if (i + 1 < shape.n_layers) y[static_cast<size_t>(o)] = std::max(y[static_cast<size_t>(o)], 0.0);
      }
      layer += (inputs + 1) * outputs;
    }
    for (int64_t o = 0; o < shape.outputs(); ++o)
      out[sample * shape.outputs() + o] = static_cast<float>(value.back()[static_cast<size_t>(o)]);

    std::vector<double> d_y(d_out + sample * shape.outputs(), d_out + (sample + 1) * shape.outputs());
    int64_t at = shape.n_params();
    for (int i = shape.n_layers - 1; i >= 0; --i) {
      const int64_t inputs = shape.widths[i], outputs = shape.widths[i + 1];
      at -= (inputs + 1) * outputs;
      const std::vector<double>& input = value[static_cast<size_t>(i)];
      std::vector<double> d_input(static_cast<size_t>(inputs), 0.0);
      for (int64_t o = 0; o < outputs; ++o) {
        const double d = d_y[static_cast<size_t>(o)];
        d_params[at + inputs * outputs + o] += d;
        for (int64_t k = 0; k < inputs; ++k) {
          d_params[at + o * inputs + k] += d * input[static_cast<size_t>(k)];
          d_input[static_cast<size_t>(k)] += d * params[at + o * inputs + k];
        }
      }
      for (int64_t k = 0; i > 0 && k < inputs; ++k)
        if (!(input[static_cast<size_t>(k)] > 0)) d_input[static_cast<size_t>(k)] = 0;
      d_y = d_input;
    }
    std::copy(d_y.begin(), d_y.end(), d_x + sample * shape.inputs());
  }
}

}  // namespace dvt
