// The products of linear_cuda.h on mma.sync (gemm.cuh): their epilogues and tiles, a template a type, which the
// linear_<type>.cu files instantiate.
//
// FLOP: 2 rows in out. Bytes from and to memory, counted once: size (rows in + out in) + rows out of y (and of the
// residual, 4 each). Tiles, by gemm_cycles: for C = 768 and 1369 tokens on 132 multiprocessors the projection and fc2
// are 132 tiles of 128 x 64, one each; qkv 396 of them, three each; fc1 264 of 128 x 128, two each.
#pragma once

#include "cuda/vectors.cuh"
#include "linalg/gemm/gemm_launch.h"
#include "transformer/activation/activation.cuh"
#include "transformer/linear/linear_cuda.h"

namespace dvt::cuda {

// What becomes of x W^T + b. Separate kernels, because one with all of it keeps registers for all of it.
//   plain       y of x's type
//   stream      (+ residual) y of any type, checked where asked for: the residual stream, the last product
//   gelu        y of x's type
//   logistic    likewise with any other activation
//   gated       activation(even column) * odd column
enum class LinearKind { plain, stream, gelu, logistic, gated };

// Where a type is kept, and which numbers count as exact enough for it.
template <class T>
constexpr Accuracy kAccuracyOf = sizeof(T) == 2 ? Accuracy::narrow : Accuracy::full;

template <class T, LinearKind kKind>
struct LinearEpilogue : GemmEpilogue {
  static constexpr bool kReads = kKind == LinearKind::stream, kSplits = false;
  struct None {};
  struct Residual {
    float v[8];
  };
  using Loaded = std::conditional_t<kReads, Residual, None>;
  static constexpr int kTogether = kReads ? 8 : 1;

  const float* bias = nullptr;
  const float* residual = nullptr;
  void* y = nullptr;
  int64_t residual_stride = 0, y_stride = 0;
  uint32_t* not_finite = nullptr;
  Logistic activation;
  Dtype y_type = Dtype::float32;
  bool is_gelu = false, round_y = false;
  bool y_aligned = false, residual_aligned = false, bias_aligned = false;  // to 16 bytes, rows included

  DVT_DEVICE Loaded load(const GemmPlace& at) {
    Loaded loaded;
    if constexpr (kReads) {
      if (residual)
        load8(residual + at.row * residual_stride + at.column, at.count, residual_aligned, loaded.v);
      else
#pragma unroll
        for (int j = 0; j < 8; ++j) loaded.v[j] = 0.0f;
    }
    return loaded;
  }

  DVT_DEVICE void add_bias(const GemmPlace& at, float (&v)[8]) {
    if (!bias) return;
    if (bias_aligned && at.count == 8) {
      const float4* b = reinterpret_cast<const float4*>(bias + at.column);
      const float4 low = __ldg(b), high = __ldg(b + 1);
      v[0] += low.x, v[1] += low.y, v[2] += low.z, v[3] += low.w;
      v[4] += high.x, v[5] += high.y, v[6] += high.z, v[7] += high.w;
    } else {
#pragma unroll
      for (int j = 0; j < 8; ++j)
        if (j < at.count) v[j] += __ldg(bias + at.column + j);
    }
  }

  template <class U>
  DVT_DEVICE void store(const GemmPlace& at, float (&v)[8]) {
    if constexpr (kReads) {
      if (not_finite) {
        // Infinity less itself is not zero; a number too large for U is found after it was rounded.
        bool found = false;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const float stored = to_float(from_float<U>(v[j]));
          found = found || (j < at.count && !(stored - stored == 0.0f));
        }
        if (found) atomicOr(not_finite, 1u);
      }
    }
    store8(static_cast<U*>(y) + at.row * y_stride + at.column, at.count, y_aligned, v);
  }

  // Those of x's type, as the next product wants it.
  DVT_DEVICE void store_own(const GemmPlace& at, float (&v)[8]) {
    if constexpr (sizeof(T) == 2)
      store<T>(at, v);
    else if (round_y)
      store<tf32>(at, v);
    else
      store<float>(at, v);
  }

  DVT_DEVICE void apply(const GemmPlace& at, float (&v)[8]) {
    constexpr Accuracy kAccuracy = kAccuracyOf<T>;
    add_bias(at, v);
    if constexpr (kKind == LinearKind::gelu || kKind == LinearKind::logistic) {
#pragma unroll
      for (int j = 0; j < 8; ++j)
        v[j] = kKind == LinearKind::gelu ? gelu<kAccuracy>(v[j]) : logistic<kAccuracy>(activation, v[j]);
    }
    if constexpr (kKind == LinearKind::gated) {
      float w[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) w[j] = activate<kAccuracy>(is_gelu, activation, v[2 * j]) * v[2 * j + 1];
      store_half(at, w);
    } else {
      store_own(at, v);
    }
  }
  DVT_DEVICE void apply(const GemmPlace& at, float (&v)[8], const Loaded& loaded) {
    add_bias(at, v);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if constexpr (kReads) v[j] += loaded.v[j];
    }
    if (y_type == Dtype::float16)
      store<f16>(at, v);
    else if (y_type == Dtype::bfloat16)
      store<bf16>(at, v);
    else if (round_y)
      store<tf32>(at, v);
    else
      store<float>(at, v);
  }

 private:
  // Four neighbours of y, which are half as many columns as the product has.
  DVT_DEVICE void store_half(const GemmPlace& at, const float (&w)[4]) {
    const int64_t where = at.row * y_stride + at.column / 2;
    if constexpr (sizeof(T) == 2) {
      T* to = static_cast<T*>(y) + where;
      if (y_aligned && at.count == 8) {
        *reinterpret_cast<uint2*>(to) = make_uint2(pack2<T>(w[0], w[1]), pack2<T>(w[2], w[3]));
        return;
      }
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (2 * j < at.count) to[j] = from_float<T>(w[j]);
    } else {
      float* to = static_cast<float*>(y) + where;
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (2 * j < at.count) to[j] = round_y ? from_float<tf32>(w[j]).value : w[j];
    }
  }
};

