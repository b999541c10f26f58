// Three products a layer on the tensor cores (linalg/gemm/gemm.cuh), each with all that follows it in its epilogue:
//   y   = relu(x W^T + b)          NT, tiles of 128 x 64: 96 and 192 blocks for batch 2,048 and widths 384 and 768
//   d_x = d_y W, masked by ReLU    NN, tiles of 64 x 64
//   d_W = d_y^T x, Adam            TN, tiles of 64 x 64; the sum over the batch is split so that all SMs have some of
//                                  it, and Adam follows where the parts are added: no gradient is written
// and a kernel for the bias: sums of d_y's columns, in one order, then Adam.
//
// FLOPs a step of batch 2,048 at C = 768: F 1.4 GFLOP forward and 2.8 backward, h 1.4 and 2.1.
#include <algorithm>
#include <cstring>

#include "cuda/runtime.h"
#include "field/adam/adam.cuh"
#include "field/features/batch.cuh"
#include "field/mlp/mlp_cuda.h"
#include "linalg/gemm/gemm.cuh"

namespace dvt::cuda {
namespace {

// For each operand the tiles of the three products; float32 takes warps of 32 x 32.
template <class T>
constexpr Precision kPrecision = std::is_same_v<T, float> ? Precision::compensated : Precision::once;
template <class T>
constexpr int kWarps = std::is_same_v<T, float> ? 4 : 2;
template <class T>
using ForwardTile = GemmTile<T, T, Major::k, Major::k, 128, 64, kWarps<T>, 2, 3, kWarps<T> == 4 ? 1 : 2, kPrecision<T>>;
template <class T>
using BackwardTile = GemmTile<T, T, Major::k, Major::other, 64, 64, 2, 2, 3, 2, kPrecision<T>>;
template <class T>
using WeightTile = GemmTile<T, T, Major::other, Major::other, 64, 64, 2, 2, 3, 2, kPrecision<T>>;

DVT_DEVICE void load8(const float* from, float (&v)[8]) {
  const float4 a = *reinterpret_cast<const float4*>(from), b = *reinterpret_cast<const float4*>(from + 4);
  v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}
template <class T>
DVT_DEVICE void store8(T* to, const float (&v)[8]) {
  store_operands(to, make_float4(v[0], v[1], v[2], v[3]));
  store_operands(to + 4, make_float4(v[4], v[5], v[6], v[7]));
}

// Every array's rows are padded to 8 columns, so all epilogues move 8, whatever lies beyond the last column.
template <class T>
struct HiddenEpilogue : GemmEpilogue {
  const float* bias;
  T* y;
  int64_t ld;
  DVT_DEVICE void apply(const GemmPlace& at, float (&v)[8]) {
    float b[8];
    load8(bias + at.column, b);
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = fmaxf(v[j] + b[j], 0.0f);
    store8(y + at.row * ld + at.column, v);
  }
};

// float32 rows, plus a bias where there is one.
struct FloatEpilogue : GemmEpilogue {
  const float* bias;
  float* y;
  int64_t ld;
  DVT_DEVICE void apply(const GemmPlace& at, float (&v)[8]) {
    if (bias) {
      float b[8];
      load8(bias + at.column, b);
#pragma unroll
      for (int j = 0; j < 8; ++j) v[j] += b[j];
    }
    store8(y + at.row * ld + at.column, v);
  }
};

template <class T>
struct MaskEpilogue : GemmEpilogue {
  const T* x;
  T* d_x;
  int64_t ld;
  DVT_DEVICE void apply(const GemmPlace& at, float (&v)[8]) {
    const int64_t place = at.row * ld + at.column;
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = to_float(x[place + j]) > 0.0f ? v[j] : 0.0f;
    store8(d_x + place, v);
  }
};

struct AdamState {
  AdamConstants constants;
  const AdamStep* steps;
  const FitClock* clock;
  int offset;  // of the clock's step from the first of `steps`
  float *params, *exp_avg, *exp_avg_sq;
  DVT_DEVICE AdamStep step() const { return steps[clock->step + offset]; }
};

template <class T>
struct AdamEpilogue : GemmEpilogue {
  AdamState state;
  T* operands;
  int64_t ld;
  AdamStep step;
  DVT_DEVICE void begin() { step = state.step(); }
  DVT_DEVICE void apply(const GemmPlace& at, float (&grad)[8]) {
    const int64_t place = at.row * ld + at.column;
    float p[8], m[8], v[8];
    load8(state.params + place, p);
    load8(state.exp_avg + place, m);
    load8(state.exp_avg_sq + place, v);
#pragma unroll
    for (int j = 0; j < 8; ++j)
      if (j < at.count) adam_step(state.constants, step, grad[j], p[j], m[j], v[j]);
    store8(state.params + place, p);
    store8(state.exp_avg + place, m);
    store8(state.exp_avg_sq + place, v);
    if constexpr (!std::is_same_v<T, float>) store8(operands + place, p);
  }
};

constexpr int kBiasWarps = 32;

// The sums of 32 columns of d_y a block: each warp adds every 32nd row, then the first adds the warps' sums.
template <class T>
__global__ void __launch_bounds__(32 * kBiasWarps)
    bias_kernel(const T* d_y, int64_t n, int64_t columns, int64_t ld, AdamState state, float* d_bias) {
  float* sums = &ptx::shared<float>();  // [kBiasWarps][32]
  const int lane = static_cast<int>(ptx::lane_id()), warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * 32 + lane;
  float sum = 0.0f;
  if (column < columns) {
#pragma unroll 8
    for (int64_t i = warp; i < n; i += kBiasWarps) sum += to_float(d_y[i * ld + column]);
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (warp != 0 || column >= columns) return;
  for (int w = 1; w < kBiasWarps; ++w) sum += sums[w * 32 + lane];
  if (d_bias) {
    d_bias[column] = sum;
    return;
  }
  adam_step(state.constants, state.step(), sum, state.params[column], state.exp_avg[column], state.exp_avg_sq[column]);
}

template <class T>
__global__ void round_weights_kernel(const float* params, int64_t count, T* operands) {
  const int64_t i = 4 * (static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x);
  if (i < count) store_operands(operands + i, *reinterpret_cast<const float4*>(params + i));
}

template <class Tile, class Epilogue>
Status launch_product(const char* name, const GemmOperands& p, const Epilogue& epilogue, cudaStream_t stream) {
  Launch how;
  how.grid =
      dim3(static_cast<unsigned>(ceil_div(p.m, Tile::kM) * ceil_div(p.n, Tile::kN)), static_cast<unsigned>(p.splits));
  how.block = dim3(Tile::kThreads);
  how.shared_bytes = Tile::kSharedBytes;
  how.stream = stream;
  return launch(name, gemm_kernel<Tile, Epilogue>, how, p, epilogue);
}

// Into how many parts the sum over the batch is cut: about 1.5 blocks an SM, of at least 4 stages each.
int batch_splits(int64_t m, int64_t n, int64_t batch, int stage, int multiprocessors) {
  const int64_t tiles = ceil_div(m, 64) * ceil_div(n, 64);
  const int64_t wanted = 3 * int64_t{multiprocessors} / (2 * tiles), most = ceil_div(batch, stage) / 4;
  return static_cast<int>(std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, std::min<int64_t>(most, 16))));
}
constexpr int stage_of(Operand operand) { return operand == Operand::bf16 ? 64 : 32; }

// d_W of the layer, in parts, and then to the epilogue.
template <class T, class Epilogue>
Status weight_product(const MlpCuda& mlp, int layer, const void* d_y, const void* x, int64_t n,
                      const Epilogue& epilogue, cudaStream_t stream) {
  const DeviceTraits* traits;
  DVT_RETURN_IF_ERROR(current_traits(&traits));
  const MlpLayout& layout = mlp.layout;
  GemmOperands p;
  p.a = d_y;
  p.b = x;
  p.lda = static_cast<int>(layout.ld(layer + 1));
  p.ldb = static_cast<int>(layout.ld(layer));
  p.m = static_cast<int>(layout.shape.widths[layer + 1]);
  p.n = static_cast<int>(layout.shape.widths[layer]);
  p.k = static_cast<int>(n);
  p.splits = batch_splits(p.m, p.n, n, WeightTile<T>::kK, traits->multiprocessors);
  GemmStorePart store;
  store.parts = mlp.parts[layer];
  store.stride = p.ldb;
  store.part = int64_t{p.m} * p.ldb;
  DVT_RETURN_IF_ERROR((launch_product<WeightTile<T>>("mlp_weights", p, store, stream)));
  Launch how;
  how.grid = dim3(static_cast<unsigned>(ceil_div(store.part / 8, kGemmFinishThreads)));
  how.block = dim3(kGemmFinishThreads);
  how.stream = stream;
  return launch("mlp_weights", gemm_finish_kernel<Epilogue>, how, mlp.parts[layer], store.stride, p.m, p.n, p.splits,
                epilogue);
}

template <class T>
Status bias_sums(const MlpCuda& mlp, int layer, const void* d_y, int64_t n, const AdamState& state, float* d_bias,
                 cudaStream_t stream) {
  const int64_t columns = mlp.layout.shape.widths[layer + 1];
  Launch how;
  how.grid = dim3(static_cast<unsigned>(ceil_div(columns, 32)));
  how.block = dim3(32 * kBiasWarps);
  how.shared_bytes = kBiasWarps * 32 * sizeof(float);
  how.stream = stream;
  return launch("mlp_bias", bias_kernel<T>, how, static_cast<const T*>(d_y), n, columns, mlp.layout.ld(layer + 1),
                state, d_bias);
}

AdamState adam_state(const MlpCuda& mlp, int64_t at, const FitClock* clock, int offset) {
  return {mlp.constants,    mlp.steps,          clock, offset - mlp.first_step, mlp.params + at,
          mlp.exp_avg + at, mlp.exp_avg_sq + at};
}

template <class T>
const T* weights_of(const MlpCuda& mlp, int layer) {
  return static_cast<const T*>(mlp.operands) + mlp.layout.weights_at[layer];
}

}  // namespace

