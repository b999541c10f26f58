// Between [rows, channels], as features come and results go, and channel-major vectors; the contract is in direct_cg.h.
// Tiles of 32 x 32 through shared memory: 16 bytes of traffic a number at most.
#include "field/bilinear_grid/bilinear_device.cuh"
#include "field/direct_solver/direct_cg.h"

namespace dvt::cuda {
namespace {

constexpr int kTile = 32, kRowsAtOnce = 8;
constexpr float kLargestSplit = 16;

__global__ void to_channels_kernel(int64_t rows, int64_t channels, int64_t stride, const float* in, const float* scale,
                                   bool invert_scale, const float* subtract, float* out) {
  float* tile = &ptx::shared<float>();  // [kTile][kTile + 1]
  const int lane = threadIdx.x % 32, group = threadIdx.x / 32;
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * kTile, channel0 = static_cast<int64_t>(blockIdx.y) * kTile;
  for (int r = group; r < kTile; r += kRowsAtOnce)
    if (row0 + r < rows && channel0 + lane < channels)
      tile[r * (kTile + 1) + lane] = in[(row0 + r) * channels + channel0 + lane];
  __syncthreads();
  const int64_t row = row0 + lane;
  if (row >= rows) return;
  float factor = scale ? scale[row] : 1.0f;
  if (invert_scale) factor = 1 / factor;
  for (int k = group; k < kTile; k += kRowsAtOnce) {
    const int64_t channel = channel0 + k;
    if (channel >= channels) continue;
    const float value = tile[lane * (kTile + 1) + k] * factor;
    out[channel * stride + row] = subtract ? value - subtract[channel * stride + row] : value;
  }
}

__global__ void from_channels_kernel(int64_t rows, int64_t channels, int64_t stride, const float* in,
                                     const float* scale, const float* channel_scale, float* out) {
  float* tile = &ptx::shared<float>();
  const int lane = threadIdx.x % 32, group = threadIdx.x / 32;
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * kTile, channel0 = static_cast<int64_t>(blockIdx.y) * kTile;
  for (int k = group; k < kTile; k += kRowsAtOnce)
    if (row0 + lane < rows && channel0 + k < channels)
      tile[k * (kTile + 1) + lane] = in[(channel0 + k) * stride + row0 + lane];
  __syncthreads();
  if (channel0 + lane >= channels) return;
  const float factor = channel_scale ? channel_scale[channel0 + lane] : 1.0f;
  for (int r = group; r < kTile; r += kRowsAtOnce)
    if (row0 + r < rows)
      out[(row0 + r) * channels + channel0 + lane] =
          tile[lane * (kTile + 1) + r] * (scale ? scale[row0 + r] * factor : factor);
}

__global__ void split_channels_kernel(int64_t stride, const float* in, f16* high, f16* low, float* scale) {
  float* largest = &ptx::shared<float>();
  const int64_t at = blockIdx.x * stride;
  float m = 0;
  for (int64_t i = threadIdx.x; i < stride; i += blockDim.x) m = fmaxf(m, fabsf(in[at + i]));
  for (int step = 16; step > 0; step /= 2) m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, step));
  if (threadIdx.x % 32 == 0) largest[threadIdx.x / 32] = m;
  __syncthreads();
  m = 0;
  for (int w = 0; w < static_cast<int>(blockDim.x / 32); ++w) m = fmaxf(m, largest[w]);
  float factor = 1;
  if (m > 0 && m < 3e38f) factor = fmaxf(__uint_as_float(__float_as_uint(m) & 0x7f800000u) / kLargestSplit, 1e-37f);
  if (threadIdx.x == 0) scale[blockIdx.x] = factor;
  factor = 1 / factor;
  for (int64_t i = threadIdx.x; i < stride; i += blockDim.x) {
    const float value = in[at + i] * factor;
    high[at + i] = from_float<f16>(value);
    low[at + i] = from_float<f16>(value - to_float(high[at + i]));
  }
}

Launch tiles(int64_t rows, int64_t channels, cudaStream_t stream) {
  return {dim3(static_cast<unsigned>(ceil_div(rows, kTile)), static_cast<unsigned>(ceil_div(channels, kTile))),
          32 * kRowsAtOnce, sizeof(float) * kTile * (kTile + 1), stream};
}

}  // namespace

Status to_channels(int64_t rows, int64_t channels, int64_t stride, const float* in, const float* scale,
                   bool invert_scale, const float* subtract, float* out, cudaStream_t stream) {
  return launch("to channel-major", to_channels_kernel, tiles(rows, channels, stream), rows, channels, stride, in,
                scale, invert_scale, subtract, out);
}

Status from_channels(int64_t rows, int64_t channels, int64_t stride, const float* in, const float* scale,
                     const float* channel_scale, float* out, cudaStream_t stream) {
  return launch("from channel-major", from_channels_kernel, tiles(rows, channels, stream), rows, channels, stride, in,
                scale, channel_scale, out);
}

Status split_channels(int64_t channels, int64_t stride, const float* in, uint16_t* high, uint16_t* low, float* scale,
                      cudaStream_t stream) {
  return launch("split of channels", split_channels_kernel,
                {dim3(static_cast<unsigned>(channels)), 256, 8 * sizeof(float), stream}, stride, in,
                reinterpret_cast<f16*>(high), reinterpret_cast<f16*>(low), scale);
}

}  // namespace dvt::cuda
