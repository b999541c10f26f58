// The rows of all views, in the orders in which the direct solver reads them.
//
// A row is (view, patch), number view * patches + patch. Sorted by cell, rows that touch the same four nodes are
// neighbours: a sweep then keeps those nodes in registers while it streams the features past them, and every feature is
// read once, as a whole row. Sorted by patch and then by cell, the same rows give the columns of E.
//
// The sort is a stable radix sort of 8 bits a pass, so the order depends on nothing but the rows: 2 passes for up to
// 65,536 cells, each 16 bytes a row of traffic, 17 MB for a million rows.
#pragma once

#include <cstdint>

#include "cuda/runtime.h"
#include "field/bilinear_grid/bilinear_grid.h"

namespace dvt::cuda {

struct RowPlaces {  // by number of the row
  const uint32_t* cell;
  const float2* at;  // the position in the cell
};
struct RowList {
  int64_t count;
  const uint32_t* row;         // [count]: numbers, in order of their cells
  const uint32_t* cell_start;  // [cells + 1]: where the rows of a cell begin in `row`
};

// coords [rows, 2] on the device.
Status locate_rows(GridShape grid, int64_t rows, const float* coords, uint32_t* cell, float2* at, cudaStream_t stream);

constexpr int64_t kSortTile = 4096;
struct SortSpace {
  uint32_t* keys[2];    // [count] each
  uint32_t* values[2];  // [count] each
  uint32_t* counts;     // [256 * ceil(count / kSortTile)]
};
// Sorts the values by the lowest `bits` bits of their keys, from the first of the pair; *result says in which of the
// pair the sorted ones lie.
Status sort_pairs(int64_t count, int bits, const SortSpace& space, int* result, cudaStream_t stream);

// keys[i] = cell[first + i], values[i] = first + i.
Status cell_keys(int64_t count, const uint32_t* cell, uint32_t first, uint32_t* keys, uint32_t* values,
                 cudaStream_t stream);
// keys[i] = the patch of row[i], values[i] = row[i].
Status patch_keys(int64_t count, const uint32_t* row, int64_t patches, uint32_t* keys, uint32_t* values,
                  cudaStream_t stream);
// start[cell] = how many of the sorted keys are smaller, for cell = 0 to cells.
Status cell_starts(int64_t count, const uint32_t* keys, int64_t cells, uint32_t* start, cudaStream_t stream);

}  // namespace dvt::cuda