namespace linear_detail {

inline bool is_aligned(const void* p, int64_t stride, int64_t size) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride * size % 16 == 0;
}

template <class Tile, class T, LinearKind kKind>
Status run(const LinearCudaCall& call) {
  GemmOperands p;
  p.a = call.x;
  p.b = call.weight;
  p.lda = static_cast<int>(call.x_stride);
  p.ldb = static_cast<int>(call.weight_stride);
  p.m = static_cast<int>(call.rows);
  p.n = static_cast<int>(linear_weight_rows(call.out, call.gated));
  p.k = static_cast<int>(call.in);
  p.b_is_constant = true;
  LinearEpilogue<T, kKind> epilogue;
  epilogue.bias = call.bias;
  epilogue.residual = call.residual;
  epilogue.residual_stride = call.residual_stride;
  epilogue.y = call.y;
  epilogue.y_stride = call.y_stride;
  epilogue.y_type = call.y_type;
  epilogue.not_finite = call.not_finite;
  epilogue.activation = logistic_of(call.activation);
  epilogue.is_gelu = call.activation == Activation::gelu;
  epilogue.round_y = call.round_y;
  epilogue.y_aligned = is_aligned(call.y, call.y_stride, dvt::size_of(call.y_type));
  epilogue.residual_aligned = is_aligned(call.residual, call.residual_stride, 4);
  epilogue.bias_aligned = is_aligned(call.bias, 0, 4);
  GemmLaunch how;
  how.stream = call.stream;
  how.overlap = call.overlap;
  return gemm_launch<Tile>("linear", p, epilogue, how);
}

template <class T, Precision kPrecision, LinearKind kKind>
Status run_kind(const LinearCudaCall& call, const DeviceTraits& traits) {
  constexpr bool kCompensated = kPrecision == Precision::compensated, kNarrow = sizeof(T) == 2;
  using Large = GemmTile<T, T, Major::k, Major::k, 128, kCompensated ? 64 : 128, kCompensated ? 4 : 2,
                         kNarrow || kCompensated ? 2 : 4, 3, kNarrow ? 2 : 1, kPrecision>;
  using Middle = std::conditional_t<kCompensated, Large,
                                    GemmTile<T, T, Major::k, Major::k, 128, 64, 2, 2, 3, kNarrow ? 3 : 2, kPrecision>>;
  using Small = GemmTile<T, T, Major::k, Major::k, 64, 64, 2, 2, 3, kNarrow ? 3 : 2, kPrecision>;
  int tile = static_cast<int>(call.tiles) - static_cast<int>(GemmTiles::large);
  if (call.tiles == GemmTiles::automatic)
    tile = gemm_choose<Large, Middle, Small>(traits, call.rows, linear_weight_rows(call.out, call.gated), call.in);
  return tile == 0 ? run<Large, T, kKind>(call) : tile == 1 ? run<Middle, T, kKind>(call) : run<Small, T, kKind>(call);
}

}  // namespace linear_detail

// T: f16, bf16, tf32, or float with Precision::compensated.
template <class T, Precision kPrecision>
Status linear_of_type(const LinearCudaCall& call, const DeviceTraits& traits) {
  using linear_detail::run_kind;
  if (call.gated) return run_kind<T, kPrecision, LinearKind::gated>(call, traits);
  if (call.activate && call.activation == Activation::gelu)
    return run_kind<T, kPrecision, LinearKind::gelu>(call, traits);
  if (call.activate) return run_kind<T, kPrecision, LinearKind::logistic>(call, traits);
  if (call.residual || call.not_finite || call.y_type != storage_of(call.type))
    return run_kind<T, kPrecision, LinearKind::stream>(call, traits);
  return run_kind<T, kPrecision, LinearKind::plain>(call, traits);
}

Status linear_float16(const LinearCudaCall& call, const DeviceTraits& traits);
Status linear_bfloat16(const LinearCudaCall& call, const DeviceTraits& traits);
Status linear_tf32(const LinearCudaCall& call, const DeviceTraits& traits);
Status linear_float32(const LinearCudaCall& call, const DeviceTraits& traits);

}  // namespace dvt::cuda
