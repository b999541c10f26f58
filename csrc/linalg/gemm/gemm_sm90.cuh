// y = epilogue(x W^T) on Hopper's tensor cores: tiles come by the bulk copy engine (TMA), products are those of whole
// warpgroups (wgmma), and the epilogue sees float32 sums.
//
//   kernel   gemm_sm90_kernel<Tile, Epilogue>    tiles of kM x kN; x [rows, K] and W [cols, K] with K contiguous
//
// One warp of the first warpgroup asks for tiles, kStages of 128 bytes of K ahead; the other one or two have 64 rows
// each. A stage is handed over by two mbarriers: `full` counts the bytes that arrive, `empty` the warps that have read
// it. Edges need no code: what lies outside a matrix arrives as zeros and is not stored.
//
// Three ways to keep 132 multiprocessors busy, and the second-level cache not too busy:
//   alone    blocks take tile after tile (a grid of as many blocks as there are tiles, or of one a multiprocessor);
//            copies of the next tile run while this one's epilogue does.
//   shared   the same in pairs (clusters of two), for two tiles with the same rows: each block fetches half of x
//            for both.
//   split    for few rows: a cluster of up to 8 blocks has one tile, each sums a part of K, then each reads its share
//   of
//            the rows of all parts through distributed shared memory, in the order of the parts: the same bits always.
//
// Counted, 16-bit types, a stage of kM = 128: (128 + kN) 128 bytes of traffic, half of x less if shared, for 4 kN
// cycles of the tensor cores: 32 KB for 512, 40 (32) KB for 768, 48 (40) KB for 1024 cycles with kN = 128, 192, 256.
// All multiprocessors together get some 4,800 bytes a cycle out of that cache, 36 each: traffic is the limit, and the
// larger tile the better one, as long as every multiprocessor has one.
#pragma once

#include "cuda/numeric.cuh"
#include "cuda/ptx_sm90.cuh"
#include "cuda/wgmma.cuh"

namespace dvt::cuda {

template <class T_, int kM_, int kN_, int kStages_>
struct GemmTileSm90 {
  using T = T_;
  static constexpr int kM = kM_, kN = kN_, kStages = kStages_;
  static constexpr int kGroups = kM / 64;  // of consumers
  static constexpr int kThreads = 128 * (1 + kGroups), kConsumerWarps = 4 * kGroups;
  static constexpr int kK = 128 / static_cast<int>(sizeof(T));  // of a stage
  static constexpr int kBytesX = kM * 128, kBytesW = kN * 128, kStageBytes = kBytesX + kBytesW;
  static constexpr int kStaging = kStages * kStageBytes;  // offset: 4 KB a consumer warp, for the epilogue
  static constexpr int kBarriers = kStaging + kConsumerWarps * 4096;
  static constexpr int kSharedBytes = kBarriers + 2 * kStages * static_cast<int>(sizeof(ptx::Barrier));

