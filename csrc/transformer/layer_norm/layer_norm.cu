// y = (x - mean) / sqrt(variance + eps) a row, or x / sqrt(mean square + eps), times a weight and plus a bias where
// those are not packed into the product that follows.
//
// A row lives in the registers of one warp (up to 1024 channels) or of 2, 4 or 8: it is read once, all of its loads
// under way together, and squares are taken of what is left after the mean, so that nothing cancels. Bytes: 4 rows dim
// read, 2 rows dim written for 16 bits; 6.3 MB for 1369 rows of 768, so latency decides: one trip to memory, two sums
// by shuffles (each 5 steps; with several warps a barrier more).
#include "transformer/layer_norm/layer_norm_cuda.h"

#include "cuda/op_registry.h"
#include "cuda/runtime.h"
#include "cuda/vectors.cuh"

namespace dvt::cuda {
namespace {

constexpr int kVectors = 8;       // of four numbers, a lane
constexpr int kWarpsOfBlock = 4;  // where a row is a warp's
constexpr int kRowOfWarp = 32 * 4 * kVectors;

struct NormArguments {
  const void* x;
  void* y;
  int64_t x_stride, y_stride;
  const float *weight, *bias;
  int rows, dim;
  float eps;
  bool centred, scaled;  // layer: both; rms: scaled; none: neither
  bool x_aligned, y_aligned, affine_aligned;
};

// Over the kWarps warps of a row, in every lane, always in the same order. parity alternates from call to call, so that
// one barrier each is enough.
template <int kWarps>
DVT_DEVICE float row_sum(float value, int parity) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  if constexpr (kWarps > 1) {
    float* sums = &ptx::shared<float>() + parity * kWarps;
    if (ptx::lane_id() == 0) sums[threadIdx.x / 32] = value;
    __syncthreads();
    value = 0.0f;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) value += sums[warp];
  }
  return value;
}

template <class X, class Y, int kWarps>
__global__ void __launch_bounds__(32 * (kWarps > 1 ? kWarps : kWarpsOfBlock)) layer_norm_kernel(NormArguments call) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(ptx::lane_id());
  const int row = kWarps > 1 ? static_cast<int>(blockIdx.x) : static_cast<int>(blockIdx.x) * kWarpsOfBlock + warp;
  const int first = 4 * (lane + (kWarps > 1 ? 32 * warp : 0));
  constexpr int kStep = 32 * 4 * kWarps;
  ptx::wait_for_previous();
  ptx::allow_next();
  if (row >= call.rows) return;  // a whole warp, and only where rows do not meet in barriers

  const X* x = static_cast<const X*>(call.x) + row * call.x_stride;
  float v[kVectors][4];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int c = first + i * kStep;
    if (c < call.dim) {
      load4(x + c, call.dim - c, call.x_aligned, v[i]);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) v[i][j] = 0.0f;
    }
  }
  const float count = static_cast<float>(call.dim);
  float mean = 0.0f, scale = 1.0f;
  if (call.centred) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) sum += (v[i][0] + v[i][1]) + (v[i][2] + v[i][3]);
    mean = row_sum<kWarps>(sum, 0) / count;
  }
  if (call.scaled) {
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kVectors; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float d = first + i * kStep + j < call.dim ? v[i][j] - mean : 0.0f;
        squares = fmaf(d, d, squares);
      }
    scale = 1.0f / sqrtf(row_sum<kWarps>(squares, 1) / count + call.eps);
  }
  Y* y = static_cast<Y*>(call.y) + row * call.y_stride;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int c = first + i * kStep;
    if (c >= call.dim) break;
    float w[4], b[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) v[i][j] = (v[i][j] - mean) * scale;
    if (call.weight) {
      load4(call.weight + c, call.dim - c, call.affine_aligned, w);
#pragma unroll
      for (int j = 0; j < 4; ++j) v[i][j] *= w[j];
    }
    if (call.bias) {
      load4(call.bias + c, call.dim - c, call.affine_aligned, b);
#pragma unroll
      for (int j = 0; j < 4; ++j) v[i][j] += b[j];
    }
    store4(y + c, call.dim - c, call.y_aligned, v[i]);
  }
}

