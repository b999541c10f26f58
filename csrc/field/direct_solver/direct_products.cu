// Products with the coupling on the tensor cores (mma.sync of float16, sums in float32); the contract is in
// direct_matrix.h.
//
// A block makes a tile of 128 channels x 128 patches or nodes, eight warps of 64 x 32 each; the sum runs over the
// blocks of 64 in which the coupling has entries, 32 at a time through three stages of cp.async. Everything is padded
// to whole tiles. To patches the tiles are few and the sum is long (nodes), so it is split over blocks, whose parts are
// added in order afterwards.
//
// Shared memory, a stage: 128 x 32 numbers of the left factor, twice with its low part, and of the coupling, twice;
// 32 KB (24 KB), three stages of which leave room for two blocks of 256 threads a multiprocessor (one of the products,
// which a solve needs once, takes too many registers for that). Rows of 64 (256) bytes
// are swizzled so that the eight rows of an ldmatrix lie in different banks.
#include <algorithm>

#include "cuda/numeric.cuh"
#include "field/direct_solver/direct_matrix.h"

namespace dvt::cuda {
namespace {

constexpr int kThreads = 256, kTile = static_cast<int>(kProductTile), kDepth = 32, kStages = 3;
constexpr int kPanelBytes = kTile * kDepth * 2;

struct Product {
  const uint16_t* a_high;
  const uint16_t* a_low;
  const uint16_t* e_high;
  const uint16_t* e_low;
  int64_t a_stride, e_stride, out_stride, out_part;
  const uint32_t* occupied;
  int64_t occupied_stride;
  int depth_blocks;  // of 64, along the sum
  const float* row_scale;
  float* out;
  const uint32_t* active;
};

// Where 16 bytes lie in a panel of rows of 64 bytes, and in one of rows of 256 bytes.
DVT_DEVICE int narrow_at(int row, int chunk) { return row * 64 + ((chunk ^ ((row >> 1) & 3)) << 4); }
DVT_DEVICE int wide_at(int row, int chunk) { return row * 256 + ((chunk ^ (row & 7)) << 4); }

// kLow: the left factor has a low part. kToNodes: the sum runs over the rows of E'^T, patches, else along them.
template <bool kLow, bool kToNodes>
__global__ void __launch_bounds__(kThreads, kLow && !kToNodes ? 1 : 2) coupling_product_kernel(Product s) {
  if (s.active && *s.active == 0) return;
  constexpr int kPanels = kLow ? 4 : 3, kStageBytes = kPanels * kPanelBytes;
  char* const shared = ptx::shared_memory();
  uint16_t* const kept = reinterpret_cast<uint16_t*>(shared + kStages * kStageBytes);
  int* const kept_count = reinterpret_cast<int*>(kept + (s.depth_blocks + 1) / 2 * 2);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * kTile, column0 = static_cast<int64_t>(blockIdx.y) * kTile;

  // The blocks of the sum that are not zero, in order; this block's share of them.
  if (warp == 0) {
    int count = 0;
    for (int first = 0; first < s.depth_blocks; first += 32) {
      const int k = first + lane;
      bool has = false;
      if (k < s.depth_blocks)
        for (int64_t n = column0 / kZeroBlock; n < (column0 + kTile) / kZeroBlock; ++n)
          has = has || s.occupied[kToNodes ? k * s.occupied_stride + n : n * s.occupied_stride + k] != 0;
      const uint32_t votes = __ballot_sync(0xffffffffu, has);
      if (has) kept[count + __popc(votes & ((1u << lane) - 1u))] = static_cast<uint16_t>(k);
      count += __popc(votes);
    }
    if (lane == 0) *kept_count = count;
  }
  __syncthreads();
  const int all = *kept_count, split = blockIdx.z, splits = gridDim.z;
  const int begin = 2 * (all * split / splits), steps = 2 * (all * (split + 1) / splits) - begin;

  const auto stage = [&](int step) { return shared + step % kStages * kStageBytes; };
  const auto fetch = [&](int step) {
    if (step < steps) {
      char* to = stage(step);
      const int64_t depth = static_cast<int64_t>(kept[(begin + step) / 2]) * kZeroBlock + (begin + step) % 2 * kDepth;
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const int i = part * kThreads + static_cast<int>(threadIdx.x), row = i / 4, chunk = i % 4;
        const int64_t from = (row0 + row) * s.a_stride + depth + chunk * 8;
        ptx::copy_async_16(to + narrow_at(row, chunk), s.a_high + from);
        if constexpr (kLow) ptx::copy_async_16(to + 3 * kPanelBytes + narrow_at(row, chunk), s.a_low + from);
        if constexpr (kToNodes) {
          const int r = i / 16, wide = i % 16;
          const int64_t e = (depth + r) * s.e_stride + column0 + wide * 8;
          ptx::copy_async_16(to + kPanelBytes + wide_at(r, wide), s.e_high + e);
          ptx::copy_async_16(to + 2 * kPanelBytes + wide_at(r, wide), s.e_low + e);
        } else {
          const int64_t e = (column0 + row) * s.e_stride + depth + chunk * 8;
          ptx::copy_async_16(to + kPanelBytes + narrow_at(row, chunk), s.e_high + e);
          ptx::copy_async_16(to + 2 * kPanelBytes + narrow_at(row, chunk), s.e_low + e);
        }
      }
    }
    ptx::copy_async_commit();
  };

