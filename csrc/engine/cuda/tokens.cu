// A block a row; the row is in shared memory between the steps, and each thread only touches the values that it read,
// so that threads meet for sums alone. A row of 768 float32 channels is 3 KB to read and at most 3 + 1.5 KB to write:
// 1.2 MB and 1369 blocks for the stream of a frame of 37 x 37 patches, bound by latency.
#include "engine/cuda/tokens_cuda.h"

#include <algorithm>

#include "cuda/numeric.cuh"
#include "cuda/op_registry.h"
#include "cuda/ptx.cuh"
#include "cuda/runtime.h"
#include "engine/cuda/values.cuh"

namespace dvt::cuda {
namespace {

constexpr int kMaxThreads = 256, kMaxWarps = kMaxThreads / 32;

// Rows of patches for the kernel; `vectors`: whether channels lie in fours that are aligned.
struct PatchPointer {
  char* data;
  Dtype dtype;
  int64_t image, y, x, channel;
  bool vectors;
};

struct TokensArguments {
  int32_t tokens, dim, first_patch, patches, grid_width;
  PatchPointer source;
  const float* extra;
  RowNorm first;
  PatchPointer outputs[2];
  const float* positions;
  RowNorm second;
  float* x;
  int64_t x_stride;
  RowNorm third;
  void* normed;
  int64_t normed_stride;
  uint32_t *clear, *non_finite;
};

DVT_DEVICE int64_t offset_of(const PatchPointer& rows, int64_t image, int patch, int grid_width) {
  return image * rows.image + patch / grid_width * rows.y + patch % grid_width * rows.x;
}

// The sum over the block of a number each, in the same order in every thread. `parity` alternates from call to call, so
// that one barrier a call is enough.
DVT_DEVICE float block_sum(float value, float* scratch, int& parity) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  float* mine = scratch + parity * kMaxWarps;
  parity ^= 1;
  if (threadIdx.x % 32 == 0) mine[threadIdx.x / 32] = value;
  __syncthreads();
  float total = 0.0f;
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) total += mine[warp];
  return total;
}

// In two passes: squares of what is left after the mean do not cancel.
DVT_DEVICE void normalise_row(const RowNorm& norm, int dim, float* row, float* scratch, int& parity) {
  if (norm.kind == RowNorm::kNone) return;
  const int first = static_cast<int>(threadIdx.x) * 4, step = static_cast<int>(blockDim.x) * 4;
  const float count = static_cast<float>(dim);
  float mean = 0.0f;
  if (norm.kind == RowNorm::kLayer) {
    float sum = 0.0f;
    for (int c = first; c < dim; c += step) {
      const float4 v = *reinterpret_cast<const float4*>(row + c);  // zeros after dim
      sum += (v.x + v.y) + (v.z + v.w);
    }
    mean = block_sum(sum, scratch, parity) / count;
  }
  float squares = 0.0f;
  for (int c = first; c < dim; c += step)
    for (int i = 0; i < 4; ++i) {
      const float v = c + i < dim ? row[c + i] - mean : 0.0f;
      squares += v * v;
    }
  const float scale = 1.0f / sqrtf(block_sum(squares, scratch, parity) / count + norm.eps);
  for (int c = first; c < dim; c += step)
    for (int i = 0; i < 4 && c + i < dim; ++i) {
      float v = (row[c + i] - mean) * scale;
      if (norm.weight) v *= norm.weight[c + i];
      if (norm.bias) v += norm.bias[c + i];
      row[c + i] = v;
    }
}

