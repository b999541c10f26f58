#include <algorithm>
#include <cmath>
#include <vector>

#include "transformer/attention/attention.h"

namespace dvt {

void attention_reference(int64_t rows, int64_t tokens, int64_t head_dim, const float* q, const float* k, const float* v,
                         float* out) {
  std::vector<double> weights(static_cast<size_t>(tokens));
  for (int64_t r = 0; r < rows; ++r) {
    double largest = -1e300, total = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      double dot = 0;
      for (int64_t d = 0; d < head_dim; ++d) dot += static_cast<double>(q[r * head_dim + d]) * k[t * head_dim + d];
      weights[static_cast<size_t>(t)] = dot / std::sqrt(static_cast<double>(head_dim));
      largest = std::max(largest, weights[static_cast<size_t>(t)]);
    }
    for (double& w : weights) total += w = std::exp(w - largest);
    for (int64_t d = 0; d < head_dim; ++d) {
      double sum = 0;
      for (int64_t t = 0; t < tokens; ++t) sum += weights[static_cast<size_t>(t)] * v[t * head_dim + d];
      out[r * head_dim + d] = static_cast<float>(sum / total);
    }
  }
}

}  // namespace dvt
