// y = epilogue(x W^T) on Hopper's tensor cores: tiles come by the bulk copy engine (TMA), products are those of whole
// warpgroups (wgmma), and the epilogue sees float32 sums.
//
//   kernel   gemm_sm90_kernel<Tile, Epilogue>    tiles of 128 x kN; x [rows, K] and W [cols, K] with K contiguous
//
// A block is three warpgroups: one warp of the first asks for tiles, kStages of 128 bytes of K ahead; the two others
// have 64 rows each. A stage is handed over by two mbarriers: `full` counts the bytes that arrive, `empty` the warps
// that have read it. Edges need no code: what lies outside a matrix arrives as zeros and is not stored.
//
// Two ways to keep 132 multiprocessors busy:
//   split == 1   blocks take tile after tile (a grid of as many blocks as there are tiles, or of one a multiprocessor);
//                copies of the next tile run while this one's epilogue does.
//   split >= 2   for few rows: a cluster of `split` blocks shares one tile, each sums a part of K, then each reads all
//                parts of its share of the rows through distributed shared memory, in the order of the parts: the same
//                bits every time.
//
// A tile costs (128 + kN) 128 bytes of traffic from the second-level cache and 128 kN / 64 cycles of the tensor cores a
// stage (of 16-bit types): 32 KB for 512 cycles, 40 KB for 768, 48 KB for 1024 with kN = 128, 192, 256. About 30 bytes
// a cycle and multiprocessor can be had, so traffic is the limit, and the larger tile the better one, as long as all
// multiprocessors have one.
#pragma once

#include "cuda/numeric.cuh"
#include "cuda/ptx_sm90.cuh"
#include "cuda/wgmma.cuh"

namespace dvt::cuda {

template <class T_, int kN_, int kStages_>
struct GemmTileSm90 {
  using T = T_;
  static constexpr int kM = 128, kN = kN_, kStages = kStages_;
  static constexpr int kThreads = 384, kConsumerWarps = 8;
  static constexpr int kK = 128 / static_cast<int>(sizeof(T));  // of a stage
  static constexpr int kBytesX = kM * 128, kBytesW = kN * 128, kStageBytes = kBytesX + kBytesW;
  static constexpr int kStaging = kStages * kStageBytes;  // offset: 4 KB a consumer warp, for the epilogue
  static constexpr int kBarriers = kStaging + kConsumerWarps * 4096;
  static constexpr int kSharedBytes = kBarriers + 2 * kStages * static_cast<int>(sizeof(ptx::Barrier));

  static_assert(kN % 64 == 0 && kN <= 256);
  static_assert(kM * kN * 4 <= kStaging, "the sums of a tile fit where its operands were");
  static_assert(kSharedBytes <= 232448);
};

struct GemmSm90Call {
  int rows = 0, cols = 0;
  int steps = 0;  // stages of K
  int split = 1;  // blocks a tile, that is, of a cluster; at most `steps` and 8
  int tiles_m = 0, tiles_n = 0;
  // Whether the epilogue's values are stored by the copy engine, packed to T (split == 1 only), or by Epilogue::store.
  bool packed = false;
};

// An epilogue has
//   float2 pair(float2 sums, int col)       what to store for columns col, col + 1 (col < cols)
//   void load(int row, int col, float4* held)   reads what `store` adds
//   void store(int row, int col, float4 sums, float4 held)   four columns of one row, within rows and cols
// and calls wait_for_previous itself nowhere: the kernel has done so.

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
      const int c = col + 64 * block + 8 * j + 2 * quad;
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
  const int lane = static_cast<int>(ptx::lane_id());
#pragma unroll
  for (int block = 0; block < Tile::kN / 64; ++block) {
    const int c = col + 64 * block + 4 * (lane & 15);
    float4 held[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int r = row + 2 * i + (lane >> 4);
      if (r < call.rows && c < call.cols) epilogue.load(r, c, &held[i]);
    }
    __syncwarp();
    stage_sums(d, block, staged);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int r = 2 * i + (lane >> 4);
      const float4 sums = *reinterpret_cast<const float4*>(staged + staged_at<64>(r, lane & 15));
      if (row + r < call.rows && c < call.cols) epilogue.store(row + r, c, sums, held[i]);
    }
  }
}