template <class X, class Y>
Status run(const LayerNormCudaCall& call) {
  const auto is_aligned = [](const void* p, int64_t stride, int64_t four) {
    return reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(four) == 0 && stride % 4 == 0;
  };
  NormArguments arguments;
  arguments.x = call.x;
  arguments.y = call.y;
  arguments.x_stride = call.x_stride;
  arguments.y_stride = call.y_stride;
  arguments.weight = call.weight;
  arguments.bias = call.bias;
  arguments.rows = static_cast<int>(call.rows);
  arguments.dim = static_cast<int>(call.dim);
  arguments.eps = call.eps;
  arguments.centred = call.kind == NormWeights::Kind::layer;
  arguments.scaled = call.kind != NormWeights::Kind::none;
  arguments.x_aligned = is_aligned(call.x, call.x_stride, 4 * sizeof(X));
  arguments.y_aligned = is_aligned(call.y, call.y_stride, 4 * sizeof(Y));
  arguments.affine_aligned = is_aligned(call.weight, 0, 16) && is_aligned(call.bias, 0, 16);
  Launch how;
  how.stream = call.stream;
  how.overlap = call.overlap;
  const unsigned rows = static_cast<unsigned>(call.rows);
  if (call.dim <= kRowOfWarp) {
    how.grid = dim3((rows + kWarpsOfBlock - 1) / kWarpsOfBlock);
    how.block = dim3(32 * kWarpsOfBlock);
    return launch("layer_norm", layer_norm_kernel<X, Y, 1>, how, arguments);
  }
  const int warps = call.dim <= 2 * kRowOfWarp ? 2 : call.dim <= 4 * kRowOfWarp ? 4 : 8;
  how.grid = dim3(rows);
  how.block = dim3(static_cast<unsigned>(32 * warps));
  how.shared_bytes = 2 * sizeof(float) * static_cast<size_t>(warps);
  return launch("layer_norm",
                warps == 2   ? layer_norm_kernel<X, Y, 2>
                : warps == 4 ? layer_norm_kernel<X, Y, 4>
                             : layer_norm_kernel<X, Y, 8>,
                how, arguments);
}

}  // namespace

Status layer_norm_forward(const LayerNormCudaCall& call) {
  if (call.dim < 1 || call.dim > kMaxNormDim)
    return invalid_argument("layer_norm: dim must be from 1 to ", kMaxNormDim, ", got ", call.dim);
  if (call.rows < 1 || call.rows > INT32_MAX)
    return invalid_argument("layer_norm: rows must be from 1 to ", INT32_MAX, ", got ", call.rows);
  if (call.x_stride < call.dim || call.y_stride < call.dim)
    return invalid_argument("layer_norm: rows must have ", call.dim, " elements or more, got strides ", call.x_stride,
                            " and ", call.y_stride);
  const auto is = [&](Dtype x, Dtype y) { return call.x_type == x && call.y_type == y; };
  if (is(Dtype::float32, Dtype::float32)) return call.round_y ? run<float, tf32>(call) : run<float, float>(call);
  if (is(Dtype::float32, Dtype::float16)) return run<float, f16>(call);
  if (is(Dtype::float32, Dtype::bfloat16)) return run<float, bf16>(call);
  if (is(Dtype::float16, Dtype::float16)) return run<f16, f16>(call);
  if (is(Dtype::bfloat16, Dtype::bfloat16)) return run<bf16, bf16>(call);
  return invalid_argument("layer_norm: rows of ", dtype_name(call.x_type), " cannot be normalised to ",
                          dtype_name(call.y_type));
}

namespace {

Status type_of(OpType type, Dtype* dtype) {
  switch (type) {
    case OpType::float32: *dtype = Dtype::float32; return Status();
    case OpType::float16: *dtype = Dtype::float16; return Status();
    case OpType::bfloat16: *dtype = Dtype::bfloat16; return Status();
    default: return invalid_argument("layer_norm: x and y must be of a floating type, got ", op_type_name(type));
  }
}

// x [rows, x_stride] -> y [rows, y_stride], which may be the same tensor "x" (y left out); weight and bias [dim] where
// wanted. Numbers: dim, eps, round_y; words: kind ("layer", "rms", "none").
Status layer_norm_op(OpCall& op) {
  const auto x = op.tensors.find("x");
  if (x == op.tensors.end() || x->second.shape.size() != 2) return invalid_argument("layer_norm: x must be a matrix");
  const auto found = op.tensors.find("y");
  const OpTensor& y = found == op.tensors.end() ? x->second : found->second;
  LayerNormCudaCall call;
  DVT_RETURN_IF_ERROR(type_of(x->second.type, &call.x_type));
  DVT_RETURN_IF_ERROR(type_of(y.type, &call.y_type));
  const std::string kind = op.word("kind", "layer");
  call.kind = kind == "rms" ? NormWeights::Kind::rms : kind == "none" ? NormWeights::Kind::none : call.kind;
  call.eps = static_cast<float>(op.number("eps", 1e-6));
  call.rows = x->second.shape[0];
  call.dim = static_cast<int64_t>(op.number("dim", static_cast<double>(x->second.shape[1])));
  call.x = x->second.data;
  call.x_stride = x->second.shape[1];
  call.y = y.data;
  call.y_stride = y.shape.back();
  call.round_y = op.number("round_y") != 0;
  const OpTensor* more = nullptr;
  if (op.has("weight")) {
    DVT_RETURN_IF_ERROR(op.tensor("weight", OpType::float32, &more));
    call.weight = more->as<float>();
  }
  if (op.has("bias")) {
    DVT_RETURN_IF_ERROR(op.tensor("bias", OpType::float32, &more));
    call.bias = more->as<float>();
  }
  call.overlap = op.number("overlap") != 0;
  call.stream = static_cast<cudaStream_t>(op.stream);
  return layer_norm_forward(call);
}
DVT_CUDA_OP("layer_norm", layer_norm_op)

}  // namespace
}  // namespace dvt::cuda
