// Which entries of a hash grid a batch reads, each once, and the batch's corners renumbered to them.
//
// A step of 2,048 points reads at most 131,072 of 2.5 million entries, so gradients live in a compact [count, F] array
// and the optimiser visits the listed entries only. Numbers are given by first appearance within a level, and levels
// follow one another: the result does not depend on the number of threads.
#pragma once

#include "core/buffer.h"
#include "field/hash_grid/hash_grid.h"

namespace dvt {

class TouchedEntries {
 public:
  TouchedEntries(const HashGrid& grid, int64_t max_points);

  // indices [L, N, 2^D] of hash_grid_corners; n <= max_points.
  void collect(const uint32_t* indices, int64_t n);

  int64_t count() const { return count_; }
  int64_t max_count() const { return max_count_; }
  const uint32_t* entries() const { return entries_.data(); }  // [count]
  const uint32_t* slots() const { return slots_.data(); }      // [L, N, 2^D]: indices[i] == entries()[slots()[i]]

 private:
  HashGrid grid_;
  int64_t max_count_ = 0, count_ = 0;
  int64_t first_[kMaxHashGridLevels + 1];  // where a level's list starts before the lists are joined
  Buffer<int32_t> slot_of_entry_;          // [entries], -1 where untouched
  Buffer<uint32_t> lists_, entries_, slots_;
};

}  // namespace dvt
