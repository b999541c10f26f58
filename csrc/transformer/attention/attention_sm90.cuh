// softmax(q k^T) v on Hopper: tiles by the bulk copy engine, both products by whole warpgroups, scores and
// probabilities only in registers (after Shah et al., "FlashAttention-3", 2024).
//
// A block has 64 queries of one head for each of its kGroups warpgroups, and passes over the keys kKeys at a time. One
// more warpgroup asks for the tiles, kStages ahead. With S the scores of the next keys and P the probabilities of
// these,
//   S = Q K[j]^T  and  O += P V[j - 1]  run at the same time; when S is there, its softmax runs under the second
//   product
// so that the tensor cores and the exponentials overlap within a warpgroup, and between the two as well.
//
// The tensor map has the tokens of an image as a dimension of their own: keys behind the last one are zeros (and their
// scores set to minus infinity), whatever image comes next in memory; rows behind the last query are not stored.
//
// FLOP: 4 tokens^2 head_dim a head. Traffic from the second-level cache: 4 tokens head_dim bytes (16-bit) a block.
// Counted for head_dim 64 and a tile of 128 x 128: 1024 cycles of products, 1024 of exponentials (16 a cycle and
// multiprocessor), about 600 of other instructions, 32 KB. So 1369 tokens, 12 heads (132 blocks) are 11,300 cycles at
// least, 6.2 us at 1.83 GHz; 5329 tokens (504 blocks) 4 times 43,000, 94 us. An estimate: not measured.
#pragma once

#include "cuda/numeric.cuh"
#include "cuda/ptx_sm90.cuh"
#include "cuda/wgmma.cuh"

namespace dvt::cuda {

template <class T_, int kHeadDim_, int kGroups_, int kKeys_, int kStages_>
struct AttentionTileSm90 {
  using T = T_;
  static constexpr int kHeadDim = kHeadDim_, kGroups = kGroups_, kKeys = kKeys_, kStages = kStages_;
  static constexpr int kThreads = 128 * (kGroups + 1);
  static constexpr int kBlocks = kHeadDim / 64;           // of 64 channels, 128 bytes
  static constexpr int kQueryBytes = 64 * kBlocks * 128;  // of a warpgroup
  static constexpr int kKeyBytes = kKeys * kBlocks * 128;
  static constexpr int kKeyOffset = kGroups * kQueryBytes, kValueOffset = kKeyOffset + kStages * kKeyBytes;
  static constexpr int kBarriers = kValueOffset + kStages * kKeyBytes;
  static constexpr int kSharedBytes = kBarriers + (4 * kStages + 1) * static_cast<int>(sizeof(ptx::Barrier));

  static_assert(sizeof(T) == 2 && kHeadDim % 64 == 0 && kKeys % 16 == 0);
  static_assert(kSharedBytes <= 232448);
};

struct AttentionSm90Call {
  int tokens = 0, heads = 0;
};

namespace detail {

// The running maximum and sum of two rows (group and group + 8 of the warp), the sum of this lane's columns only.
struct SoftmaxRows {
  float maximum[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0.0f, 0.0f};
};

// Scores become 2^(score - maximum); returns by what earlier results have to be multiplied.
template <int kCount>
DVT_DEVICE float2 softmax_step(float (&s)[kCount], SoftmaxRows& rows) {
  float scale[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float maximum = rows.maximum[r];
#pragma unroll
    for (int i = 0; i < kCount; i += 4) maximum = fmaxf(maximum, fmaxf(s[i + 2 * r], s[i + 2 * r + 1]));
    maximum = fmaxf(maximum, __shfl_xor_sync(0xffffffffu, maximum, 1));
    maximum = fmaxf(maximum, __shfl_xor_sync(0xffffffffu, maximum, 2));
    scale[r] = ptx::exp2_approx(rows.maximum[r] - maximum);
    rows.maximum[r] = maximum;
    float sum0 = 0.0f, sum1 = 0.0f;
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      s[i + 2 * r] = ptx::exp2_approx(s[i + 2 * r] - maximum);
      s[i + 2 * r + 1] = ptx::exp2_approx(s[i + 2 * r + 1] - maximum);
      sum0 += s[i + 2 * r], sum1 += s[i + 2 * r + 1];
    }
    rows.sum[r] = rows.sum[r] * scale[r] + (sum0 + sum1);
  }
  return make_float2(scale[0], scale[1]);
}

// Columns from `keys` on belong to no key.
template <int kCount>
DVT_DEVICE void mask_scores(float (&s)[kCount], int keys) {
  const int quad = static_cast<int>(ptx::lane_id()) & 3;
#pragma unroll
  for (int i = 0; i < kCount; ++i)
    if (8 * (i / 4) + 2 * quad + (i & 1) >= keys) s[i] = -INFINITY;
}

}  // namespace detail

