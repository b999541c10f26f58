// Attention in one pass over blocks of keys with a running maximum (Milakov and Gimelshein 2018; Dao et al.,
// "FlashAttention", 2022), on mma.sync: scores and weights never leave the registers.
//
// A block has kRows queries of one head. Its warps are kRowWarps times kSplits: a warp has 16 * kMTiles queries, and of
// the tiles of keys each kSplits-th one. That is how 8 warps stay busy while each fragment of keys and values that
// comes from shared memory serves as many rows as registers allow: with 16 rows a warp, reading fragments takes longer
// than the products. At the end the splits' sums are merged through shared memory, in a fixed order.
//
// Work: 4 batch heads tokens^2 head_dim FLOPs and batch heads tokens^2 exponentials. For 12 heads of 64 and 1369
// tokens 5.8 GFLOP and 22 M exponentials, in 132 blocks of 128 queries; memory is no matter (8.4 MB, from the L2).
#pragma once

#include <cstdint>

#include "cuda/numeric.cuh"
#include "cuda/ptx.cuh"
#include "transformer/attention/attention_math.cuh"

namespace dvt::cuda {

struct AttentionArguments {
  const void* qkv;
  int64_t qkv_stride;
  void* out;
  int64_t out_stride;
  int32_t tokens, heads;
};

// kThree: of float32, products of three tf32 ones.
template <class Type, bool kThreeProducts, int kHeadDim, int kRowTiles, int kRowWarpCount, int kSplitCount,
          int kKeyCount>
struct AttentionTile {
  using T = Type;
  static constexpr bool kThree = kThreeProducts;
  static constexpr int kDim = kHeadDim, kMTiles = kRowTiles, kRowWarps = kRowWarpCount, kSplits = kSplitCount,
                       kKeys = kKeyCount;
  static constexpr int kRows = 16 * kMTiles * kRowWarps;
  static constexpr int kGroup = 32 * kRowWarps;  // threads of a split
  static constexpr int kThreads = kGroup * kSplits;
  // 16 bytes more a row, so that neighbouring rows lie in different banks.
  static constexpr int kStride = kDim + 16 / static_cast<int>(sizeof(T));
  static constexpr int kTile = kKeys * kStride;
  static constexpr int kStages = 2;
  static constexpr size_t kTileBytes = sizeof(T) * kTile * 2 * kStages * kSplits;
  // What a thread hands over when splits merge: its sums, and maximum and total of two rows, a tile of rows.
  static constexpr int kHandedOver = kMTiles * (kDim / 2 + 4);
  static constexpr size_t kMergeBytes = sizeof(float) * kHandedOver * kGroup * (kSplits - 1);
  static constexpr size_t kSharedBytes = kTileBytes > kMergeBytes ? kTileBytes : kMergeBytes;
  static_assert(kDim % 16 == 0 && kKeys % 16 == 0);
};

// The largest, or the sum, over the four lanes that share a row.
DVT_DEVICE float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
DVT_DEVICE float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Meets the threads of one split.
template <class Tile>
DVT_DEVICE void split_barrier(int split) {
  if (Tile::kSplits == 1) {
    __syncthreads();
  } else {
    ptx::named_barrier(1 + split, Tile::kGroup);
  }
}

// kKeys rows of keys or values to shared memory, zeros after the last token.
template <class Tile>
DVT_DEVICE void load_tile(const typename Tile::T* from, int64_t stride, int rows, typename Tile::T* to) {
  using T = typename Tile::T;
  constexpr int kPiece = 16 / static_cast<int>(sizeof(T)), kPieces = Tile::kDim / kPiece;
  const int thread = static_cast<int>(threadIdx.x) % Tile::kGroup;
#pragma unroll
  for (int i = thread; i < Tile::kKeys * kPieces; i += Tile::kGroup) {
    const int row = i / kPieces, column = i % kPieces * kPiece;
    const bool valid = row < rows;
    ptx::copy_async_16(to + row * Tile::kStride + column, valid ? from + row * stride + column : from, valid);
  }
}

// The running sums of a warp's rows: per 16 of them, rows group and group + 8 of a lane.
template <class Tile>
struct AttentionSums {
  float out[Tile::kMTiles][Tile::kDim / 8][4];
  float largest[Tile::kMTiles][2], total[Tile::kMTiles][2];

  DVT_DEVICE void clear() {
#pragma unroll
    for (int m = 0; m < Tile::kMTiles; ++m) {
#pragma unroll
      for (int n = 0; n < Tile::kDim / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) out[m][n][i] = 0.0f;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        largest[m][r] = -INFINITY;
        total[m][r] = 0.0f;
      }
    }
  }
};