MlpLayout::MlpLayout(const MlpShape& s) : shape(s) {
  for (int i = 0; i < s.n_layers; ++i) {
    weights_at[i] = count;
    count += s.widths[i + 1] * ld(i);
    bias_at[i] = count;
    count += ld(i + 1);
  }
}

void MlpLayout::pad(const float* flat, float* padded) const {
  std::fill_n(padded, count, 0.0f);
  for (int i = 0; i < shape.n_layers; ++i) {
    for (int64_t o = 0; o < shape.widths[i + 1]; ++o, flat += shape.widths[i])
      std::copy_n(flat, shape.widths[i], padded + weights_at[i] + o * ld(i));
    std::copy_n(flat, shape.widths[i + 1], padded + bias_at[i]);
    flat += shape.widths[i + 1];
  }
}

void MlpLayout::strip(const float* padded, float* flat) const {
  for (int i = 0; i < shape.n_layers; ++i) {
    for (int64_t o = 0; o < shape.widths[i + 1]; ++o, flat += shape.widths[i])
      std::copy_n(padded + weights_at[i] + o * ld(i), shape.widths[i], flat);
    std::copy_n(padded + bias_at[i], shape.widths[i + 1], flat);
    flat += shape.widths[i + 1];
  }
}

int64_t mlp_parts(const MlpLayout& layout, int layer, int64_t n, Operand operand, int multiprocessors) {
  const int64_t m = layout.shape.widths[layer + 1];
  return m * layout.ld(layer) * batch_splits(m, layout.shape.widths[layer], n, stage_of(operand), multiprocessors);
}