  // Where this lane's rows of the fragments lie. Sixteen rows further, or sixteen numbers along the sum, the swizzle is
  // the same: the first is a constant to add, the second one bit to flip (in E'^T read by columns the other way round).
  const int warp_row = warp / 4 * 64, warp_column = warp % 4 * 32;
  const int a_at = narrow_at(warp_row + lane % 16, lane / 16);
  const int e_at = kToNodes ? wide_at(lane % 16, warp_column / 8 + lane / 16)
                            : narrow_at(warp_column + lane / 16 * 8 + lane % 8, lane / 8 % 2);
  float c[4][4][4] = {};
  fetch(0);
  fetch(1);
  for (int step = 0; step < steps; ++step) {
    ptx::copy_async_wait<kStages - 2>();
    __syncthreads();
    fetch(step + kStages - 1);
    const char* from = stage(step);
#pragma unroll
    for (int k = 0; k < kDepth / 16; ++k) {
      uint32_t e[2][4][2];  // high and low, four groups of eight columns
#pragma unroll
      for (int part = 0; part < 2; ++part)
#pragma unroll
        for (int pair = 0; pair < 2; ++pair) {
          const char* panel = from + (1 + part) * kPanelBytes;
          uint32_t four[4];
          if constexpr (kToNodes)  // matrices: rows k and k + 8 of columns 0..7, then of columns 8..15
            ptx::ldmatrix_x4_trans(four, panel + (e_at ^ pair * 32) + k * 16 * 256);
          else
            ptx::ldmatrix_x4(four, panel + (e_at ^ k * 32) + pair * 16 * 64);
          e[part][2 * pair][0] = four[0], e[part][2 * pair][1] = four[1];
          e[part][2 * pair + 1][0] = four[2], e[part][2 * pair + 1][1] = four[3];
        }
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        uint32_t a[4];
        ptx::ldmatrix_x4(a, from + (a_at ^ k * 32) + m * 16 * 64);
#pragma unroll
        for (int n = 0; n < 4; ++n) ptx::mma_m16n8k16_f16(c[m][n], a, e[0][n]);
#pragma unroll
        for (int n = 0; n < 4; ++n) ptx::mma_m16n8k16_f16(c[m][n], a, e[1][n]);
        if constexpr (kLow) {
          ptx::ldmatrix_x4(a, from + 3 * kPanelBytes + (a_at ^ k * 32) + m * 16 * 64);
#pragma unroll
          for (int n = 0; n < 4; ++n) ptx::mma_m16n8k16_f16(c[m][n], a, e[0][n]);
        }
      }
    }
  }
  ptx::copy_async_wait<0>();
  float* out = s.out + split * s.out_part;
#pragma unroll
  for (int m = 0; m < 4; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = row0 + warp_row + m * 16 + half * 8 + lane / 4;
      const float scale = (s.row_scale ? s.row_scale[row] : 1.0f) / kEntryScale;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const int64_t column = column0 + warp_column + n * 8 + lane % 4 * 2;
        *reinterpret_cast<float2*>(out + row * s.out_stride + column) =
            make_float2(c[m][n][2 * half] * scale, c[m][n][2 * half + 1] * scale);
      }
    }
}

