// A warp takes a row: one pass for the sums, which leaves the row in L1, and one for the gradients.
//
// Bytes a step, N = 2,048, C = 768: F, G's rows and float16 features 16 MB, in the second phase h 6 MB more; gradients
// of tf32 6 MB, or 12. Nearly all of it lies in L2.
#include "cuda/op_registry.h"
#include "cuda/runtime.h"
#include "field/features/batch.cuh"
#include "field/loss/loss_cuda.h"

namespace dvt::cuda {
namespace {

constexpr int kThreads = 256;

DVT_DEVICE float warp_sum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step >>= 1) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

// Four channels of a row: base = F + G, h, and the raw feature; zero beyond the last channel.
struct Quad {
  float base[4], h[4], raw[4];
};
template <class T, bool kResidual>
DVT_DEVICE Quad load_quad(const float* field, const float* artifacts, const float* residual, const T* raw, int64_t c,
                          int64_t channels, bool whole) {
  Quad q;
  const float4 f = *reinterpret_cast<const float4*>(field + c), g = *reinterpret_cast<const float4*>(artifacts + c);
  const float4 y = load_features(raw, c, channels, whole);
  float4 h = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if constexpr (kResidual) h = *reinterpret_cast<const float4*>(residual + c);
  q.base[0] = f.x + g.x, q.base[1] = f.y + g.y, q.base[2] = f.z + g.z, q.base[3] = f.w + g.w;
  q.h[0] = h.x, q.h[1] = h.y, q.h[2] = h.z, q.h[3] = h.w;
  q.raw[0] = y.x, q.raw[1] = y.y, q.raw[2] = y.z, q.raw[3] = y.w;
#pragma unroll
  for (int k = 0; k < 4; ++k)
    if (c + k >= channels) q.base[k] = q.h[k] = 0.0f;  // rows are padded with anything
  return q;
}

template <class T, class Out, bool kResidual>
__global__ void __launch_bounds__(kThreads, 3) loss_kernel(LossCall call, Bank bank, bool whole) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (i >= call.n) return;  // whole warps
  const int64_t channels = bank.channels, start = 4 * ptx::lane_id();
  const float* field = call.field + i * call.ld;
  const float* artifacts = call.artifacts + call.patch[i] * call.ld;
  const float* residual = kResidual ? call.residual + i * call.ld : nullptr;
  const T* raw = static_cast<const T*>(bank.features) + call.rows[i] * channels;

