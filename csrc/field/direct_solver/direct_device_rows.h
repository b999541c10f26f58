// The views that a device's direct solver was given: where their features lie, where their rows lie in the image, and
// in which orders the sweeps read them.
#pragma once

#include <vector>

#include "cuda/runtime.h"
#include "field/direct_solver/direct_arena.h"
#include "field/direct_solver/direct_backend.h"
#include "field/direct_solver/direct_rows.h"
#include "field/direct_solver/direct_sweeps.h"

namespace dvt::cuda {

class DeviceRows {
 public:
  DeviceRows(const DirectSetup& setup, Arena& arena) : setup_(setup), arena_(arena) {}

  // What `views` views take of the arena, with every order.
  static size_t bytes(const DirectSetup& setup, int64_t views);

  // Places views - rows, weights of one, pointers - after those that there are, without counting them yet.
  Status place(int64_t views, const float* coords, bool coords_on_device, cudaStream_t stream);
  // Rows [first, first + count) by cell. list stays valid until the next call.
  Status sort_by_cell(int64_t first, int64_t count, RowList* list, cudaStream_t stream);
  // All rows by cell and by patch, unless that is done already.
  Status sort_all(bool by_patch, cudaStream_t stream);
  // Where the features of the views after those there are lie; makes room for `size` of them.
  Status point_to(const std::vector<const void*>& features, cudaStream_t stream);
  void commit(int64_t views, const RowList* list);
  void reset();

  SweepShape shape(int64_t views) const { return {setup_.grid, setup_.patches, setup_.channels, views}; }
  int64_t views() const { return views_; }
  RowPlaces places() const { return {cell_.data(), at_.data()}; }
  float* base_weights() const { return base_.data(); }
  RowList list() const { return {views_ * setup_.patches, by_cell_.data(), cell_start_.data()}; }
  const uint32_t* patch_rows() const { return by_patch_.data(); }
  const void* const* pointers() const { return pointers_.data(); }

 private:
  Status sort_space(int64_t count, SortSpace* space);

  DirectSetup setup_;
  Arena& arena_;
  int64_t views_ = 0;
  int64_t sorted_ = 0, sorted_by_patch_ = 0;  // rows
  Piece<uint32_t> cell_;
  Piece<float2> at_;
  Piece<float> base_;
  Piece<const void*> pointers_;
  Piece<float> coords_;
  Piece<uint32_t> by_cell_, by_patch_, cell_start_, sort_;
};

}  // namespace dvt::cuda