Status mlp_round_weights(const MlpCuda& mlp, cudaStream_t stream) {
  return for_operand(mlp.operand, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if constexpr (std::is_same_v<T, float>) {
      return Status();
    } else {
      Launch how;
      how.grid = dim3(static_cast<unsigned>(ceil_div(mlp.layout.count, 1024)));
      how.block = dim3(256);
      how.stream = stream;
      return launch("mlp_round_weights", round_weights_kernel<T>, how, mlp.params, mlp.layout.count,
                    static_cast<T*>(mlp.operands));
    }
  });
}

Status mlp_layer_forward(const MlpCuda& mlp, int layer, const void* x, int64_t n, void* y, cudaStream_t stream) {
  return for_operand(mlp.operand, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const MlpLayout& layout = mlp.layout;
    GemmOperands p;
    p.a = x;
    p.b = weights_of<T>(mlp, layer);
    p.lda = p.ldb = static_cast<int>(layout.ld(layer));
    p.m = static_cast<int>(n);
    p.n = static_cast<int>(layout.shape.widths[layer + 1]);
    p.k = static_cast<int>(layout.shape.widths[layer]);
    if (layer + 1 == layout.shape.n_layers) {
      FloatEpilogue epilogue;
      epilogue.bias = mlp.bias(layer);
      epilogue.y = static_cast<float*>(y);
      epilogue.ld = layout.ld(layer + 1);
      return launch_product<ForwardTile<T>>("mlp_forward", p, epilogue, stream);
    }
    HiddenEpilogue<T> epilogue;
    epilogue.bias = mlp.bias(layer);
    epilogue.y = static_cast<T*>(y);
    epilogue.ld = layout.ld(layer + 1);
    return launch_product<ForwardTile<T>>("mlp_forward", p, epilogue, stream);
  });
}