// Scores to weights, in place, and what was summed so far to the new maximum.
template <class Tile>
DVT_DEVICE void soften(AttentionSums<Tile>& sums, int m, float (&scores)[Tile::kKeys / 8][4], int keys) {
  constexpr int kTiles = Tile::kKeys / 8;
  if (keys < Tile::kKeys) {
    const int quad = static_cast<int>(ptx::lane_id()) % 4;
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (n * 8 + quad * 2 + i % 2 >= keys) scores[n][i] = -INFINITY;
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float largest = sums.largest[m][r];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) largest = fmaxf(largest, fmaxf(scores[n][2 * r], scores[n][2 * r + 1]));
    largest = quad_max(largest);
    const float scale = ptx::exp2_approx(sums.largest[m][r] - largest);
    sums.largest[m][r] = largest;
    float total = 0.0f;
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 2 * r; i < 2 * r + 2; ++i) {
        scores[n][i] = ptx::exp2_approx(scores[n][i] - largest);
        total += scores[n][i];
      }
    sums.total[m][r] = sums.total[m][r] * scale + total;  // of this lane's keys
#pragma unroll
    for (int n = 0; n < Tile::kDim / 8; ++n) {
      sums.out[m][n][2 * r] *= scale;
      sums.out[m][n][2 * r + 1] *= scale;
    }
  }
}

// One tile of keys and values.
template <class Tile, class Math>
DVT_DEVICE void attend(const typename Math::A (&queries)[Tile::kMTiles][Tile::kDim / Math::kDepth],
                       const typename Tile::T* keys, const typename Tile::T* values, int valid,
                       AttentionSums<Tile>& sums) {
  constexpr int kTiles = Tile::kKeys / 8;
  float scores[Tile::kMTiles][kTiles][4];
#pragma unroll
  for (int m = 0; m < Tile::kMTiles; ++m)
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[m][n][i] = 0.0f;
#pragma unroll
  for (int k = 0; k < Tile::kDim / Math::kDepth; ++k)
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      typename Math::B b[2];
      Math::template load_keys<Tile::kStride>(keys + n * 8 * Tile::kStride, k, b);
#pragma unroll
      for (int m = 0; m < Tile::kMTiles; ++m) {
        Math::multiply(scores[m][n], queries[m][k], b[0]);
        Math::multiply(scores[m][n + 1], queries[m][k], b[1]);
      }
    }
#pragma unroll
  for (int m = 0; m < Tile::kMTiles; ++m) soften<Tile>(sums, m, scores[m], valid);
#pragma unroll
  for (int k = 0; k < Tile::kKeys / Math::kDepth; ++k) {
    typename Math::A weights[Tile::kMTiles];
#pragma unroll
    for (int m = 0; m < Tile::kMTiles; ++m) weights[m] = Math::weights(scores[m], k);
#pragma unroll
    for (int n = 0; n < Tile::kDim / 8; n += 2) {
      typename Math::B b[2];
      Math::template load_values<Tile::kStride>(values + k * Math::kDepth * Tile::kStride, n * 8, b);
#pragma unroll
      for (int m = 0; m < Tile::kMTiles; ++m) {
        Math::multiply(sums.out[m][n], weights[m], b[0]);
        Math::multiply(sums.out[m][n + 1], weights[m], b[1]);
      }
    }
  }
}

// The splits' sums become those of the first one, in whose threads this returns true. Totals are per lane until here.
template <class Tile>
DVT_DEVICE bool merge_splits(AttentionSums<Tile>& sums, int split) {
#pragma unroll
  for (int m = 0; m < Tile::kMTiles; ++m)
#pragma unroll
    for (int r = 0; r < 2; ++r) sums.total[m][r] = quad_sum(sums.total[m][r]);
  if (Tile::kSplits == 1) return true;
  float* shared = reinterpret_cast<float*>(ptx::shared_memory()) + threadIdx.x % Tile::kGroup;
  __syncthreads();  // the tiles lay there
  if (split > 0) {
    float* to = shared + (split - 1) * Tile::kHandedOver * Tile::kGroup;
#pragma unroll
    for (int m = 0; m < Tile::kMTiles; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r, to += 2 * Tile::kGroup) {
        to[0] = sums.largest[m][r];
        to[Tile::kGroup] = sums.total[m][r];
      }
#pragma unroll
      for (int n = 0; n < Tile::kDim / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i, to += Tile::kGroup) *to = sums.out[m][n][i];
    }
  }
  __syncthreads();
  if (split > 0) return false;
