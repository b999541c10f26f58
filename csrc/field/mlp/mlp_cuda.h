// The perceptron of a fit on the device; mlp.h says what it computes. All pointers are device memory.
//
// Parameters and moments are float32; the products take the weights and activations as operands (Operand), rounded
// once where they are made: activations by the product before, weights by their step of Adam. Rows of every array are
// padded to multiples of 8 elements, so that all of it moves in vectors of 16 bytes or more.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/status.h"
#include "field/adam/adam_cuda.h"
#include "field/features/batch_cuda.h"
#include "field/mlp/mlp.h"

namespace dvt::cuda {

// Where the padded arrays have what: layer i's weights, [widths[i + 1], ld(i)], at weights_at[i], its bias, [ld(i +
// 1)], at bias_at[i].
struct MlpLayout {
  MlpShape shape{};
  int64_t weights_at[kMaxMlpLayers] = {}, bias_at[kMaxMlpLayers] = {};
  int64_t count = 0;  // floats of all of it

  MlpLayout() = default;
  explicit MlpLayout(const MlpShape& shape);
  int64_t ld(int layer) const { return (shape.widths[layer] + 7) / 8 * 8; }
  // Between MlpShape's flat array and the padded one, in main memory.
  void pad(const float* flat, float* padded) const;
  void strip(const float* padded, float* flat) const;
};

struct MlpCuda {
  MlpLayout layout;
  Operand operand = Operand::tf32;
  float *params = nullptr, *exp_avg = nullptr, *exp_avg_sq = nullptr;  // [layout.count]
  void* operands = nullptr;  // the weights again, in the same places; the parameters themselves for Operand::float32
  AdamConstants constants{AdamOptions()};
  const AdamStep* steps = nullptr;  // of the clock's step first_step at [0]
  int32_t first_step = 0;
  // Of products whose sum over the batch is split, a place for each layer: layers may be updated at once.
  float* parts[kMaxMlpLayers] = {};

  const float* bias(int layer) const { return params + layout.bias_at[layer]; }
};

// Floats that the parts of a layer need for batches of n on a device of so many multiprocessors.
int64_t mlp_parts(const MlpLayout& layout, int layer, int64_t n, Operand operand, int multiprocessors);

// Rounds all weights to operands; after parameters were written.
Status mlp_round_weights(const MlpCuda& mlp, cudaStream_t stream);

// Layer `layer` of x [N, ld(layer)]: with ReLU to operands [N, ld(layer + 1)], the last layer to float32.
Status mlp_layer_forward(const MlpCuda& mlp, int layer, const void* x, int64_t n, void* y, cudaStream_t stream);

// d_x [N, ld(layer)] of the layer, from d_y [N, ld(layer + 1)]: where x, the layer's input, is not null as operands
// and zero where x is not positive (the ReLU before it); else float32.
Status mlp_layer_backward(const MlpCuda& mlp, int layer, const void* d_y, const void* x, int64_t n, void* d_x,
                          cudaStream_t stream);

// Adam's step clock->step + offset for the layer's weights, which nobody may read meanwhile, and for its bias.
Status mlp_weights_update(const MlpCuda& mlp, int layer, const void* d_y, const void* x, int64_t n,
                          const FitClock* clock, int offset, cudaStream_t stream);
Status mlp_bias_update(const MlpCuda& mlp, int layer, const void* d_y, int64_t n, const FitClock* clock, int offset,
                       cudaStream_t stream);
// The gradients instead, to d_params [layout.count] at the layer's places.
Status mlp_layer_gradients(const MlpCuda& mlp, int layer, const void* d_y, const void* x, int64_t n, float* d_params,
                           cudaStream_t stream);

}  // namespace dvt::cuda