__global__ void add_parts_kernel(int64_t count, int splits, const float* parts, float* t, uint16_t* high, uint16_t* low,
                                 const uint32_t* active) {
  if (active && *active == 0) return;
  const int64_t i = 4 * (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x);
  if (i >= count) return;
  float4 sum = *reinterpret_cast<const float4*>(parts + i);
  for (int k = 1; k < splits; ++k) {
    const float4 part = *reinterpret_cast<const float4*>(parts + k * count + i);
    sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
  }
  *reinterpret_cast<float4*>(t + i) = sum;
  if (!high) return;
  const uint32_t h0 = pack2<f16>(sum.x, sum.y), h1 = pack2<f16>(sum.z, sum.w);
  const float2 a = unpack2<f16>(h0), b = unpack2<f16>(h1);
  *reinterpret_cast<uint2*>(high + i) = make_uint2(h0, h1);
  *reinterpret_cast<uint2*>(low + i) =
      make_uint2(pack2<f16>(sum.x - a.x, sum.y - a.y), pack2<f16>(sum.z - b.x, sum.w - b.y));
}

template <bool kLow, bool kToNodes>
Status launch_product(const char* name, const Product& s, dim3 grid, cudaStream_t stream) {
  if (s.depth_blocks > 65535)
    return invalid_argument("the direct solver on CUDA takes at most ", 65535 * kZeroBlock, " nodes and patches");
  const size_t bytes = static_cast<size_t>(kStages * (kLow ? 4 : 3) * kPanelBytes) +
                       2 * static_cast<size_t>(round_up(s.depth_blocks, 2)) + sizeof(int);
  return launch(name, coupling_product_kernel<kLow, kToNodes>, {grid, kThreads, bytes, stream}, s);
}

}  // namespace

// About two blocks a multiprocessor, of at least four blocks of 64 nodes each.
int product_splits(const Coupling& coupling, int64_t channels, int multiprocessors) {
  const int64_t tiles = channels / kTile * (coupling.patches / kTile);
  const int64_t wanted = ceil_div(2 * multiprocessors, tiles), most = ceil_div(coupling.nodes / kZeroBlock, 4);
  return static_cast<int>(std::clamp<int64_t>(wanted, 1, std::min<int64_t>(16, most)));
}

Status multiply_to_patches(const ToPatches& p, cudaStream_t stream) {
  const Coupling& e = p.coupling;
  const int64_t count = p.channels * e.patches;
  const Product s = {p.high,
                     p.low,
                     e.high,
                     e.low,
                     e.nodes,
                     e.nodes,
                     e.patches,
                     count,
                     e.occupied,
                     e.nodes / kZeroBlock,
                     static_cast<int>(e.nodes / kZeroBlock),
                     nullptr,
                     p.parts,
                     p.active};
  const dim3 grid(static_cast<unsigned>(p.channels / kTile), static_cast<unsigned>(e.patches / kTile),
                  static_cast<unsigned>(p.splits));
  const auto product = p.low ? launch_product<true, false> : launch_product<false, false>;
  DVT_RETURN_IF_ERROR(product("product to patches", s, grid, stream));
  return launch("sum of parts", add_parts_kernel,
                {dim3(static_cast<unsigned>(ceil_div(count / 4, kThreads))), kThreads, 0, stream}, count, p.splits,
                p.parts, p.t, p.t_high, p.t_low, p.active);
}

Status multiply_to_nodes(const ToNodes& p, cudaStream_t stream) {
  const Coupling& e = p.coupling;
  const Product s = {p.high,
                     p.low,
                     e.high,
                     e.low,
                     e.patches,
                     e.nodes,
                     e.nodes,
                     0,
                     e.occupied,
                     e.nodes / kZeroBlock,
                     static_cast<int>(e.patches / kZeroBlock),
                     p.row_scale,
                     p.u,
                     p.active};
  const dim3 grid(static_cast<unsigned>(p.channels / kTile), static_cast<unsigned>(e.nodes / kTile));
  return launch_product<true, true>("product to nodes", s, grid, stream);
}

}  // namespace dvt::cuda