Status mlp_layer_backward(const MlpCuda& mlp, int layer, const void* d_y, const void* x, int64_t n, void* d_x,
                          cudaStream_t stream) {
  return for_operand(mlp.operand, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const MlpLayout& layout = mlp.layout;
    GemmOperands p;
    p.a = d_y;
    p.b = weights_of<T>(mlp, layer);
    p.lda = static_cast<int>(layout.ld(layer + 1));
    p.ldb = static_cast<int>(layout.ld(layer));
    p.m = static_cast<int>(n);
    p.n = static_cast<int>(layout.shape.widths[layer]);
    p.k = static_cast<int>(layout.shape.widths[layer + 1]);
    if (!x) {
      FloatEpilogue epilogue;
      epilogue.bias = nullptr;
      epilogue.y = static_cast<float*>(d_x);
      epilogue.ld = layout.ld(layer);
      return launch_product<BackwardTile<T>>("mlp_backward", p, epilogue, stream);
    }
    MaskEpilogue<T> epilogue;
    epilogue.x = static_cast<const T*>(x);
    epilogue.d_x = static_cast<T*>(d_x);
    epilogue.ld = layout.ld(layer);
    return launch_product<BackwardTile<T>>("mlp_backward", p, epilogue, stream);
  });
}

Status mlp_weights_update(const MlpCuda& mlp, int layer, const void* d_y, const void* x, int64_t n,
                          const FitClock* clock, int offset, cudaStream_t stream) {
  return for_operand(mlp.operand, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const int64_t at = mlp.layout.weights_at[layer];
    AdamEpilogue<T> epilogue{
        {}, adam_state(mlp, at, clock, offset), static_cast<T*>(mlp.operands) + at, mlp.layout.ld(layer), {}};
    return weight_product<T>(mlp, layer, d_y, x, n, epilogue, stream);
  });
}

Status mlp_bias_update(const MlpCuda& mlp, int layer, const void* d_y, int64_t n, const FitClock* clock, int offset,
                       cudaStream_t stream) {
  return for_operand(mlp.operand, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    return bias_sums<T>(mlp, layer, d_y, n, adam_state(mlp, mlp.layout.bias_at[layer], clock, offset), nullptr, stream);
  });
}

Status mlp_layer_gradients(const MlpCuda& mlp, int layer, const void* d_y, const void* x, int64_t n, float* d_params,
                           cudaStream_t stream) {
  return for_operand(mlp.operand, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const AdamState none{mlp.constants, nullptr, nullptr, 0, nullptr, nullptr, nullptr};
    DVT_RETURN_IF_ERROR(bias_sums<T>(mlp, layer, d_y, n, none, d_params + mlp.layout.bias_at[layer], stream));
    FloatEpilogue epilogue;
    epilogue.bias = nullptr;
    epilogue.y = d_params + mlp.layout.weights_at[layer];
    epilogue.ld = mlp.layout.ld(layer);
    return weight_product<T>(mlp, layer, d_y, x, n, epilogue, stream);
  });
}

}  // namespace dvt::cuda
