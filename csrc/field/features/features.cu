// Reading the feature bank on the device: gathering a batch as operands of a matrix product, and the one look at all of
// it for NaN and infinity (a pass at the memory's speed: 1.6 GB for 769 views of 37 x 37 patches of 768 halves).
#include "cuda/op_registry.h"
#include "cuda/runtime.h"
#include "field/features/batch.cuh"
#include "field/hashgrid_recipe.h"

namespace dvt::cuda {
namespace {

constexpr int kThreads = 256;

// A warp takes a row.
template <class T, class Out>
__global__ void gather_batch_kernel(Bank bank, Batch batch, int offset, Out* out, int64_t ld, bool whole) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32;
  if (i >= batch.n) return;
  const T* row = static_cast<const T*>(bank.features) + sample_of(batch, bank.rows, i, offset) * bank.channels;
  for (int64_t c = 4 * ptx::lane_id(); c < ld; c += 128) {
    const bool inside = c < bank.channels;
    store_operands(out + i * ld + c,
                   inside ? load_features(row, c, bank.channels, whole) : make_float4(0.0f, 0.0f, 0.0f, 0.0f));
  }
}

__global__ void batch_samples_kernel(Bank bank, Batch batch, int offset, int64_t* out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < batch.n) out[i] = sample_of(batch, bank.rows, i, offset);
}

// The exponent's bits, all set in a NaN and in infinity.
DVT_DEVICE bool bad_number(float x) { return (__float_as_uint(x) & 0x7f800000u) == 0x7f800000u; }
DVT_DEVICE bool bad_number(f16 x) { return (x.bits & 0x7c00u) == 0x7c00u; }
DVT_DEVICE bool bad_number(bf16 x) { return (x.bits & 0x7f80u) == 0x7f80u; }

template <class T>
DVT_DEVICE void note_first(int64_t* first, int64_t at) {
  atomicMin(reinterpret_cast<T*>(first), static_cast<T>(at));
}

template <class T>
__global__ void check_features_kernel(const T* x, int64_t count, int64_t* bad) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i * kVector < count; i += stride) {
    alignas(16) T values[kVector];
    const int64_t at = i * kVector;
    if (at + kVector <= count)
      *reinterpret_cast<uint4*>(values) = ptx::load_once(reinterpret_cast<const uint4*>(x + at));
    for (int k = 0; k < kVector && at + k < count; ++k) {
      const T value = at + kVector <= count ? values[k] : x[at + k];
      if (bad_number(value)) {
        note_first<unsigned long long>(bad, at + k);
        break;
      }
    }
  }
}

__global__ void check_coords_kernel(const float* x, int64_t count, int64_t* bad) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride)
    if (!(x[i] >= 0.0f && x[i] <= 1.0f)) note_first<unsigned long long>(bad, i);
}

__global__ void clear_bad_kernel(int64_t* bad) { *bad = INT64_MAX; }

Status clear_bad(int64_t* bad, cudaStream_t stream) {
  Launch how;
  how.grid = how.block = dim3(1);
  how.stream = stream;
  return launch("clear_bad", clear_bad_kernel, how, bad);
}

Launch flat_launch(int64_t count, cudaStream_t stream, int64_t most = 0) {
  Launch how;
  int64_t blocks = ceil_div(count, kThreads);
  if (most > 0 && blocks > most) blocks = most;
  how.grid = dim3(static_cast<unsigned>(blocks));
  how.block = dim3(kThreads);
  how.stream = stream;
  return how;
}

}  // namespace

Status gather_batch(const Bank& bank, const Batch& batch, int offset, Operand operand, void* out, int64_t ld,
                    cudaStream_t stream) {
  if (ld % 4 != 0) return invalid_argument("rows of the gathered batch must have a multiple of 4 columns, got ", ld);
  return for_dtype(bank.dtype, [&](auto* type) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    const bool whole = bank.channels % 4 == 0 && reinterpret_cast<uintptr_t>(bank.features) % (4 * sizeof(T)) == 0;
    return for_operand(operand, [&](auto* out_type) {
      using Out = std::remove_pointer_t<decltype(out_type)>;
      return launch("gather_batch", gather_batch_kernel<T, Out>, flat_launch(batch.n * 32, stream), bank, batch, offset,
                    static_cast<Out*>(out), ld, whole);
    });
  });
}

