// A small multi-layer perceptron with ReLU between its layers: the field's decoder (L * F -> C/2 -> C) and the
// residual predictor (C -> C/4 -> C/4 -> C).
//
// Layer i is y = x W_i^T + b_i with W_i [widths[i + 1], widths[i]] and b_i [widths[i + 1]], as torch.nn.Linear keeps
// them; all in one flat array, W_0, b_0, W_1, ... Three products a layer (forward, d_W, d_x), with bias, ReLU and the
// ReLU's mask in the epilogue of the product: nothing else passes over the activations but the sum for d_b.
#pragma once

#include <cstdint>

#include "core/isa.h"

namespace dvt {

constexpr int kMaxMlpLayers = 4;

struct MlpShape {
  int n_layers;
  int64_t widths[kMaxMlpLayers + 1];

  int64_t inputs() const { return widths[0]; }
  int64_t outputs() const { return widths[n_layers]; }
  // Floats of all layers' parameters, and of one sample's hidden activations.
  int64_t n_params() const;
  int64_t n_hidden() const;
};

// x [N, inputs] -> out [N, outputs]; hidden [N * n_hidden] receives the activations after each ReLU, [N, width] a
// layer, layer after layer.
void mlp_forward(const MlpShape& shape, const float* params, const float* x, int64_t n, float* hidden, float* out);

// d_params [n_params] is overwritten; d_x [N, inputs] too, or is null where it is not needed. d_hidden
// [N * n_hidden] is a workspace.
void mlp_backward(const MlpShape& shape, const float* params, const float* x, const float* hidden, const float* d_out,
                  int64_t n, float* d_hidden, float* d_params, float* d_x);

// The same in plain loops and double, gradients included.
void mlp_reference(const MlpShape& shape, const float* params, const float* x, const float* d_out, int64_t n,
                   float* out, double* d_params, double* d_x);

struct MlpKernels {
  int strip;  // columns that column_sums likes to be given
  // sums [columns] of x [rows, columns], rows `stride` apart.
  void (*column_sums)(const float* x, int64_t rows, int64_t columns, int64_t stride, float* sums);
};
DVT_DECLARE_KERNELS(MlpKernels, mlp_kernels)

}  // namespace dvt