  static_assert((kM == 64 || kM == 128) && kN % 64 == 0 && kN <= 256);
  static_assert(kM * kN * 4 <= kStaging, "the sums of a tile fit where its operands were");
  static_assert(kSharedBytes <= 232448);
};

// What clusters of two blocks share: `rows`, the tile of x of two neighbouring columns of tiles; `columns`, the tile of
// W of two neighbouring rows of tiles.
enum class Sharing { nothing, rows, columns };

struct GemmSm90Call {
  int rows = 0, cols = 0;
  int steps = 0;                       // stages of K
  int split = 1;                       // blocks a tile, that is, of a cluster; at most `steps` and 8
  Sharing sharing = Sharing::nothing;  // not with split
  int tiles_m = 0, tiles_n = 0;
  // Whether the epilogue's values are stored by the copy engine, packed to T (split == 1 only), or by Epilogue::store.
  bool packed = false;
};

// An epilogue has
//   static constexpr bool kHasPairs, and if so, for packed values:
//     float2 pair(float2 sums, int col)               what to store for columns col and col + 1, cols being even
//   static constexpr bool kHasWide, bool is_wide()   whether there is, for this call, besides `store`:
//     float4 load_wide(int row, int col)              what store_wide wants back, read for several rows at once
//     void store_wide(int row, int col, float4 sums, float4 held)
//   void store(int row, int col, float4 sums)         four columns of one row, of which some may be behind the last
// with row and col within the matrix, col a multiple of four. The kernel has called wait_for_previous.

namespace detail {

// Floats of one row in shared memory, in pieces of four; eight rows that a warp writes at once, two neighbours a lane,
// fall into different banks. kRowFloats: of a row.
template <int kRowFloats>
DVT_DEVICE int staged_at(int row, int piece) {
  return row * kRowFloats + (piece ^ (row & 7) << 1) * 4;
}

// This warp's sums, its 16 rows, columns 64 block .. + 63, into its 4 KB.
template <int kCount>
DVT_DEVICE void stage_sums(const float (&d)[kCount], int block, float* staged) {
  const int lane = static_cast<int>(ptx::lane_id()), group = lane >> 2, quad = lane & 3;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float* sums = d + 32 * block + 4 * j;
    const int at = staged_at<64>(group, 2 * j + (quad >> 1)) + 2 * (quad & 1);
    *reinterpret_cast<float2*>(staged + at) = make_float2(sums[0], sums[1]);
    *reinterpret_cast<float2*>(staged + at + 8 * 64) = make_float2(sums[2], sums[3]);
  }
}

// Rows of y through the copy engine, 64 columns at a time, from two buffers in turn: while one is read by the engine,
// the other is written; `stores` counts on through all tiles. Called by the 128 threads of a warpgroup; `half`: which
// 64 rows of the tile.
template <class Tile, class Epilogue>
DVT_DEVICE void store_packed(const float (&d)[Tile::kN / 2], const ptx::TensorMap& y_map, const GemmSm90Call& call,
                             const Epilogue& epilogue, int row, int col, int half, char* staging, int& stores) {
  using T = typename Tile::T;
  const int thread = static_cast<int>(threadIdx.x) & 127, warp = thread >> 5;
  const int lane = thread & 31, group = lane >> 2, quad = lane & 3;
#pragma unroll
  for (int block = 0; block < Tile::kN / 64; ++block) {
    if (col + 64 * block >= call.cols) break;
    char* buffer = staging + half * 16384 + (stores++ & 1) * 8192;
    if (thread == 0) ptx::store_wait_read<1>();
    ptx::named_barrier(1 + half, 128);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float* sums = d + 32 * block + 4 * j;
      const int c = min(col + 64 * block + 8 * j + 2 * quad, call.cols - 2);  // what is behind the last is not stored
      const float2 upper = epilogue.pair(make_float2(sums[0], sums[1]), c);
      const float2 lower = epilogue.pair(make_float2(sums[2], sums[3]), c);
      char* at = buffer + (16 * warp + group) * 128 + (j ^ group) * 16 + 4 * quad;
      *reinterpret_cast<uint32_t*>(at) = pack2<T>(upper.x, upper.y);
      *reinterpret_cast<uint32_t*>(at + 8 * 128) = pack2<T>(lower.x, lower.y);
    }
    ptx::fence_async();
    ptx::named_barrier(1 + half, 128);
    if (thread == 0) {
      ptx::store_tile(&y_map, buffer, col + 64 * block, row + 64 * half);
      ptx::store_commit();
    }
  }
}

// The same by ordinary stores of four columns a lane, whole rows of 64 columns by 16 lanes: each warp for itself.
template <class Tile, class Epilogue>
DVT_DEVICE void store_rows(const float (&d)[Tile::kN / 2], const GemmSm90Call& call, const Epilogue& epilogue, int row,
                           int col, float* staged) {
  const int lane = static_cast<int>(ptx::lane_id()), piece = lane & 15;
#pragma unroll
  for (int block = 0; block < Tile::kN / 64; ++block) {
    const int c = col + 64 * block + 4 * piece;
    const auto stage = [&] {
      __syncwarp();
      stage_sums(d, block, staged);
      __syncwarp();
    };
    const auto sums_of = [&](int r) { return *reinterpret_cast<const float4*>(staged + staged_at<64>(r, piece)); };
    if constexpr (Epilogue::kHasWide) {
      if (epilogue.is_wide()) {
        float4 held[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const int r = row + 2 * i + (lane >> 4);
          if (r < call.rows && c < call.cols) held[i] = epilogue.load_wide(r, c);
        }
        stage();
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const int r = 2 * i + (lane >> 4);
          if (row + r < call.rows && c < call.cols) epilogue.store_wide(row + r, c, sums_of(r), held[i]);
        }
        continue;
      }
    }
    stage();
#pragma unroll 1
    for (int r = lane >> 4; r < 16; r += 2)
      if (row + r < call.rows && c < call.cols) epilogue.store(row + r, c, sums_of(r));
  }
}