Status batch_samples(const Bank& bank, const Batch& batch, int offset, int64_t* out, cudaStream_t stream) {
  return launch("batch_samples", batch_samples_kernel, flat_launch(batch.n, stream), bank, batch, offset, out);
}

Status operand_of(const std::string& name, Operand* operand) {
  for (Operand o : {Operand::tf32, Operand::bf16, Operand::float32})
    if (name == operand_name(o)) {
      *operand = o;
      return Status();
    }
  return invalid_argument("compute must be tf32, bfloat16 or float32, got ", name);
}

Status check_features(const Bank& bank, int64_t* bad, cudaStream_t stream) {
  if (reinterpret_cast<uintptr_t>(bank.features) % 16 != 0)
    return invalid_argument("features on the device must be aligned to 16 bytes, got an address that is ",
                            reinterpret_cast<uintptr_t>(bank.features) % 16, " bytes beyond");
  DVT_RETURN_IF_ERROR(clear_bad(bad, stream));
  const int64_t count = bank.rows * bank.channels;
  return for_dtype(bank.dtype, [&](auto* type) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    return launch("check_features", check_features_kernel<T>,
                  flat_launch(ceil_div(count * static_cast<int64_t>(sizeof(T)), 16), stream, 4096),
                  static_cast<const T*>(bank.features), count, bad);
  });
}

Status check_coords(const float* coords, int64_t count, int64_t* bad, cudaStream_t stream) {
  DVT_RETURN_IF_ERROR(clear_bad(bad, stream));
  return launch("check_coords", check_coords_kernel, flat_launch(count, stream, 4096), coords, count, bad);
}

namespace {

// features [rows, C] -> samples [n] of step `step`, gathered [n, ld] as words["operand"] and bad [2] for coords.
Status batch_op(OpCall& call) {
  const OpTensor *features, *coords, *samples, *gathered, *bad, *clock;
  DVT_RETURN_IF_ERROR(call.tensor("coords", OpType::float32, &coords));
  DVT_RETURN_IF_ERROR(call.tensor("samples", OpType::int64, &samples));
  DVT_RETURN_IF_ERROR(call.tensor("bad", OpType::int64, &bad));
  DVT_RETURN_IF_ERROR(call.tensor("clock", OpType::int32, &clock));
  const std::string kind = call.word("dtype", "float32");
  const OpType type = kind == "float16" ? OpType::float16 : kind == "bfloat16" ? OpType::bfloat16 : OpType::float32;
  DVT_RETURN_IF_ERROR(call.tensor("features", type, &features));
  Operand operand;
  DVT_RETURN_IF_ERROR(operand_of(call.word("operand", "tf32"), &operand));
  DVT_RETURN_IF_ERROR(
      call.tensor("gathered", operand == Operand::bf16 ? OpType::bfloat16 : OpType::float32, &gathered));
  Bank bank;
  bank.features = features->data;
  bank.dtype = type == OpType::float16 ? Dtype::float16 : type == OpType::bfloat16 ? Dtype::bfloat16 : Dtype::float32;
  bank.coords = coords->as<float>();
  bank.rows = features->shape[0];
  bank.channels = features->shape[1];
  bank.patches = bank.rows;
  Batch batch;
  batch.n = samples->count();
  batch.seed = static_cast<uint64_t>(call.number("seed"));
  batch.first_stream = kFirstStep;
  batch.clock = clock->as<FitClock>();
  const auto stream = static_cast<cudaStream_t>(call.stream);
  const int offset = static_cast<int>(call.number("offset"));
  DVT_RETURN_IF_ERROR(batch_samples(bank, batch, offset, samples->as<int64_t>(), stream));
  DVT_RETURN_IF_ERROR(gather_batch(bank, batch, offset, operand, gathered->data, gathered->shape[1], stream));
  DVT_RETURN_IF_ERROR(check_features(bank, bad->as<int64_t>(), stream));
  return check_coords(bank.coords, coords->count(), bad->as<int64_t>() + 1, stream);
}

}  // namespace

DVT_CUDA_OP("hashgrid_batch", batch_op)

}  // namespace dvt::cuda
