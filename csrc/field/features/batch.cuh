// The batch and the feature bank, for the kernels that read them.
#pragma once

#include "core/random.h"
#include "cuda/numeric.cuh"
#include "field/features/batch_cuda.h"

namespace dvt::cuda {

// Row i of the batch of the clock's step + offset: a row of the bank.
DVT_DEVICE int64_t sample_of(const Batch& batch, int64_t rows, int64_t i, int offset) {
  const int64_t step = batch.clock->step + offset;
  if (batch.samples) return batch.samples[(step - batch.first_step) * batch.n + i];
  Random random(batch.seed, batch.first_stream + static_cast<uint64_t>(step));
  random.skip(static_cast<uint64_t>(i));
  return random.index(rows);
}

// Four features of a row from channel c on (c % 4 == 0), zero beyond the last; `whole`: rows are aligned to 4 features.
template <class T>
DVT_DEVICE float4 load_features(const T* row, int64_t c, int64_t channels, bool whole) {
  if (whole) {
    if constexpr (sizeof(T) == 4) {
      return *reinterpret_cast<const float4*>(row + c);
    } else {
      const uint2 bits = *reinterpret_cast<const uint2*>(row + c);
      const float2 a = unpack2<T>(bits.x), b = unpack2<T>(bits.y);
      return make_float4(a.x, a.y, b.x, b.y);
    }
  }
  float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (c < channels) v.x = to_float(row[c]);
  if (c + 1 < channels) v.y = to_float(row[c + 1]);
  if (c + 2 < channels) v.z = to_float(row[c + 2]);
  if (c + 3 < channels) v.w = to_float(row[c + 3]);
  return v;
}

// Four neighbouring operands; `to` is aligned to them.
DVT_DEVICE void store_operands(tf32* to, float4 v) {
  *reinterpret_cast<float4*>(to) = make_float4(from_float<tf32>(v.x).value, from_float<tf32>(v.y).value,
                                               from_float<tf32>(v.z).value, from_float<tf32>(v.w).value);
}
DVT_DEVICE void store_operands(float* to, float4 v) { *reinterpret_cast<float4*>(to) = v; }
DVT_DEVICE void store_operands(bf16* to, float4 v) {
  *reinterpret_cast<uint2*>(to) = make_uint2(pack2<bf16>(v.x, v.y), pack2<bf16>(v.z, v.w));
}

// Calls visit(T) with a null pointer of the type.
template <class Visit>
Status for_dtype(Dtype dtype, Visit&& visit) {
  switch (dtype) {
    case Dtype::float16: return visit(static_cast<const f16*>(nullptr));
    case Dtype::bfloat16: return visit(static_cast<const bf16*>(nullptr));
    case Dtype::float32: return visit(static_cast<const float*>(nullptr));
    default: return invalid_argument("features must be float32, float16 or bfloat16, got ", dtype_name(dtype));
  }
}
template <class Visit>
Status for_operand(Operand operand, Visit&& visit) {
  switch (operand) {
    case Operand::tf32: return visit(static_cast<tf32*>(nullptr));
    case Operand::bf16: return visit(static_cast<bf16*>(nullptr));
    default: return visit(static_cast<float*>(nullptr));
  }
}

}  // namespace dvt::cuda