// The parts of a tile, one a block of the cluster, added in their order. Rows are dealt out to the blocks, and four at
// a time to the warps of a block, so that enough loads are on their way.
template <class Tile, class Epilogue>
DVT_DEVICE void store_parts(const GemmSm90Call& call, const Epilogue& epilogue, int row, int col, int warp, int rank,
                            const float* sums) {
  constexpr int kRows = 4;
  const int piece = static_cast<int>(ptx::lane_id()), c = col + 4 * piece;
  const int end = min(Tile::kM * (rank + 1) / call.split, call.rows - row);
  if (c >= call.cols) return;
#pragma unroll 1
  for (int r = Tile::kM * rank / call.split + kRows * warp; r < end; r += kRows * Tile::kConsumerWarps) {
    float4 held[kRows], sum[kRows];
    bool is_wide = false;
    if constexpr (Epilogue::kHasWide) {
      is_wide = epilogue.is_wide();
#pragma unroll
      for (int i = 0; i < kRows; ++i)
        if (is_wide && r + i < end) held[i] = epilogue.load_wide(row + r + i, c);
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) sum[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 1
    for (int part = 0; part < call.split; ++part) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        // Rows behind the last of this block are there too, if not of use.
        const int from = min(r + i, Tile::kM - 1);
        const float4 v = ptx::load_cluster(sums + staged_at<Tile::kN>(from, piece), static_cast<uint32_t>(part));
        sum[i].x += v.x, sum[i].y += v.y, sum[i].z += v.z, sum[i].w += v.w;
      }
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (r + i >= end) break;
      if constexpr (Epilogue::kHasWide) {
        if (is_wide) {
          epilogue.store_wide(row + r + i, c, sum[i], held[i]);
          continue;
        }
      }
      epilogue.store(row + r + i, c, sum[i]);
    }
  }
}

}  // namespace detail

