// Sweeps over the rows of the direct solver: what reads the features.
//
// Cost at C = 768, 769 views of 37 x 37 patches, 99 x 100 nodes: a sweep reads the bank once, 3.2 GB of float32 or 1.6
// of 16-bit numbers; `cell_sweep` also writes 4 C sums a cell, 120 MB, which `gather_nodes` reads again. About 35
// instructions a row and four channels: 0.3 ms of an H200's issue slots, below the time of the reads.
//
//   * `cell_sweep`, a block a cell: the four nodes of the cell and their four sums lie in registers, rows stream past,
//     through shared memory by cp.async so that enough of them are on their way (three blocks of 8 rows at C = 768).
//     With `reweight` it first finds a row's residual, a sum over the block, and from it the row's new weight:
//     residuals, weights and the right-hand side of F in one read.
//   * `patch_sweep`, a block a patch: the right-hand side of G. Where at least half of a patch's rows keep their base
//     weights, it starts from the sums for those and reads only the rows that changed.
//
// Sums are in an order that does not depend on how blocks run, and rows of a later batch of views are added where the
// earlier ones' sum stopped: views given in batches give the same bits as all at once.
#pragma once

#include <cstdint>

#include "core/tensor.h"
#include "cuda/runtime.h"
#include "field/direct_solver/direct_rows.h"

namespace dvt::cuda {

struct RowBank {
  Dtype type;
  const void* const* views;  // on the device: where each view's features [patches, channels] lie
  bool whole;                // rows are multiples of 4 channels, and aligned for reads of 4
};
// Whether `row` bytes a row from `at` on can be read in fours of `channels`.
bool reads_whole(const void* at, Dtype type, int64_t channels);

struct SweepShape {
  GridShape grid;
  int64_t patches, channels, views;
  int64_t rows() const { return views * patches; }
  int64_t cells() const { return (grid.ny - 1) * (grid.nx - 1); }
};

struct CellSweep {
  SweepShape shape;
  RowBank bank;
  RowPlaces places;
  RowList list;
  const float* weights;  // [rows]; with reweight the base weights
  float* sums;           // [cells, 4, channels]: of weight * tap * feature, a node of the cell each
  bool add = false;      // to what `sums` holds
  // With reweight (at most kMostReweightedChannels):
  float* new_weights = nullptr;      // [rows]: base / max(1, sqrt(max(|y - F - G|^2, typical)) / limit)^2
  const float* limit = nullptr;      // one number on the device
  const float* typical = nullptr;    // [patches]
  const float* nodes = nullptr;      // [nodes, channels]: F
  const float* artifacts = nullptr;  // [patches, channels]: G
  bool subtract_artifacts = false;   // the sums are of y - G
};
constexpr int64_t kMostReweightedChannels = 2048;
Status cell_sweep(const CellSweep& sweep, bool reweight, cudaStream_t stream);

// The same sums of rows that come from a map: -map[patch], or with nodes given -map[patch] * (F(x) - centre).
struct MapSweep {
  SweepShape shape;
  RowPlaces places;
  RowList list;
  const float* weights;
  const float* map;     // [patches, channels]
  const float* nodes;   // [nodes, channels], or null
  const float* centre;  // [channels]
  float* sums;          // [cells, 4, channels]
};
Status map_sweep(const MapSweep& sweep, cudaStream_t stream);

// out [nodes, channels] = what the cells around each node hold for it; with add, to what is there.
Status gather_nodes(GridShape grid, int64_t channels, const float* sums, bool add, float* out, cudaStream_t stream);

struct PatchSweep {
  SweepShape shape;  // views: how many, from first_view on
  RowBank bank;
  const float* weights;  // [rows], by number of the row
  int64_t first_view = 0;
  const float* from;                    // [patches, channels] that the sums start from, or null
  const float* from_weights = nullptr;  // the weights of `from` over these very rows: only differences are added
  float* sums;                          // [patches, channels]
};
Status patch_sweep(const PatchSweep& sweep, cudaStream_t stream);

// energy[k] = |y - F - G|^2 of row k, of every `stride`th view; nodes null: |y|^2. Rows first to first + count of
// those.
struct RowEnergy {
  SweepShape shape;
  RowBank bank;
  RowPlaces places;
  int64_t first, count, stride;
  const float* nodes;
  const float* artifacts;
  float* energy;  // [count]
};
Status row_energy(const RowEnergy& rows, cudaStream_t stream);

// gain [patches, channels] = sum w e f / (sum w f^2 + pull), f = F(x) - centre, e = y - F(x) - G, and `field_sums` =
// sum w f; pull [channels]. Gathers four nodes a row, from L2: 13 GB at full size, a second-order option's cost.
struct GainSweep {
  SweepShape shape;
  RowBank bank;
  RowPlaces places;
  const float* weights;
  const float* nodes;
  const float* artifacts;
  const float* centre;
  const float* pull;
  float* gain;
  float* field_sums;
};
Status gain_sweep(const GainSweep& sweep, cudaStream_t stream);

}  // namespace dvt::cuda