  float error = 0, dot = 0, x_square = 0, y_square = 0, residual_error = 0, residual_size = 0;
  for (int64_t c = start; c < channels; c += 128) {
    const Quad q = load_quad<T, kResidual>(field, artifacts, residual, raw, c, channels, whole);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float y = q.raw[k], x = q.base[k] + q.h[k];
      if constexpr (kResidual) {
        const float e = q.h[k] - (y - q.base[k]);
        residual_error = fmaf(e, e, residual_error);
        residual_size += fabsf(q.h[k]);
      }
      error = fmaf(x - y, x - y, error);
      dot = fmaf(x, y, dot);
      x_square = fmaf(x, x, x_square);
      y_square = fmaf(y, y, y_square);
    }
  }
  error = warp_sum(error), dot = warp_sum(dot), x_square = warp_sum(x_square), y_square = warp_sum(y_square);
  if constexpr (kResidual) residual_error = warp_sum(residual_error), residual_size = warp_sum(residual_size);

  const float per_channel = 1.0f / static_cast<float>(channels);
  const float x_norm = __fsqrt_rn(x_square), y_norm = __fsqrt_rn(y_square);
  const float x_length = fmaxf(x_norm, kCosineEps), y_length = fmaxf(y_norm, kCosineEps);
  const float per_lengths = __fdiv_rn(1.0f, x_length * y_length), cosine = dot * per_lengths;
  if (ptx::lane_id() == 0)
    *reinterpret_cast<float4*>(call.row_losses + 4 * i) =
        make_float4(error * per_channel, 1.0f - cosine, residual_error * per_channel, residual_size * per_channel);

  // d(1 - cos)/dx = cos x / |x|^2 - y / (|x| |y|); below the floor |x| does not move.
  const float unit = call.weights.scale / static_cast<float>(call.n);
  const float d_error = 2.0f * per_channel * unit;
  const float d_x = x_norm > kCosineEps ? __fdiv_rn(cosine, x_length * x_length) * unit : 0.0f;
  const float d_y = -unit * per_lengths;
  const float d_residual_error = call.weights.residual_mse * 2.0f * per_channel * unit;
  const float d_residual_size = call.weights.residual_l1 * per_channel * unit;
  for (int64_t c = start; c < call.ld; c += 128) {
    float d_base[4] = {}, d_h[4] = {};
    if (c < channels) {
      const Quad q = load_quad<T, kResidual>(field, artifacts, residual, raw, c, channels, whole);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float y = q.raw[k], x = q.base[k] + q.h[k];
        d_base[k] = fmaf(d_error, x - y, fmaf(d_x, x, d_y * y));
        if constexpr (kResidual) {
          const float sign = q.h[k] > 0.0f ? d_residual_size : (q.h[k] < 0.0f ? -d_residual_size : 0.0f);
          d_h[k] = fmaf(d_residual_error, q.h[k] - (y - q.base[k]), sign);
        }
      }
    }
    const int64_t at = i * call.ld + c;
    const float4 d = make_float4(d_base[0], d_base[1], d_base[2], d_base[3]);
    store_operands(static_cast<Out*>(call.d_base) + at, d);
    if (call.d_base_float) *reinterpret_cast<float4*>(call.d_base_float + at) = d;
    if constexpr (kResidual)
      store_operands(static_cast<Out*>(call.d_residual) + at, make_float4(d_h[0], d_h[1], d_h[2], d_h[3]));
  }
}

// One block.
__global__ void __launch_bounds__(kThreads)
    loss_sum_kernel(LossWeights weights, const float* row_losses, int64_t n, const FitClock* clock, int offset,
                    float* history, FitStatus* status) {
  double* sums = &ptx::shared<double>();  // [4][kThreads]
  const int t = static_cast<int>(threadIdx.x);
  double mine[4] = {};
  for (int64_t i = t; i < n; i += kThreads) {
    const float4 row = *reinterpret_cast<const float4*>(row_losses + 4 * i);
    mine[0] += static_cast<double>(row.x), mine[1] += static_cast<double>(row.y);
    mine[2] += static_cast<double>(row.z), mine[3] += static_cast<double>(row.w);
  }
  for (int k = 0; k < 4; ++k) sums[k * kThreads + t] = mine[k];
  for (int width = kThreads / 2; width > 0; width /= 2) {
    __syncthreads();
    if (t < width)
      for (int k = 0; k < 4; ++k) sums[k * kThreads + t] += sums[k * kThreads + t + width];
  }
  if (t != 0) return;
  const double count = static_cast<double>(n);
  status->mse = sums[0] / count;
  status->cosine = sums[kThreads] / count;
  status->residual_mse = sums[2 * kThreads] / count;
  status->residual_l1 = sums[3 * kThreads] / count;
  const double total = status->mse + status->cosine + static_cast<double>(weights.residual_mse) * status->residual_mse +
                       static_cast<double>(weights.residual_l1) * status->residual_l1;
  const int32_t step = clock ? clock->step + offset : 0;
  history[step] = static_cast<float>(total);
  if (!(fabs(total) <= 1.7976931348623157e308) && status->bad_step == 0) {
    status->bad_step = step + 1;
    status->bad_loss = total;
  }
}

}  // namespace

Status loss_forward_backward(const LossCall& call, const Bank& bank, cudaStream_t stream) {
  if (call.ld % 8 != 0 || call.ld < bank.channels)
    return invalid_argument("rows of the losses' arrays must have a multiple of 8 columns, at least ", bank.channels,
                            ", got ", call.ld);
  Launch how;
  how.grid = dim3(static_cast<unsigned>(ceil_div(call.n, kThreads / 32)));
  how.block = dim3(kThreads);
  how.stream = stream;
  return for_dtype(bank.dtype, [&](auto* type) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    const bool whole = bank.channels % 4 == 0 && reinterpret_cast<uintptr_t>(bank.features) % (4 * sizeof(T)) == 0;
    return for_operand(call.operand, [&](auto* out_type) {
      using Out = std::remove_pointer_t<decltype(out_type)>;
      return launch("loss", call.residual ? loss_kernel<T, Out, true> : loss_kernel<T, Out, false>, how, call, bank,
                    whole);
    });
  });
}

