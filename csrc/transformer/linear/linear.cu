// The one door to the products of a transformer on the device: checks a call and hands it to Hopper's kernels where
// they want it, else to those of its type; and the packing of weights.
#include <cstring>

#include "core/half.h"
#include "cuda/op_registry.h"
#include "transformer/activation/activation_cuda.h"
#include "transformer/linear/linear.cuh"
#include "transformer/linear/linear_sm90.h"

namespace dvt::cuda {
namespace {

Status check_call(const LinearCudaCall& call) {
  const int64_t weight_rows = linear_weight_rows(call.out, call.gated);
  for (int64_t size : {call.rows, call.in, weight_rows, call.x_stride, call.weight_stride, call.y_stride})
    if (size < 1 || size > INT32_MAX)
      return invalid_argument("linear: rows, in, out and strides must be from 1 to ", INT32_MAX, ", got ", size);
  if (!call.x || !call.weight || !call.y) return invalid_argument("linear: x, weight or y is null");
  if (call.y_stride < call.out || (call.residual && call.residual_stride < call.out))
    return invalid_argument("linear: rows of y and residual must have ", call.out, " elements or more, got strides ",
                            call.y_stride, " and ", call.residual_stride);
  if (call.gated && !call.activate) return invalid_argument("linear: gated products need an activation, got none");
  if (call.activate && (call.residual || call.not_finite))
    return invalid_argument("linear: residual and not_finite are for products without activation, got both");
  if (call.activate && call.y_type != storage_of(call.type))
    return invalid_argument("linear: activated products must give ", dtype_name(storage_of(call.type)), ", got ",
                            dtype_name(call.y_type));
  if (call.y_type == Dtype::uint8) return invalid_argument("linear: y must be of a floating type, got uint8");
  return Status();
}

Status linear_portable(const LinearCudaCall& call) {
  const DeviceTraits* traits = nullptr;
  DVT_RETURN_IF_ERROR(current_traits(&traits));
  switch (call.type) {
    case LinearType::float16: return linear_float16(call, *traits);
    case LinearType::bfloat16: return linear_bfloat16(call, *traits);
    case LinearType::tf32: return linear_tf32(call, *traits);
    case LinearType::float32: return linear_float32(call, *traits);
  }
  return Status(StatusCode::internal, "linear of an unknown type");
}

// Row r of a packed weight comes from this row of the original one.
int64_t source_row(int64_t rows, bool gated, int64_t r) { return gated ? r / 2 + (r % 2 != 0 ? rows / 2 : 0) : r; }

}  // namespace

Status linear_forward(const LinearCudaCall& call) {
  DVT_RETURN_IF_ERROR(check_call(call));
  bool taken = false;
  DVT_RETURN_IF_ERROR(linear_forward_sm90(call, &taken));
  return taken ? Status() : linear_portable(call);
}

void pack_linear_weight(LinearType type, int64_t rows, int64_t in, bool gated, const float* weight, void* packed) {
  const int64_t stride = linear_weight_stride(type, in);
  std::memset(packed, 0, static_cast<size_t>(rows * stride * size_of(type)));
  for (int64_t r = 0; r < rows; ++r) {
    const float* from = weight + source_row(rows, gated, r) * in;
    for (int64_t c = 0; c < in; ++c) {
      const int64_t at = r * stride + c;
      switch (type) {
        case LinearType::float16: static_cast<uint16_t*>(packed)[at] = float_to_half(from[c]); break;
        case LinearType::bfloat16: static_cast<uint16_t*>(packed)[at] = float_to_bfloat16(from[c]); break;
        case LinearType::float32: static_cast<float*>(packed)[at] = from[c]; break;
        case LinearType::tf32: {
          uint32_t bits;
          std::memcpy(&bits, &from[c], sizeof bits);
          bits = (bits + 0x1000u) & 0xffffe000u;  // of a finite number, as the reader has checked
          std::memcpy(static_cast<float*>(packed) + at, &bits, sizeof bits);
          break;
        }
      }
    }
  }
}

void pack_linear_bias(int64_t rows, bool gated, const float* bias, float* packed) {
  for (int64_t r = 0; r < rows; ++r) packed[r] = bias[source_row(rows, gated, r)];
}

namespace {

Status parse_type(const std::string& name, LinearType* type) {
  const std::pair<const char*, LinearType> names[] = {{"float16", LinearType::float16},
                                                      {"bfloat16", LinearType::bfloat16},
                                                      {"tf32", LinearType::tf32},
                                                      {"float32", LinearType::float32}};
  for (const auto& [known, value] : names)
    if (name == known) {
      *type = value;
      return Status();
    }
  return invalid_argument("linear: type must be float16, bfloat16, tf32 or float32, got '", name, "'");
}

// x [rows, x_stride], weight [out or 2 out, weight_stride] as packed, y [rows, y_stride]; bias, residual, not_finite
// where wanted. Numbers: in, out, gated, round_y, portable (not Hopper's kernels); words: type, activation, tiles.
Status linear_op(OpCall& op) {
  LinearCudaCall call;
  DVT_RETURN_IF_ERROR(parse_type(op.word("type", "bfloat16"), &call.type));
  const Dtype storage = storage_of(call.type);
  const OpType stored = storage == Dtype::float16    ? OpType::float16
                        : storage == Dtype::bfloat16 ? OpType::bfloat16
                                                     : OpType::float32;
  const OpTensor *x = nullptr, *weight = nullptr, *more = nullptr;
  DVT_RETURN_IF_ERROR(op.tensor("x", stored, &x));
  DVT_RETURN_IF_ERROR(op.tensor("weight", stored, &weight));
  const auto found = op.tensors.find("y");
  if (found == op.tensors.end()) return invalid_argument("linear: y is missing");
  const OpTensor& y = found->second;
  if (x->shape.size() != 2 || weight->shape.size() != 2 || y.shape.size() != 2)
    return invalid_argument("linear: x, weight and y must be matrices");
  call.gated = op.number("gated") != 0;
  call.rows = x->shape[0];
  call.in = static_cast<int64_t>(op.number("in", static_cast<double>(x->shape[1])));
  call.out = static_cast<int64_t>(op.number("out", static_cast<double>(weight->shape[0] / (call.gated ? 2 : 1))));
  if (call.in > x->shape[1] || call.in > weight->shape[1] || y.shape[0] != call.rows || y.shape[1] < call.out ||
      weight->shape[0] != linear_weight_rows(call.out, call.gated))
    return invalid_argument("linear: shapes of x, weight and y do not go together");
  call.x = x->data;
  call.x_stride = x->shape[1];
  call.weight = weight->data;
  call.weight_stride = weight->shape[1];
  call.y = y.data;
  call.y_stride = y.shape[1];
  call.y_type = y.type == OpType::float16    ? Dtype::float16
                : y.type == OpType::bfloat16 ? Dtype::bfloat16
                                             : Dtype::float32;
  call.round_y = op.number("round_y") != 0;
  if (op.has("bias")) {
    DVT_RETURN_IF_ERROR(op.tensor("bias", OpType::float32, &more));
    call.bias = more->as<float>();
  }
  if (op.has("residual")) {
    DVT_RETURN_IF_ERROR(op.tensor("residual", OpType::float32, &more));
    call.residual = more->as<float>();
    call.residual_stride = more->shape.back();
  }
  if (op.number("accumulate") != 0) {
    call.residual = static_cast<const float*>(call.y);
    call.residual_stride = call.y_stride;
  }
  if (op.has("not_finite")) {
    DVT_RETURN_IF_ERROR(op.tensor("not_finite", OpType::uint32, &more));
    call.not_finite = more->as<uint32_t>();
  }
  const std::string activation = op.word("activation", "none");
  call.activate = activation != "none";
  if (call.activate) DVT_RETURN_IF_ERROR(parse_activation(activation, &call.activation));
  const std::string tiles = op.word("tiles");
  if (tiles == "large") call.tiles = GemmTiles::large;
  if (tiles == "middle") call.tiles = GemmTiles::middle;
  if (tiles == "small") call.tiles = GemmTiles::small;
  call.overlap = op.number("overlap") != 0;
  call.stream = static_cast<cudaStream_t>(op.stream);
  if (op.number("portable") == 0) return linear_forward(call);
  DVT_RETURN_IF_ERROR(check_call(call));
  return linear_portable(call);
}
DVT_CUDA_OP("linear", linear_op)

}  // namespace
}  // namespace dvt::cuda