#pragma unroll 1
  for (int other = 0; other < Tile::kSplits - 1; ++other) {
    const float* from = shared + other * Tile::kHandedOver * Tile::kGroup;
#pragma unroll
    for (int m = 0; m < Tile::kMTiles; ++m) {
      float mine[2], theirs[2];
#pragma unroll
      for (int r = 0; r < 2; ++r, from += 2 * Tile::kGroup) {
        const float largest = fmaxf(sums.largest[m][r], from[0]);
        mine[r] = ptx::exp2_approx(sums.largest[m][r] - largest);
        theirs[r] = ptx::exp2_approx(from[0] - largest);
        sums.largest[m][r] = largest;
        sums.total[m][r] = sums.total[m][r] * mine[r] + from[Tile::kGroup] * theirs[r];
      }
#pragma unroll
      for (int n = 0; n < Tile::kDim / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i, from += Tile::kGroup)
          sums.out[m][n][i] = sums.out[m][n][i] * mine[i / 2] + *from * theirs[i / 2];
    }
  }
  return true;
}

// Grid: (tiles of queries, heads, batch).
template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1) attention_kernel(AttentionArguments call) {
  using T = typename Tile::T;
  using Math = AttentionMath<T, Tile::kThree>;
  ptx::allow_next();
  const int warp = static_cast<int>(threadIdx.x) / 32, split = warp / Tile::kRowWarps;
  const int first_row = static_cast<int>(blockIdx.x) * Tile::kRows + warp % Tile::kRowWarps * 16 * Tile::kMTiles;
  const int64_t inner = static_cast<int64_t>(call.heads) * Tile::kDim, head = blockIdx.y * Tile::kDim;
  const int64_t image = static_cast<int64_t>(blockIdx.z) * call.tokens;
  const T* q = static_cast<const T*>(call.qkv) + image * call.qkv_stride + head;
  const T *k = q + inner, *v = k + inner;
  T* tiles = reinterpret_cast<T*>(ptx::shared_memory()) + split * 2 * Tile::kStages * Tile::kTile;

  const int tile_count = (call.tokens + Tile::kKeys - 1) / Tile::kKeys;
  const auto load = [&](int tile, int stage) {
    if (tile < tile_count) {
      const int first = tile * Tile::kKeys, rows = call.tokens - first;
      T* to = tiles + stage * 2 * Tile::kTile;
      load_tile<Tile>(k + first * call.qkv_stride, call.qkv_stride, rows, to);
      load_tile<Tile>(v + first * call.qkv_stride, call.qkv_stride, rows, to + Tile::kTile);
    }
    ptx::copy_async_commit();
  };

  ptx::wait_for_previous();
  load(split, 0);
  typename Math::A queries[Tile::kMTiles][Tile::kDim / Math::kDepth];
#pragma unroll
  for (int m = 0; m < Tile::kMTiles; ++m)
#pragma unroll
    for (int step = 0; step < Tile::kDim / Math::kDepth; ++step) {
      const int row = first_row + 16 * m;
      queries[m][step] = Math::load_queries(q + row * call.qkv_stride, call.qkv_stride, call.tokens - row, step);
    }
  AttentionSums<Tile> sums;
  sums.clear();
  int stage = 0;
#pragma unroll 1
  for (int tile = split; tile < tile_count; tile += Tile::kSplits, stage ^= 1) {
    ptx::copy_async_wait<0>();
    split_barrier<Tile>(split);  // this tile is there, and all are done with the other stage
    load(tile + Tile::kSplits, stage ^ 1);
    Math::forget(queries);
    const T* keys = tiles + stage * 2 * Tile::kTile;
    attend<Tile, Math>(queries, keys, keys + Tile::kTile, call.tokens - tile * Tile::kKeys, sums);
  }
  ptx::copy_async_wait<0>();
  if (!merge_splits<Tile>(sums, split)) return;

  const int lane = ptx::lane_id(), group = lane / 4, quad = lane % 4;
#pragma unroll
  for (int m = 0; m < Tile::kMTiles; ++m)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first_row + 16 * m + group + 8 * r;
      if (row >= call.tokens) continue;
      const float scale = 1.0f / sums.total[m][r];
      T* to = static_cast<T*>(call.out) + (image + row) * call.out_stride + head + quad * 2;
#pragma unroll
      for (int n = 0; n < Tile::kDim / 8; ++n)
        Math::store(to + n * 8, sums.out[m][n][2 * r] * scale, sums.out[m][n][2 * r + 1] * scale);
    }
}

}  // namespace dvt::cuda
