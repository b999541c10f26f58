// One row of the losses, one instruction set a compilation: a pass for the sums, a pass for the gradients.
#include "core/simd.h"
#include "field/loss/loss.h"

namespace dvt {
namespace DVT_ISA {
namespace {

template <bool kResidual>
void row_of(const LossWeights& weights, float unit, const float* base, const float* residual, const float* raw,
            int64_t channels, float* sums, float* d_base, float* d_residual) {
  const auto read = [](const float* p, int64_t i, int lanes) {
    return lanes == kLanes ? load(p + i) : load_partial(p + i, lanes);
  };
  vfloat error = {}, dot = {}, x_square = {}, y_square = {}, residual_error = {}, residual_size = {};
  for (int64_t i = 0; i < channels; i += kLanes) {
    const int lanes = channels - i < kLanes ? static_cast<int>(channels - i) : kLanes;
    const vfloat b = read(base, i, lanes), y = read(raw, i, lanes);
    vfloat x = b;
    if (kResidual) {
      const vfloat h = read(residual, i, lanes), e = h - (y - b);
      residual_error += e * e;
      residual_size += h < 0.0f ? -h : h;
      x += h;
    }
    error += (x - y) * (x - y);
    dot += x * y;
    x_square += x * x;
    y_square += y * y;
  }
  const float per_channel = 1.0f / static_cast<float>(channels);
  const float x_norm = __builtin_sqrtf(sum(x_square)), y_norm = __builtin_sqrtf(sum(y_square));
  const float x_length = x_norm > kCosineEps ? x_norm : kCosineEps,
              y_length = y_norm > kCosineEps ? y_norm : kCosineEps;
  const float cosine = sum(dot) / (x_length * y_length);
  sums[0] = sum(error) * per_channel;
  sums[1] = 1.0f - cosine;
  sums[2] = sum(residual_error) * per_channel;
  sums[3] = sum(residual_size) * per_channel;

  // d(1 - cos)/dx = cos x / |x|^2 - y / (|x| |y|); below the floor |x| does not move.
  const float d_error = 2.0f * per_channel * unit;
  const float d_x = x_norm > kCosineEps ? cosine / (x_length * x_length) * unit : 0.0f;
  const float d_y = -unit / (x_length * y_length);
  const float d_residual_error = weights.residual_mse * 2.0f * per_channel * unit;
  const float d_residual_size = weights.residual_l1 * per_channel * unit;
  const auto write = [](float* p, int64_t i, int lanes, vfloat v) {
    if (lanes == kLanes)
      store(p + i, v);
    else
      store_partial(p + i, v, lanes);
  };
  for (int64_t i = 0; i < channels; i += kLanes) {
    const int lanes = channels - i < kLanes ? static_cast<int>(channels - i) : kLanes;
    const vfloat b = read(base, i, lanes), y = read(raw, i, lanes);
    vfloat x = b;
    if (kResidual) {
      const vfloat h = read(residual, i, lanes);
      const vfloat size = broadcast(d_residual_size), none = {};
      const vfloat sign = h > 0.0f ? size : (h < 0.0f ? -size : none);
      write(d_residual, i, lanes, d_residual_error * (h - (y - b)) + sign);
      x += h;
    }
    write(d_base, i, lanes, d_error * (x - y) + (d_x * x + d_y * y));
  }
}

void row(const LossWeights& weights, float unit, const float* base, const float* residual, const float* raw,
         int64_t channels, float* sums, float* d_base, float* d_residual) {
  (residual ? row_of<true> : row_of<false>)(weights, unit, base, residual, raw, channels, sums, d_base, d_residual);
}

}  // namespace

const LossKernels loss_kernels = {row};

}  // namespace DVT_ISA
}  // namespace dvt