Status loss_sum(const LossWeights& weights, const float* row_losses, int64_t n, const FitClock* clock, int offset,
                float* history, FitStatus* status, cudaStream_t stream) {
  Launch how;
  how.grid = dim3(1);
  how.block = dim3(kThreads);
  how.shared_bytes = 4 * kThreads * sizeof(double);
  how.stream = stream;
  return launch("loss_sum", loss_sum_kernel, how, weights, row_losses, n, clock, offset, history, status);
}

namespace {

// field, artifacts (and residual, for the second phase) [N, ld], features [rows, C], rows [N], patch [N] -> d_base (and
// d_residual) [N, ld] as words["operand"], row_losses [N, 4], losses [4] double by way of status [6].
Status loss_op(OpCall& call) {
  const OpTensor *field, *artifacts, *residual = nullptr, *features, *rows, *patch, *row_losses, *status, *history,
                                     *d_base, *d_base_float, *d_residual = nullptr;
  DVT_RETURN_IF_ERROR(call.tensor("field", OpType::float32, &field));
  DVT_RETURN_IF_ERROR(call.tensor("artifacts", OpType::float32, &artifacts));
  DVT_RETURN_IF_ERROR(call.tensor("features", OpType::float32, &features));
  DVT_RETURN_IF_ERROR(call.tensor("rows", OpType::int64, &rows));
  DVT_RETURN_IF_ERROR(call.tensor("patch", OpType::int32, &patch));
  DVT_RETURN_IF_ERROR(call.tensor("row_losses", OpType::float32, &row_losses));
  DVT_RETURN_IF_ERROR(call.tensor("status", OpType::float64, &status));
  DVT_RETURN_IF_ERROR(call.tensor("history", OpType::float32, &history));
  DVT_RETURN_IF_ERROR(call.tensor("d_base_float", OpType::float32, &d_base_float));
  LossCall loss;
  DVT_RETURN_IF_ERROR(operand_of(call.word("operand", "float32"), &loss.operand));
  const OpType stored = loss.operand == Operand::bf16 ? OpType::bfloat16 : OpType::float32;
  DVT_RETURN_IF_ERROR(call.tensor("d_base", stored, &d_base));
  if (call.has("residual")) {
    DVT_RETURN_IF_ERROR(call.tensor("residual", OpType::float32, &residual));
    DVT_RETURN_IF_ERROR(call.tensor("d_residual", stored, &d_residual));
    loss.residual = residual->as<float>();
    loss.d_residual = d_residual->data;
  }
  loss.weights = {static_cast<float>(call.number("residual_mse", 0.1)),
                  static_cast<float>(call.number("residual_l1", 0.02)), static_cast<float>(call.number("scale", 1))};
  loss.n = field->shape[0];
  loss.ld = field->shape[1];
  loss.field = field->as<float>();
  loss.artifacts = artifacts->as<float>();
  loss.rows = rows->as<int64_t>();
  loss.patch = patch->as<int32_t>();
  loss.row_losses = row_losses->as<float>();
  loss.d_base = d_base->data;
  loss.d_base_float = d_base_float->as<float>();
  Bank bank;
  bank.features = features->data;
  bank.rows = features->shape[0];
  bank.channels = features->shape[1];
  const auto stream = static_cast<cudaStream_t>(call.stream);
  DVT_RETURN_IF_ERROR(loss_forward_backward(loss, bank, stream));
  return loss_sum(loss.weights, loss.row_losses, loss.n, nullptr, 0, history->as<float>(), status->as<FitStatus>(),
                  stream);
}

}  // namespace

DVT_CUDA_OP("hashgrid_loss", loss_op)

}  // namespace dvt::cuda