// Maps: boxes of 64 rows of x, kN / 2 rows of W, both 128 bytes wide; y, where it is packed: 64 x 64.
template <class Tile, class Epilogue>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    gemm_sm90_kernel(const __grid_constant__ ptx::TensorMap x_map, const __grid_constant__ ptx::TensorMap w_map,
                     const __grid_constant__ ptx::TensorMap y_map, const GemmSm90Call call, const Epilogue epilogue) {
#if DVT_HAS_SM90A
  using T = typename Tile::T;
  constexpr int kStages = Tile::kStages, kGroups = Tile::kGroups;
  char* shared = ptx::shared_memory();
  ptx::Barrier* full = reinterpret_cast<ptx::Barrier*>(shared + Tile::kBarriers);
  ptx::Barrier* empty = full + kStages;
  const int warpgroup = static_cast<int>(threadIdx.x) >> 7;
  const bool shares_rows = call.sharing == Sharing::rows, shares_columns = call.sharing == Sharing::columns;
  const bool shares = shares_rows || shares_columns;
  const int cluster = shares ? 2 : call.split;
  const int rank = static_cast<int>(blockIdx.x) % cluster;
  // Work is dealt out to clusters: tiles, or pairs of tiles.
  const int step_m = shares_columns ? 2 : 1, step_n = shares_rows ? 2 : 1;
  const int work_m = (call.tiles_m + step_m - 1) / step_m, work = work_m * ((call.tiles_n + step_n - 1) / step_n);
  const int first = static_cast<int>(blockIdx.x) / cluster, stride = static_cast<int>(gridDim.x) / cluster;
  const auto row_of = [&](int w) { return (w % work_m * step_m + (shares_columns ? rank : 0)) * Tile::kM; };
  const auto column_of = [&](int w) { return (w / work_m * step_n + (shares_rows ? rank : 0)) * Tile::kN; };
  const int part = call.split > 1 ? rank : 0;
  const int begin = call.steps * part / call.split, end = call.steps * (part + 1) / call.split;

  if (threadIdx.x == 0) {
    if (ptx::shared_address(shared) % 1024 != 0) __trap();  // the swizzle is one of addresses
    for (int s = 0; s < kStages; ++s) {
      ptx::barrier_init(full + s, 1);
      ptx::barrier_init(empty + s, static_cast<uint32_t>(Tile::kConsumerWarps * (shares ? 2 : 1)));
    }
    ptx::barrier_init_fence();
  }
  if (shares)
    ptx::cluster_sync();
  else
    __syncthreads();
  ptx::allow_next();

  if (warpgroup == 0) {
    if constexpr (kGroups == 2) ptx::registers_decrease<40>();
    if (threadIdx.x < 32 && ptx::elect_one()) {
      ptx::prefetch_map(&x_map);
      ptx::prefetch_map(&w_map);
      const auto copy_w = [&](int stage, int step, int column) {
        constexpr int kHalf = Tile::kN / 2;
        char* to = shared + stage * Tile::kStageBytes + Tile::kBytesX;
        ptx::barrier_arrive_expect(full + stage, Tile::kStageBytes);
        for (int half = 0; half < 2; ++half) {
          if (!shares_columns)
            ptx::copy_tile(to + half * kHalf * 128, &w_map, full + stage, step * Tile::kK, column + half * kHalf);
          else if (half == rank)
            ptx::copy_tile_multicast(to + half * kHalf * 128, &w_map, full + stage, step * Tile::kK,
                                     column + half * kHalf, 3);
        }
      };
      const auto copy_x = [&](int stage, int step, int row) {
        char* to = shared + stage * Tile::kStageBytes;
        for (int g = 0; g < kGroups; ++g) {
          if (!shares_rows)
            ptx::copy_tile(to + g * 8192, &x_map, full + stage, step * Tile::kK, row + 64 * g);
          else if (g == rank)
            ptx::copy_tile_multicast(to + g * 8192, &x_map, full + stage, step * Tile::kK, row + 64 * g, 3);
        }
      };
      // Weights don't depend on the kernel before this one: as many as there are stages are asked for at once.
      const int early = min(kStages, end - begin);
      for (int s = 0; s < early; ++s) copy_w(s, begin + s, column_of(first));
      ptx::wait_for_previous();
      int stage = 0, turn = 0;
      for (int w = first; w < work; w += stride) {
        for (int step = begin; step < end; ++step) {
          if (w != first || step - begin >= early) {
            // In the first turn a stage is free: as if the phase before the first were complete.
            ptx::barrier_wait(empty + stage, static_cast<uint32_t>(turn & 1) ^ 1u);
            copy_w(stage, step, column_of(w));
          }
          copy_x(stage, step, row_of(w));
          if (++stage == kStages) stage = 0, ++turn;
        }
      }
    }
    __syncwarp();
    if (cluster > 1) ptx::cluster_sync();
    if (call.split > 1) ptx::cluster_sync();
  } else {
    if constexpr (kGroups == 2) ptx::registers_increase<232>();
    const int group = warpgroup - 1, warp = static_cast<int>(threadIdx.x) / 32 - 4;
    const int lane = static_cast<int>(threadIdx.x) & 31;
    float d[Tile::kN / 2];
    int stage = 0, turn = 0, before = 0, stores = 0;
    const auto release = [&](int s) {
      if (lane == 0) ptx::barrier_arrive(empty + s);
      if (lane == 1 && shares) ptx::barrier_arrive(empty + s, static_cast<uint32_t>(rank ^ 1));
    };
    for (int w = first; w < work; w += stride) {
      const int row = row_of(w), column = column_of(w);
      ptx::hold(d);
      for (int step = begin; step < end; ++step) {
        ptx::barrier_wait(full + stage, static_cast<uint32_t>(turn & 1));
        const char* at = shared + stage * Tile::kStageBytes;
        const uint64_t x_tile = ptx::tile_descriptor(at + group * 8192);
        const uint64_t w_tile = ptx::tile_descriptor(at + Tile::kBytesX);
        ptx::wgmma_fence();
#pragma unroll
        for (uint32_t k = 0; k < 128; k += 32)
          ptx::Wgmma<T>::run(d, ptx::advance(x_tile, k), ptx::advance(w_tile, k), step > begin || k > 0);
        ptx::wgmma_commit();
        if (step > begin) {
          // The products of the stage before are done; those of this one go on.
          ptx::wgmma_wait<1>();
          release(before);
        }
        before = stage;
        if (++stage == kStages) stage = 0, ++turn;
      }
      ptx::wgmma_wait<0>();
      ptx::hold(d);
      release(before);

      ptx::wait_for_previous();
      if (call.split > 1) {
        if constexpr (Tile::kN == 128) {
          // All stages have been read: their memory takes this block's part of the sums.
          ptx::named_barrier(1, 128 * kGroups);
          float* sums = reinterpret_cast<float*>(shared);
          const int quad = lane & 3;
#pragma unroll
          for (int j = 0; j < Tile::kN / 8; ++j) {
            const int to = detail::staged_at<Tile::kN>(16 * warp + (lane >> 2), 2 * j + (quad >> 1)) + 2 * (quad & 1);
            *reinterpret_cast<float2*>(sums + to) = make_float2(d[4 * j], d[4 * j + 1]);
            *reinterpret_cast<float2*>(sums + to + 8 * Tile::kN) = make_float2(d[4 * j + 2], d[4 * j + 3]);
          }
          __syncwarp();
          ptx::cluster_sync();
          detail::store_parts<Tile>(call, epilogue, row, column, warp, rank, sums);
        }
      } else if (call.packed) {
        if constexpr (sizeof(T) == 2 && Epilogue::kHasPairs)
          detail::store_packed<Tile>(d, y_map, call, epilogue, row, column, group, shared + Tile::kStaging, stores);
      } else {
        detail::store_rows<Tile>(d, call, epilogue, row + 16 * warp, column,
                                 reinterpret_cast<float*>(shared + Tile::kStaging + warp * 4096));
      }
    }
    if (call.packed && (threadIdx.x & 127) == 0) ptx::store_wait_read<0>();
    __syncwarp();
    if (cluster > 1) ptx::cluster_sync();  // until no block reads or arrives here any more
  }
#else
  __trap();
#endif
}

}  // namespace dvt::cuda
