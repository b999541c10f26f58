// Launches of the kernels of gemm.cuh: checks of alignment, the grid, splits of K and the choice between tiles.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>

#include "cuda/runtime.h"
#include "linalg/gemm/gemm.cuh"

namespace dvt::cuda {

// What one tile costs an SM, in cycles, counted for a product of k: the tensor cores take 1024 products of 16-bit
// numbers a cycle (tf32: half of that), shared memory 128 bytes a cycle for fragments and copies; and what is spent
// before the first and after the last product.
template <class Tile>
constexpr double gemm_tile_cycles(int64_t k) {
  constexpr double kSizes = static_cast<double>(sizeof(typename Tile::A)) / 2;
  constexpr int kProducts = Tile::kPrecision == Precision::compensated ? 3 : 1;
  const double stages = static_cast<double>(ceil_div(k, Tile::kK));
  const double multiply = kProducts * kSizes * Tile::kM * Tile::kN * Tile::kK / 1024.0;
  const double fragments = Tile::kThreads / 32 * Tile::kSteps * (Tile::kWarpM + Tile::kWarpN) / 16 * 4.0;
  const double copies = Tile::kM + Tile::kN;
  return stages * std::max(multiply, fragments + copies) + Tile::kM * Tile::kN / 16.0;
}

template <class Tile>
constexpr int64_t gemm_tiles(int64_t m, int64_t n) {
  return ceil_div(m, Tile::kM) * ceil_div(n, Tile::kN);
}

// What a product costs on a device, to compare tiles: those of the SM that has most of them.
template <class Tile>
double gemm_cycles(const DeviceTraits& traits, int64_t m, int64_t n, int64_t k, int64_t batch = 1) {
  if (Tile::kSharedBytes > static_cast<int64_t>(traits.shared_per_block)) return 1e30;
  return static_cast<double>(ceil_div(batch * gemm_tiles<Tile>(m, n), traits.multiprocessors)) *
         gemm_tile_cycles<Tile>(k);
}

// Which of some tiles takes the fewest cycles: its place among them, the first of equals.
template <class... Tiles>
int gemm_choose(const DeviceTraits& traits, int64_t m, int64_t n, int64_t k, int64_t batch = 1) {
  const double cycles[] = {gemm_cycles<Tiles>(traits, m, n, k, batch)...};
  return static_cast<int>(std::min_element(std::begin(cycles), std::end(cycles)) - std::begin(cycles));
}

// Into how many parts to cut K so that all SMs work: each of at least 4 stages, no more than 32.
template <class Tile>
int gemm_splits(const DeviceTraits& traits, int64_t m, int64_t n, int64_t k, int64_t batch = 1) {
  const int64_t fill = int64_t{traits.multiprocessors} * Tile::kBlocks / (batch * gemm_tiles<Tile>(m, n));
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>({fill, ceil_div(k, Tile::kK) / 4, 32})));
}

// Floats of the parts of a product whose K is split.
constexpr int64_t gemm_part_stride(int64_t n) { return round_up(n, 8); }
constexpr int64_t gemm_part_floats(int64_t m, int64_t n, int splits, int64_t batch = 1) {
  return splits > 1 ? splits * batch * m * gemm_part_stride(n) : 0;
}

// An error where a pointer or a row is not aligned to 16 bytes, or a size is not what an int holds.
Status gemm_check(const char* name, const GemmOperands& p, Major major_a, Major major_b, int64_t element,
                  int64_t batch);

struct GemmLaunch {
  int64_t batch = 1;
  float* parts = nullptr;  // of gemm_part_floats, where p.splits > 1
  cudaStream_t stream = nullptr;
  bool overlap = false;
};

namespace gemm_detail {

// Parts of the sums, then the sums of the parts. config: of the first kernel.
template <class Tile, class Epilogue>
Status launch_split(const char* name, const GemmOperands& p, const Epilogue& epilogue, const GemmLaunch& how,
                    Launch config) {
  const int stride = static_cast<int>(gemm_part_stride(p.n));
  const int64_t part = int64_t{p.m} * stride;
  using Part = typename Epilogue::Part;
  DVT_RETURN_IF_ERROR(launch(name, gemm_kernel<Tile, Part>, config, p, Part::make(how.parts, stride, part)));
  config.grid = dim3(static_cast<unsigned>(ceil_div(part / 8, kGemmFinishThreads)), static_cast<unsigned>(how.batch));
  config.block = dim3(kGemmFinishThreads);
  config.shared_bytes = 0;
  return launch(name, gemm_finish_kernel<Epilogue>, config, static_cast<const float*>(how.parts), stride, p.m, p.n,
                p.splits, epilogue);
}

}  // namespace gemm_detail

// C = op(A) op(B), handed to the epilogue; with p.splits > 1 in two kernels, sums always in one order.
template <class Tile, class Epilogue>
Status gemm_launch(const char* name, const GemmOperands& p, const Epilogue& epilogue, const GemmLaunch& how) {
  DVT_RETURN_IF_ERROR(
      gemm_check(name, p, Tile::kMajorA, Tile::kMajorB, static_cast<int64_t>(sizeof(typename Tile::A)), how.batch));
  const unsigned tiles = static_cast<unsigned>(gemm_tiles<Tile>(p.m, p.n)), batch = static_cast<unsigned>(how.batch);
  if (tiles == 0 || batch == 0) return Status();
  Launch config;
  config.grid = dim3(tiles, static_cast<unsigned>(p.splits), batch);
  config.block = dim3(Tile::kThreads);
  config.shared_bytes = Tile::kSharedBytes;
  config.stream = how.stream;
  config.overlap = how.overlap;
  if (p.splits == 1) return launch(name, gemm_kernel<Tile, Epilogue>, config, p, epilogue);
  if constexpr (Epilogue::kSplits) return gemm_detail::launch_split<Tile>(name, p, epilogue, how, config);
  return Status(StatusCode::internal, "K of a product was split that has no kernels for it");
}

}  // namespace dvt::cuda
