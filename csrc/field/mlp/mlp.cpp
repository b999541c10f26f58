#include "field/mlp/mlp.h"

#include <algorithm>

#include "core/threads.h"
#include "linalg/gemm/gemm.h"

namespace dvt {
namespace {

void column_sums(const float* x, int64_t rows, int64_t columns, float* sums) {
  const int64_t strip = mlp_kernels().strip;
  parallel_for((columns + strip - 1) / strip, 1, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * strip, last = std::min(columns, end * strip);
    mlp_kernels().column_sums(x + first, rows, last - first, columns, sums + first);
  });
}

}  // namespace

int64_t MlpShape::n_params() const {
  int64_t n = 0;
  for (int i = 0; i < n_layers; ++i) n += (widths[i] + 1) * widths[i + 1];
  return n;
}

int64_t MlpShape::n_hidden() const {
  int64_t n = 0;
  for (int i = 1; i < n_layers; ++i) n += widths[i];
  return n;
}

void mlp_forward(const MlpShape& shape, const float* params, const float* x, int64_t n, float* hidden, float* out) {
  for (int i = 0; i < shape.n_layers; ++i) {
    const int64_t inputs = shape.widths[i], outputs = shape.widths[i + 1];
    const bool last = i + 1 == shape.n_layers;
    float* y = last ? out : hidden;
    GemmEpilogue epilogue;
    epilogue.bias = params + inputs * outputs;
    epilogue.relu = !last;
    gemm(Transpose::no, Transpose::yes, {n, outputs, inputs}, 1.0f, x, inputs, params, inputs, 0.0f, y, outputs,
         epilogue);
    params += (inputs + 1) * outputs;
    x = y;
    hidden += n * outputs;
  }
}

void mlp_backward(const MlpShape& shape, const float* params, const float* x, const float* hidden, const float* d_out,
                  int64_t n, float* d_hidden, float* d_params, float* d_x) {
  // From the last layer down: each offset starts behind its layer and moves back.
  int64_t param_at = shape.n_params(), hidden_at = n * shape.n_hidden();
  const float* d_y = d_out;
  for (int i = shape.n_layers - 1; i >= 0; --i) {
    const int64_t inputs = shape.widths[i], outputs = shape.widths[i + 1];
    param_at -= (inputs + 1) * outputs;
    hidden_at -= i > 0 ? n * inputs : 0;
    const float* input = i > 0 ? hidden + hidden_at : x;
    gemm(Transpose::yes, Transpose::no, {outputs, inputs, n}, 1.0f, d_y, outputs, input, inputs, 0.0f,
         d_params + param_at, inputs);
    column_sums(d_y, n, outputs, d_params + param_at + inputs * outputs);
    float* d_input = i > 0 ? d_hidden + hidden_at : d_x;
    if (!d_input) return;
    GemmEpilogue epilogue;
    if (i > 0) {
      epilogue.relu_mask = input;
      epilogue.relu_mask_stride = inputs;
    }
    gemm(Transpose::no, Transpose::no, {n, inputs, outputs}, 1.0f, d_y, outputs, params + param_at, inputs, 0.0f,
         d_input, inputs, epilogue);
    d_y = d_input;
  }
}

}  // namespace dvt