// qkv_map and key_map: [batch][tokens][columns] with boxes of 64 columns and 64 or kKeys tokens; out_map: boxes of 64
// x 64.
template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    attention_sm90_kernel(const __grid_constant__ ptx::TensorMap query_map,
                          const __grid_constant__ ptx::TensorMap key_map,
                          const __grid_constant__ ptx::TensorMap out_map, const AttentionSm90Call call) {
#if DVT_HAS_SM90A
  using T = typename Tile::T;
  constexpr int kStages = Tile::kStages, kKeys = Tile::kKeys, kHeadDim = Tile::kHeadDim;
  char* shared = ptx::shared_memory();
  ptx::Barrier* full_keys = reinterpret_cast<ptx::Barrier*>(shared + Tile::kBarriers);
  ptx::Barrier* full_values = full_keys + kStages;
  ptx::Barrier* empty_keys = full_values + kStages;
  ptx::Barrier* empty_values = empty_keys + kStages;
  ptx::Barrier* full_queries = empty_values + kStages;
  const int warpgroup = static_cast<int>(threadIdx.x) >> 7;
  const int first = static_cast<int>(blockIdx.x) * 64 * Tile::kGroups;
  const int head = static_cast<int>(blockIdx.y), image = static_cast<int>(blockIdx.z);
  const int inner = call.heads * kHeadDim, column = head * kHeadDim;
  const int steps = (call.tokens + kKeys - 1) / kKeys;

  if (threadIdx.x == 0) {
    if (ptx::shared_address(shared) % 1024 != 0) __trap();  // the swizzle is one of addresses
    for (int s = 0; s < kStages; ++s) {
      ptx::barrier_init(full_keys + s, 1);
      ptx::barrier_init(full_values + s, 1);
      ptx::barrier_init(empty_keys + s, 4 * Tile::kGroups);
      ptx::barrier_init(empty_values + s, 4 * Tile::kGroups);
    }
    ptx::barrier_init(full_queries, 1);
    ptx::barrier_init_fence();
  }
  __syncthreads();
  ptx::allow_next();

  if (warpgroup == Tile::kGroups) {
    if constexpr (Tile::kGroups == 2) ptx::registers_decrease<40>();
    if (threadIdx.x < 128 * Tile::kGroups + 32 && ptx::elect_one()) {
      ptx::prefetch_map(&query_map);
      ptx::prefetch_map(&key_map);
      ptx::wait_for_previous();
      ptx::barrier_arrive_expect(full_queries, Tile::kGroups * Tile::kQueryBytes);
      for (int g = 0; g < Tile::kGroups; ++g)
        for (int b = 0; b < Tile::kBlocks; ++b)
          ptx::copy_tile(shared + g * Tile::kQueryBytes + b * 8192, &query_map, full_queries, column + 64 * b,
                         first + 64 * g, image);
      int stage = 0, turn = 0;
      for (int step = 0; step < steps; ++step) {
        // In the first turn a stage is free: as if the phase before the first were complete.
        const uint32_t parity = static_cast<uint32_t>(turn & 1) ^ 1u;
        ptx::barrier_wait(empty_keys + stage, parity);
        ptx::barrier_arrive_expect(full_keys + stage, Tile::kKeyBytes);
        for (int b = 0; b < Tile::kBlocks; ++b)
          ptx::copy_tile(shared + Tile::kKeyOffset + stage * Tile::kKeyBytes + b * kKeys * 128, &key_map,
                         full_keys + stage, inner + column + 64 * b, step * kKeys, image);
        ptx::barrier_wait(empty_values + stage, parity);
        ptx::barrier_arrive_expect(full_values + stage, Tile::kKeyBytes);
        for (int b = 0; b < Tile::kBlocks; ++b)
          ptx::copy_tile(shared + Tile::kValueOffset + stage * Tile::kKeyBytes + b * kKeys * 128, &key_map,
                         full_values + stage, 2 * inner + column + 64 * b, step * kKeys, image);
        if (++stage == kStages) stage = 0, ++turn;
      }
    }
  } else {
    if constexpr (Tile::kGroups == 2) ptx::registers_increase<232>();
    const bool leader = (threadIdx.x & 31) == 0;
    char* queries = shared + warpgroup * Tile::kQueryBytes;
    const uint64_t q = ptx::tile_descriptor(queries);
    float s[kKeys / 2], o[kHeadDim / 2];
    uint32_t p[kKeys / 16][4];
    detail::SoftmaxRows rows;

    const auto start_scores = [&](int stage) {
      const uint64_t k = ptx::tile_descriptor(shared + Tile::kKeyOffset + stage * Tile::kKeyBytes);
      ptx::wgmma_fence();
#pragma unroll
      for (int c = 0; c < kHeadDim / 16; ++c) {
        const uint32_t block = static_cast<uint32_t>(c / 4), within = static_cast<uint32_t>(c % 4) * 32;
        ptx::Wgmma<T>::run(s, ptx::advance(q, block * 8192 + within), ptx::advance(k, block * kKeys * 128 + within),
                           c > 0);
      }
      ptx::wgmma_commit();
    };
    const auto start_sums = [&](int stage, bool accumulate) {
      const uint64_t v = ptx::tile_descriptor(shared + Tile::kValueOffset + stage * Tile::kKeyBytes, 1024, kKeys * 128);
      ptx::wgmma_fence();
#pragma unroll
      for (int i = 0; i < kKeys / 16; ++i)
        ptx::Wgmma<T, true>::run(o, p[i], ptx::advance(v, static_cast<uint32_t>(i) * 2048), accumulate || i > 0);
      ptx::wgmma_commit();
    };
    const auto pack_probabilities = [&] {
#pragma unroll
      for (int i = 0; i < kKeys / 16; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) p[i][j] = pack2<T>(s[8 * i + 2 * j], s[8 * i + 2 * j + 1]);
        ptx::hold(p[i]);
      }
    };

    ptx::barrier_wait(full_queries, 0);
    ptx::barrier_wait(full_keys, 0);
    ptx::hold(s);
    start_scores(0);
    ptx::wgmma_wait<0>();
    ptx::hold(s);
    if (leader) ptx::barrier_arrive(empty_keys);
    if (steps == 1) detail::mask_scores(s, call.tokens);
    detail::softmax_step(s, rows);
    pack_probabilities();

    // Two warpgroups take turns to start products, so that one has its softmax while the other's run, and not both at
    // once: barrier 3 + g opens for warpgroup g when the other one has started. It opens as often as it is waited for.
    constexpr bool kTurns = Tile::kGroups == 2;
    if (kTurns && warpgroup == 1 && steps > 1) ptx::named_barrier_arrive(3, 256);

    int stage = 0, turn = 0;  // of the values that are next; keys are one ahead
    for (int step = 1; step < steps; ++step) {
      const int next = stage + 1 == kStages ? 0 : stage + 1, next_turn = stage + 1 == kStages ? turn + 1 : turn;
      ptx::barrier_wait(full_keys + next, static_cast<uint32_t>(next_turn & 1));
      ptx::barrier_wait(full_values + stage, static_cast<uint32_t>(turn & 1));
      ptx::hold(s);
      ptx::hold(o);
      if (kTurns) ptx::named_barrier(3 + warpgroup, 256);
      start_scores(next);
      start_sums(stage, step > 1);
      if (kTurns && (warpgroup == 0 || step + 1 < steps)) ptx::named_barrier_arrive(3 + (warpgroup ^ 1), 256);
      ptx::wgmma_wait<1>();
      ptx::hold(s);
      if (step + 1 == steps) detail::mask_scores(s, call.tokens - step * kKeys);
      const float2 scale = detail::softmax_step(s, rows);
      // Always true; but so the compiler cannot wait for the second product before it has computed the softmax.
      if (leader && !(rows.sum[0] + rows.sum[1] < 0.0f)) ptx::barrier_arrive(empty_keys + next);
      ptx::wgmma_wait<0>();
      ptx::hold(o);
      if (leader) ptx::barrier_arrive(empty_values + stage);
#pragma unroll
      for (int i = 0; i < kHeadDim / 2; ++i) o[i] *= i & 2 ? scale.y : scale.x;
      pack_probabilities();
      stage = next;
      turn = next_turn;
    }
    ptx::barrier_wait(full_values + stage, static_cast<uint32_t>(turn & 1));
    ptx::hold(o);
    start_sums(stage, steps > 1);

    // Meanwhile the sums of the four lanes of a row are added.
    float inverse[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float sum = rows.sum[r];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      inverse[r] = 1.0f / sum;
    }
    ptx::wgmma_wait<0>();
    ptx::hold(o);

    // The result goes where this warpgroup's queries were, which it alone has read.
    const int warp = static_cast<int>(threadIdx.x) / 32 & 3, lane = static_cast<int>(ptx::lane_id());
    const int group = lane >> 2, quad = lane & 3;
    ptx::named_barrier(1 + warpgroup, 128);
#pragma unroll
    for (int j = 0; j < kHeadDim / 8; ++j) {
      char* at = queries + j / 8 * 8192 + (16 * warp + group) * 128 + (j % 8 ^ group) * 16 + 4 * quad;
      *reinterpret_cast<uint32_t*>(at) = pack2<T>(o[4 * j] * inverse[0], o[4 * j + 1] * inverse[0]);
      *reinterpret_cast<uint32_t*>(at + 8 * 128) = pack2<T>(o[4 * j + 2] * inverse[1], o[4 * j + 3] * inverse[1]);
    }
    ptx::fence_async();
    ptx::named_barrier(1 + warpgroup, 128);
    if ((threadIdx.x & 127) == 0 && first + 64 * warpgroup < call.tokens) {
      ptx::wait_for_previous();
      for (int b = 0; b < Tile::kBlocks; ++b)
        ptx::store_tile(&out_map, queries + b * 8192, column + 64 * b, first + 64 * warpgroup, image);
      ptx::store_commit();
      ptx::store_wait_read<0>();
    }
  }
#else
  __trap();
#endif
}

}  // namespace dvt::cuda
