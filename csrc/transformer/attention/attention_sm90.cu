// Attention on Hopper: which tile of attention_sm90.cuh a call takes, and its launch.
//
// Blocks of 128 queries, of 64 where there would be too few of them to fill half the device.
#include "transformer/attention/attention_sm90.h"

#include <type_traits>

#include "cuda/op_registry.h"
#include "cuda/runtime.h"
#include "transformer/attention/attention_sm90.cuh"

namespace dvt::cuda {
namespace {

template <class Tile>
Status launch_attention_sm90(const AttentionCudaCall& call, bool* taken) {
  constexpr ptx::TensorType kType =
      std::is_same_v<typename Tile::T, f16> ? ptx::TensorType::f16 : ptx::TensorType::bf16;
  const uint64_t tokens = static_cast<uint64_t>(call.tokens), batch = static_cast<uint64_t>(call.batch);
  const uint64_t inner = static_cast<uint64_t>(call.heads * call.head_dim);
  const auto encode = [&](ptx::TensorMap* map, const void* data, uint64_t columns, int64_t stride, int rows) {
    const uint64_t row = static_cast<uint64_t>(stride) * 2;
    const uint64_t extents[3] = {columns, tokens, batch}, strides[2] = {row, row * tokens};
    const uint32_t box[3] = {64, static_cast<uint32_t>(rows), 1};
    return ptx::encode_tensor_map(map, kType, 3, data, extents, strides, box);
  };
  ptx::TensorMap query_map, key_map, out_map;
  if (!encode(&query_map, call.qkv, 3 * inner, call.qkv_stride, 64) ||
      !encode(&key_map, call.qkv, 3 * inner, call.qkv_stride, Tile::kKeys) ||
      !encode(&out_map, call.out, inner, call.out_stride, 64))
    return Status();
  AttentionSm90Call arguments;
  arguments.tokens = static_cast<int>(call.tokens);
  arguments.heads = static_cast<int>(call.heads);
  Launch how;
  how.grid = dim3(static_cast<unsigned>(ceil_div(call.tokens, 64 * Tile::kGroups)), static_cast<unsigned>(call.heads),
                  static_cast<unsigned>(call.batch));
  how.block = dim3(Tile::kThreads);
  how.shared_bytes = Tile::kSharedBytes;
  how.stream = call.stream;
  how.overlap = call.overlap;
  *taken = true;
  return launch("attention", attention_sm90_kernel<Tile>, how, query_map, key_map, out_map, arguments);
}

template <class T>
Status launch_type(const AttentionCudaCall& call, bool few, bool* taken) {
  if (call.head_dim == 128)
    return few ? launch_attention_sm90<AttentionTileSm90<T, 128, 1, 128, 2>>(call, taken)
               : launch_attention_sm90<AttentionTileSm90<T, 128, 2, 128, 2>>(call, taken);
  return few ? launch_attention_sm90<AttentionTileSm90<T, 64, 1, 128, 4>>(call, taken)
             : launch_attention_sm90<AttentionTileSm90<T, 64, 2, 128, 4>>(call, taken);
}

}  // namespace

Status attention_forward_sm90(const AttentionCudaCall& call, bool* taken) {
  *taken = false;
  const DeviceTraits* device = nullptr;
  DVT_RETURN_IF_ERROR(current_traits(&device));
  if (!ptx::has_sm90a_code() || device->major != 9 || device->minor != 0 ||
      (call.head_dim != 64 && call.head_dim != 128))
    return Status();
  const bool few = ceil_div(call.tokens, 128) * call.heads * call.batch * 2 <= device->multiprocessors;
  if (call.type == AttentionType::bfloat16) return launch_type<bf16>(call, few, taken);
  if (call.type == AttentionType::float16) return launch_type<f16>(call, few, taken);
  return Status();
}

namespace {

// The op `attention` (attention.cu) with blocks of 64 or 128 queries: number queries.
Status attention_sm90_op(OpCall& op) {
  const auto found = op.tensors.find("qkv");
  if (found == op.tensors.end()) return invalid_argument("attention_sm90: qkv is missing");
  const OpTensor &qkv = found->second, *out = nullptr;
  DVT_RETURN_IF_ERROR(op.tensor("out", qkv.type, &out));
  AttentionCudaCall call;
  call.heads = static_cast<int64_t>(op.number("heads", 1));
  call.batch = qkv.shape.at(0);
  call.tokens = qkv.shape.at(1);
  call.qkv_stride = qkv.shape.at(2);
  call.out_stride = qkv.shape[2] / 3;
  call.head_dim = call.out_stride / call.heads;
  call.qkv = qkv.data;
  call.out = out->data;
  call.overlap = op.number("overlap") != 0;
  call.stream = static_cast<cudaStream_t>(op.stream);
  if (call.head_dim != 64 && call.head_dim != 128)
    return invalid_argument("attention_sm90: head_dim must be 64 or 128, got ", call.head_dim);
  const bool few = op.number("queries", 128) == 64;
  bool taken = false;
  if (qkv.type == OpType::bfloat16) DVT_RETURN_IF_ERROR(launch_type<bf16>(call, few, &taken));
  if (qkv.type == OpType::float16) DVT_RETURN_IF_ERROR(launch_type<f16>(call, few, &taken));
  return taken ? Status() : Status(StatusCode::unsupported, "attention_sm90: this device or call is not for it");
}
DVT_CUDA_OP("attention_sm90", attention_sm90_op)

}  // namespace
}  // namespace dvt::cuda
