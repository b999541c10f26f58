// Queries and keys: a warp a head of a token, whose channels are in the lanes (channel lane + 32 i), so that sums are
// shuffles; a pair of channels meets in shared memory. Rows between two products: a block a row, read three times,
// twice of it from the first cache.
#include "engine/cuda/inner_norms_cuda.h"

#include "cuda/numeric.cuh"
#include "cuda/ptx.cuh"
#include "cuda/runtime.h"

namespace dvt::cuda {
namespace {

constexpr int kWarps = 4, kPerLane = 4;  // channels of a head that a lane has: heads of up to 128
constexpr int kThreads = 256;

struct QueriesKeysArguments {
  int32_t tokens, heads, head_dim, padded_dim, first_patch, patches;
  int64_t rows;  // heads of all queries and keys
  void* qkv;
  int64_t stride;
  RowNorm q_norm, k_norm;
  const float *cos, *sin;
  bool neighbours;
};

DVT_DEVICE float warp_sum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

DVT_DEVICE void normalise_head(const RowNorm& norm, int dim, float (&v)[kPerLane]) {
  const int lane = static_cast<int>(ptx::lane_id());
  const float count = static_cast<float>(dim);
  float mean = 0.0f;
  if (norm.kind == RowNorm::kLayer) mean = warp_sum((v[0] + v[1]) + (v[2] + v[3])) / count;
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i)
    if (lane + 32 * i < dim) squares += (v[i] - mean) * (v[i] - mean);
  const float scale = 1.0f / sqrtf(warp_sum(squares) / count + norm.eps);
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int c = lane + 32 * i;
    if (c >= dim) continue;
    v[i] = (v[i] - mean) * scale;
    if (norm.weight) v[i] *= norm.weight[c];
    if (norm.bias) v[i] += norm.bias[c];
  }
}

template <class T>
__global__ void __launch_bounds__(32 * kWarps) queries_keys_kernel(QueriesKeysArguments call) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(ptx::lane_id());
  float* row = reinterpret_cast<float*>(ptx::shared_memory()) + warp * 32 * kPerLane;
  ptx::allow_next();
  ptx::wait_for_previous();
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  if (index >= call.rows) return;  // the whole warp
  const int64_t token = index / (2 * call.heads);
  const int head = static_cast<int>(index % (2 * call.heads)), dim = call.head_dim;
  T* at = static_cast<T*>(call.qkv) + token * call.stride + static_cast<int64_t>(head) * call.padded_dim;
  float v[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) v[i] = lane + 32 * i < dim ? to_float(at[lane + 32 * i]) : 0.0f;
  RowNorm norm = call.q_norm;  // not by reference, for which all arguments would go to local memory
  if (head >= call.heads) norm = call.k_norm;
  if (norm.kind != RowNorm::kNone) normalise_head(norm, dim, v);
  const int patch = static_cast<int>(token % call.tokens) - call.first_patch;
  if (call.cos && patch >= 0 && patch < call.patches) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) row[lane + 32 * i] = v[i];
    __syncwarp();
    const int pairs = dim / 2, step = call.neighbours ? 2 : 1, distance = call.neighbours ? 1 : pairs;
    const float *cos = call.cos + static_cast<int64_t>(patch) * pairs,
                *sin = call.sin + static_cast<int64_t>(patch) * pairs;
    for (int j = lane; j < pairs; j += 32) {
      const float a = row[j * step], b = row[j * step + distance];
      at[j * step] = from_float<T>(a * cos[j] - b * sin[j]);
      at[j * step + distance] = from_float<T>(b * cos[j] + a * sin[j]);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kPerLane; ++i)
    if (lane + 32 * i < dim) at[lane + 32 * i] = from_float<T>(v[i]);
}

struct InnerNormArguments {
  int32_t groups, group, group_stride;
  void* x;
  int64_t stride;
  RowNorm norm;
};

// In every thread; `scratch` has a place for each warp.
DVT_DEVICE float block_total(float value, float* scratch) {
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  float total = 0.0f;
  for (int warp = 0; warp < kThreads / 32; ++warp) total += scratch[warp];
  __syncthreads();
  return total;
}

