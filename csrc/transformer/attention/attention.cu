// The one door to attention on the device: checks a call and hands it to the kernels of its type.
#include "cuda/op_registry.h"
#include "transformer/attention/attention_launch.cuh"
#include "transformer/attention/attention_sm90.h"

namespace dvt::cuda {
namespace {

constexpr int64_t kMaxGrid = 65535;  // blocks along the second and third axis

Status check_call(const AttentionCudaCall& call) {
  const int64_t inner = call.heads * call.head_dim;
  const int64_t size = call.type == AttentionType::float16 || call.type == AttentionType::bfloat16 ? 2 : 4;
  if (call.head_dim < 32 || call.head_dim > kMaxHeadDim || call.head_dim % 16 != 0)
    return invalid_argument("attention: head_dim must be a multiple of 16 from 32 to ", kMaxHeadDim, ", got ",
                            call.head_dim);
  if (call.tokens < 1 || call.tokens > INT32_MAX)
    return invalid_argument("attention: tokens must be from 1 to ", INT32_MAX, ", got ", call.tokens);
  if (call.heads < 1 || call.heads > kMaxGrid || call.batch < 1 || call.batch > kMaxGrid)
    return invalid_argument("attention: heads and batch must be from 1 to ", kMaxGrid, ", got ", call.heads, " and ",
                            call.batch);
  if (call.qkv_stride < 3 * inner || call.out_stride < inner)
    return invalid_argument("attention: rows must have ", 3 * inner, " and ", inner, " elements or more, got strides ",
                            call.qkv_stride, " and ", call.out_stride);
  const auto is_aligned = [&](const void* data, int64_t stride) {
    return data && reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride * size % 16 == 0;
  };
  if (!is_aligned(call.qkv, call.qkv_stride) || !is_aligned(call.out, call.out_stride))
    return invalid_argument("attention: qkv and out must have rows aligned to 16 bytes");
  return Status();
}

Status attention_portable(const AttentionCudaCall& call) {
  switch (call.type) {
    case AttentionType::float16: return attention_float16(call);
    case AttentionType::bfloat16: return attention_bfloat16(call);
    case AttentionType::tf32: return attention_tf32(call);
    case AttentionType::float32: return attention_float32(call);
  }
  return Status(StatusCode::internal, "attention of an unknown type");
}

}  // namespace

Status attention_forward(const AttentionCudaCall& call) {
  DVT_RETURN_IF_ERROR(check_call(call));
  bool taken = false;
  DVT_RETURN_IF_ERROR(attention_forward_sm90(call, &taken));
  return taken ? Status() : attention_portable(call);
}

namespace {

// qkv [batch, tokens, 3 * heads * head_dim] -> out [batch, tokens, heads * head_dim]; numbers: heads, portable (not
// Hopper's kernels); words: products, "tf32" where float32 numbers are to be multiplied as tf32.
Status attention_op(OpCall& op) {
  const auto found = op.tensors.find("qkv");
  if (found == op.tensors.end()) return invalid_argument("attention: qkv is missing");
  const OpTensor *qkv = nullptr, *out = nullptr;
  DVT_RETURN_IF_ERROR(op.tensor("qkv", found->second.type, &qkv));
  DVT_RETURN_IF_ERROR(op.tensor("out", found->second.type, &out));
  AttentionCudaCall call;
  call.heads = static_cast<int64_t>(op.number("heads", 1));
  if (qkv->shape.size() != 3 || call.heads < 1 || qkv->shape[2] % (3 * call.heads) != 0)
    return invalid_argument("attention: qkv must have shape (batch, tokens, 3 * heads * head_dim)");
  switch (qkv->type) {
    case OpType::float16: call.type = AttentionType::float16; break;
    case OpType::bfloat16: call.type = AttentionType::bfloat16; break;
    case OpType::float32:
      call.type = op.word("products") == "tf32" ? AttentionType::tf32 : AttentionType::float32;
      break;
    default: return invalid_argument("attention: qkv must be float16, bfloat16 or float32");
  }
  call.batch = qkv->shape[0];
  call.tokens = qkv->shape[1];
  call.head_dim = qkv->shape[2] / (3 * call.heads);
  call.qkv = qkv->data;
  call.qkv_stride = qkv->shape[2];
  call.out = out->data;
  call.out_stride = qkv->shape[2] / 3;
  if (out->count() != call.batch * call.tokens * call.out_stride)
    return invalid_argument("attention: out must have shape (batch, tokens, heads * head_dim)");
  call.overlap = op.number("overlap", 0) != 0;
  call.stream = static_cast<cudaStream_t>(op.stream);
  if (op.number("portable") == 0) return attention_forward(call);
  DVT_RETURN_IF_ERROR(check_call(call));
  return attention_portable(call);
}

}  // namespace

DVT_CUDA_OP("attention", attention_op)

}  // namespace dvt::cuda