// T: of `normed`. Grid: (tokens, batch).
template <class T>
__global__ void __launch_bounds__(kMaxThreads) tokens_kernel(TokensArguments call) {
  float* row = reinterpret_cast<float*>(ptx::shared_memory());
  float* scratch = row + (call.dim + 3) / 4 * 4;
  const int token = static_cast<int>(blockIdx.x), patch = token - call.first_patch, dim = call.dim;
  const int64_t image = blockIdx.y, index = image * call.tokens + token;
  const bool is_patch = patch >= 0 && patch < call.patches;
  const int first = static_cast<int>(threadIdx.x) * 4, step = static_cast<int>(blockDim.x) * 4;
  int parity = 0;
  ptx::allow_next();
  ptx::wait_for_previous();
  if (call.clear && token == 0 && image == 0 && threadIdx.x == 0) *call.clear = 0;

  if (is_patch) {
    const int64_t offset = offset_of(call.source, image, patch, call.grid_width);
    for (int c = first; c < dim; c += step)
      *reinterpret_cast<float4*>(row + c) =
          load_values(call.source.data, call.source.dtype, offset, call.source.channel, c, dim, call.source.vectors);
  } else {
    const float* extra = call.extra + (call.first_patch > 0 ? token : token - call.patches) * ((dim + 3) / 4 * 4);
    for (int c = first; c < dim; c += step)
      *reinterpret_cast<float4*>(row + c) = *reinterpret_cast<const float4*>(extra + c);
  }
  if (is_patch) {
    normalise_row(call.first, dim, row, scratch, parity);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const PatchPointer& out = call.outputs[i];
      if (!out.data) continue;
      const int64_t offset = offset_of(out, image, patch, call.grid_width);
      bool finite = true;
      for (int c = first; c < dim; c += step)
        finite &= store_values(out.data, out.dtype, offset, out.channel, c, dim, out.vectors,
                               *reinterpret_cast<const float4*>(row + c));
      if (!finite && call.non_finite) atomicOr(call.non_finite, 1u);
    }
    if (call.positions) {
      const float* positions = call.positions + static_cast<int64_t>(patch) * ((dim + 3) / 4 * 4);
      for (int c = first; c < dim; c += step) {
        float4 v = *reinterpret_cast<const float4*>(row + c);
        const float4 p = *reinterpret_cast<const float4*>(positions + c);
        v.x += p.x, v.y += p.y, v.z += p.z, v.w += p.w;
        *reinterpret_cast<float4*>(row + c) = v;
      }
    }
  }
  normalise_row(call.second, dim, row, scratch, parity);
  if (call.x)
    for (int c = first; c < dim; c += step)
      *reinterpret_cast<float4*>(call.x + index * call.x_stride + c) = *reinterpret_cast<const float4*>(row + c);
  if (!call.normed) return;
  normalise_row(call.third, dim, row, scratch, parity);
  T* normed = static_cast<T*>(call.normed) + index * call.normed_stride;
  for (int64_t c = first; c < call.normed_stride; c += step) {
    const float4 v = c < dim ? *reinterpret_cast<const float4*>(row + c) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    store_four(normed + c, v);
  }
}

PatchPointer pointer_to(const PatchRows& rows) {
  PatchPointer p = {static_cast<char*>(rows.data), rows.dtype, rows.image, rows.y, rows.x, rows.channel, false};
  const int64_t size = size_of(rows.dtype), four = 4 * size;
  p.vectors = rows.channel == 1 && reinterpret_cast<uintptr_t>(rows.data) % static_cast<uintptr_t>(four) == 0 &&
              rows.image % 4 == 0 && rows.y % 4 == 0 && rows.x % 4 == 0;
  return p;
}

}  // namespace

Status tokens_forward(const TokensCall& call) {
  if (call.dim < 1 || call.dim > kMaxRow)
    return Status(StatusCode::unsupported,
                  format("on a device rows must have from 1 to ", kMaxRow, " channels, got ", call.dim));
  if (call.tokens < 1 || call.tokens > INT32_MAX || call.batch < 1 || call.batch > 65535)
    return invalid_argument("tokens must be from 1 to ", INT32_MAX, " and batch from 1 to 65535, got ", call.tokens,
                            " and ", call.batch);
  TokensArguments arguments;
  arguments.tokens = static_cast<int32_t>(call.tokens);
  arguments.dim = static_cast<int32_t>(call.dim);
  arguments.first_patch = static_cast<int32_t>(call.first_patch);
  arguments.patches = static_cast<int32_t>(call.patches);
  arguments.grid_width = static_cast<int32_t>(call.grid_width);
  arguments.source = pointer_to(call.source);
  arguments.extra = call.extra;
  arguments.first = call.first;
  for (int i = 0; i < 2; ++i) arguments.outputs[i] = pointer_to(call.outputs[i]);
  arguments.positions = call.positions;
  arguments.second = call.second;
  arguments.x = call.x;
  arguments.x_stride = call.x_stride;
  arguments.third = call.third;
  arguments.normed = call.normed;
  arguments.normed_stride = call.normed_stride;
  arguments.clear = call.clear;
  arguments.non_finite = call.non_finite;
  Launch how;
  how.grid = dim3(static_cast<unsigned>(call.tokens), static_cast<unsigned>(call.batch));
  how.block = dim3(static_cast<unsigned>(std::clamp<int64_t>(round_up(ceil_div(call.dim, 4), 32), 32, kMaxThreads)));
  how.shared_bytes = sizeof(float) * static_cast<size_t>(row_floats(call.dim) + 2 * kMaxWarps);
  how.stream = call.stream;
  how.overlap = call.overlap;
  switch (call.type) {
    case EngineCompute::float32: return launch("tokens", tokens_kernel<float>, how, arguments);
    case EngineCompute::tf32: return launch("tokens", tokens_kernel<tf32>, how, arguments);
    case EngineCompute::float16: return launch("tokens", tokens_kernel<f16>, how, arguments);
    case EngineCompute::bfloat16: return launch("tokens", tokens_kernel<bf16>, how, arguments);
  }
  return Status(StatusCode::internal, "tokens of an unknown type");
}

}  // namespace dvt::cuda