template <class T>
__global__ void __launch_bounds__(kThreads) inner_norm_kernel(InnerNormArguments call) {
  float* scratch = reinterpret_cast<float*>(ptx::shared_memory());
  ptx::allow_next();
  ptx::wait_for_previous();
  T* row = static_cast<T*>(call.x) + static_cast<int64_t>(blockIdx.x) * call.stride;
  const int length = call.groups * call.group_stride;
  const auto is_value = [&](int c) { return c % call.group_stride < call.group; };
  const float count = static_cast<float>(call.groups * call.group);
  float mean = 0.0f;
  if (call.norm.kind == RowNorm::kLayer) {
    float sum = 0.0f;
    for (int c = static_cast<int>(threadIdx.x); c < length; c += kThreads)
      if (is_value(c)) sum += to_float(row[c]);
    mean = block_total(sum, scratch) / count;
  }
  float squares = 0.0f;
  for (int c = static_cast<int>(threadIdx.x); c < length; c += kThreads)
    if (is_value(c)) {
      const float v = to_float(row[c]) - mean;
      squares += v * v;
    }
  const float scale = 1.0f / sqrtf(block_total(squares, scratch) / count + call.norm.eps);
  for (int c = static_cast<int>(threadIdx.x); c < length; c += kThreads)
    if (is_value(c)) row[c] = from_float<T>((to_float(row[c]) - mean) * scale);
}

}  // namespace

Status queries_keys_forward(const QueriesKeysCall& call) {
  if (call.head_dim < 1 || call.head_dim > 32 * kPerLane)
    return invalid_argument("queries and keys must have heads of 1 to ", 32 * kPerLane, " channels, got ",
                            call.head_dim);
  QueriesKeysArguments arguments;
  arguments.tokens = static_cast<int32_t>(call.tokens);
  arguments.heads = static_cast<int32_t>(call.heads);
  arguments.head_dim = static_cast<int32_t>(call.head_dim);
  arguments.padded_dim = static_cast<int32_t>(call.padded_dim);
  arguments.first_patch = static_cast<int32_t>(call.first_patch);
  arguments.patches = static_cast<int32_t>(call.patches);
  arguments.rows = call.batch * call.tokens * 2 * call.heads;
  arguments.qkv = call.qkv;
  arguments.stride = call.stride;
  arguments.q_norm = call.q_norm;
  arguments.k_norm = call.k_norm;
  arguments.cos = call.cos;
  arguments.sin = call.sin;
  arguments.neighbours = call.neighbours;
  const int64_t blocks = ceil_div(arguments.rows, kWarps);
  if (blocks > INT32_MAX) return invalid_argument("queries and keys must be fewer than 2^33, got ", arguments.rows);
  Launch how;
  how.grid = dim3(static_cast<unsigned>(blocks));
  how.block = dim3(32 * kWarps);
  how.shared_bytes = sizeof(float) * 32 * kPerLane * kWarps;
  how.stream = call.stream;
  how.overlap = call.overlap;
  switch (call.type) {
    case EngineCompute::float32: return launch("queries and keys", queries_keys_kernel<float>, how, arguments);
    case EngineCompute::tf32: return launch("queries and keys", queries_keys_kernel<tf32>, how, arguments);
    case EngineCompute::float16: return launch("queries and keys", queries_keys_kernel<f16>, how, arguments);
    case EngineCompute::bfloat16: return launch("queries and keys", queries_keys_kernel<bf16>, how, arguments);
  }
  return Status(StatusCode::internal, "queries of an unknown type");
}

Status inner_norm_forward(const InnerNormCall& call) {
  if (call.rows < 1 || call.rows > INT32_MAX || call.groups * call.group_stride > INT32_MAX)
    return invalid_argument("a norm of ", call.rows, " rows of ", call.groups * call.group, " values is too large");
  InnerNormArguments arguments;
  arguments.groups = static_cast<int32_t>(call.groups);
  arguments.group = static_cast<int32_t>(call.group);
  arguments.group_stride = static_cast<int32_t>(call.group_stride);
  arguments.x = call.x;
  arguments.stride = call.stride;
  arguments.norm = call.norm;
  Launch how;
  how.grid = dim3(static_cast<unsigned>(call.rows));
  how.block = dim3(kThreads);
  how.shared_bytes = sizeof(float) * kThreads / 32;
  how.stream = call.stream;
  how.overlap = call.overlap;
  switch (call.type) {
    case EngineCompute::float32: return launch("inner norm", inner_norm_kernel<float>, how, arguments);
    case EngineCompute::tf32: return launch("inner norm", inner_norm_kernel<tf32>, how, arguments);
    case EngineCompute::float16: return launch("inner norm", inner_norm_kernel<f16>, how, arguments);
    case EngineCompute::bfloat16: return launch("inner norm", inner_norm_kernel<bf16>, how, arguments);
  }
  return Status(StatusCode::internal, "a norm of an unknown type");
}

}  // namespace dvt::cuda