// The parts of a tile, one a block of the cluster, added in their order. Rows are dealt out to the blocks, and to the
// warps of a block.
template <class Tile, class Epilogue>
DVT_DEVICE void store_parts(const GemmSm90Call& call, const Epilogue& epilogue, int row, int col, int warp, int rank,
                            const float* sums) {
  const int lane = static_cast<int>(ptx::lane_id());
  const int end = Tile::kM * (rank + 1) / call.split;
  for (int r = Tile::kM * rank / call.split + warp; r < end && row + r < call.rows; r += Tile::kConsumerWarps) {
#pragma unroll
    for (int pieces = 0; pieces < Tile::kN / 128; ++pieces) {
      const int piece = 32 * pieces + lane, c = col + 4 * piece;
      if (c >= call.cols) break;
      const float* at = sums + staged_at<Tile::kN>(r, piece);
      float4 held;
      epilogue.load(row + r, c, &held);
      float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 4
      for (int part = 0; part < call.split; ++part) {
        const float4 v = ptx::load_cluster(at, static_cast<uint32_t>(part));
        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
      }
      epilogue.store(row + r, c, sum, held);
    }
  }
}

}  // namespace detail

template <class Tile, class Epilogue>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    gemm_sm90_kernel(const __grid_constant__ ptx::TensorMap x_map, const __grid_constant__ ptx::TensorMap w_map,
                     const __grid_constant__ ptx::TensorMap y_map, const GemmSm90Call call, const Epilogue epilogue) {
#if DVT_HAS_SM90A
  using T = typename Tile::T;
  constexpr int kStages = Tile::kStages;
  char* shared = ptx::shared_memory();
  ptx::Barrier* full = reinterpret_cast<ptx::Barrier*>(shared + Tile::kBarriers);
  ptx::Barrier* empty = full + kStages;
  const int warpgroup = static_cast<int>(threadIdx.x) >> 7;
  const int tiles = call.tiles_m * call.tiles_n;
  const int rank = call.split == 1 ? 0 : static_cast<int>(blockIdx.x) % call.split;
  const int first_tile = static_cast<int>(blockIdx.x) / call.split;
  const int stride = static_cast<int>(gridDim.x) / call.split;
  const int begin = call.steps * rank / call.split, end = call.steps * (rank + 1) / call.split;

  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      ptx::barrier_init(full + s, 1);
      ptx::barrier_init(empty + s, Tile::kConsumerWarps);
    }
    ptx::barrier_init_fence();
  }
  __syncthreads();
  ptx::allow_next();

  if (warpgroup == 0) {
    ptx::registers_decrease<40>();
    if (threadIdx.x < 32 && ptx::elect_one()) {
      ptx::prefetch_map(&x_map);
      ptx::prefetch_map(&w_map);
      // Weights don't depend on the kernel before this one: as many as there are stages are asked for at once.
      const int early = min(kStages, end - begin);
      for (int s = 0; s < early; ++s) {
        ptx::barrier_arrive_expect(full + s, Tile::kStageBytes);
        ptx::copy_tile(shared + s * Tile::kStageBytes + Tile::kBytesX, &w_map, full + s, (begin + s) * Tile::kK,
                       first_tile / call.tiles_m * Tile::kN);
      }
      ptx::wait_for_previous();
      int stage = 0, turn = 0;
      for (int tile = first_tile; tile < tiles; tile += stride) {
        const int row = tile % call.tiles_m * Tile::kM, col = tile / call.tiles_m * Tile::kN;
        for (int step = begin; step < end; ++step) {
          char* to = shared + stage * Tile::kStageBytes;
          if (tile != first_tile || step - begin >= early) {
            // In the first turn a stage is free: as if the phase before the first were complete.
            ptx::barrier_wait(empty + stage, static_cast<uint32_t>(turn & 1) ^ 1u);
            ptx::barrier_arrive_expect(full + stage, Tile::kStageBytes);
            ptx::copy_tile(to + Tile::kBytesX, &w_map, full + stage, step * Tile::kK, col);
          }
          ptx::copy_tile(to, &x_map, full + stage, step * Tile::kK, row);
          if (++stage == kStages) stage = 0, ++turn;
        }
      }
    }
    __syncwarp();
    if (call.split > 1) {
      ptx::cluster_sync();
      ptx::cluster_sync();
    }
  } else {
    ptx::registers_increase<232>();
    const int half = warpgroup - 1, warp = static_cast<int>(threadIdx.x) / 32 - 4;
    const bool leader = (threadIdx.x & 31) == 0;
    float* staged = reinterpret_cast<float*>(shared + Tile::kStaging + warp * 4096);
    float d[Tile::kN / 2];
    int stage = 0, turn = 0, before = 0, stores = 0;
    for (int tile = first_tile; tile < tiles; tile += stride) {
      const int row = tile % call.tiles_m * Tile::kM, col = tile / call.tiles_m * Tile::kN;
      ptx::hold(d);
      for (int step = begin; step < end; ++step) {
        ptx::barrier_wait(full + stage, static_cast<uint32_t>(turn & 1));
        const char* at = shared + stage * Tile::kStageBytes;
        const uint64_t x = ptx::tile_descriptor(at + half * 8192);
        const uint64_t w = ptx::tile_descriptor(at + Tile::kBytesX);
        ptx::wgmma_fence();
#pragma unroll
        for (uint32_t k = 0; k < 128; k += 32)
          ptx::Wgmma<T>::run(d, ptx::advance(x, k), ptx::advance(w, k), step > begin || k > 0);
        ptx::wgmma_commit();
        if (step > begin) {
          // The products of the stage before are done; those of this one go on.
          ptx::wgmma_wait<1>();
          if (leader) ptx::barrier_arrive(empty + before);
        }
        before = stage;
        if (++stage == kStages) stage = 0, ++turn;
      }
      ptx::wgmma_wait<0>();
      ptx::hold(d);
      if (leader) ptx::barrier_arrive(empty + before);

      ptx::wait_for_previous();
      if (call.split > 1) {
        if constexpr (Tile::kN == 128) {
          // All stages have been read: their memory takes this block's part of the sums.
          ptx::named_barrier(1, 256);
          float* sums = reinterpret_cast<float*>(shared);
          const int lane = static_cast<int>(ptx::lane_id()), group = lane >> 2, quad = lane & 3;
#pragma unroll
          for (int j = 0; j < Tile::kN / 8; ++j) {
            const int at = detail::staged_at<Tile::kN>(16 * warp + group, 2 * j + (quad >> 1)) + 2 * (quad & 1);
            *reinterpret_cast<float2*>(sums + at) = make_float2(d[4 * j], d[4 * j + 1]);
            *reinterpret_cast<float2*>(sums + at + 8 * Tile::kN) = make_float2(d[4 * j + 2], d[4 * j + 3]);
          }
          __syncwarp();
          ptx::cluster_sync();
          detail::store_parts<Tile>(call, epilogue, row, col, warp, rank, sums);
          __syncwarp();
          ptx::cluster_sync();  // until nobody reads this block's part any more
        }
      } else if (call.packed) {
        if constexpr (sizeof(T) == 2)
          detail::store_packed<Tile>(d, y_map, call, epilogue, row, col, half, shared + Tile::kStaging, stores);
      } else {
        detail::store_rows<Tile>(d, call, epilogue, row + 16 * warp, col, staged);
      }
    }
    if (call.packed && (threadIdx.x & 127) == 0) ptx::store_wait_read<0>();
  }
#endif
}

}  // namespace dvt::cuda
