#include "field/hash_grid/touched_entries.h"

#include <algorithm>
#include <cstring>

#include "core/threads.h"

namespace dvt {

TouchedEntries::TouchedEntries(const HashGrid& grid, int64_t max_points) : grid_(grid) {
  for (int l = 0; l < grid.n_levels; ++l) {
    first_[l] = max_count_;
    max_count_ += std::min<int64_t>(max_points * grid.n_corners(), grid.levels[l].entries);
  }
  std::memset(slot_of_entry_.at_least(grid.entries), 0xff, static_cast<size_t>(grid.entries) * sizeof(int32_t));
  lists_.at_least(max_count_);
  entries_.at_least(max_count_);
  slots_.at_least(max_points * grid.n_corners() * grid.n_levels);
}

void TouchedEntries::collect(const uint32_t* indices, int64_t n) {
  const int64_t reads = n * grid_.n_corners();
  int64_t counts[kMaxHashGridLevels];
  parallel_for(grid_.n_levels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t l = begin; l < end; ++l) {
      uint32_t* list = lists_.data() + first_[l];
      int32_t count = 0;
      for (int64_t i = l * reads; i < (l + 1) * reads; ++i) {
        int32_t& slot = slot_of_entry_[indices[i]];
        if (slot < 0) {
          slot = count;
          list[count++] = indices[i];
        }
        slots_[i] = static_cast<uint32_t>(slot);
      }
      for (int32_t i = 0; i < count; ++i) slot_of_entry_[list[i]] = -1;
      counts[l] = count;
    }
  });
  int64_t starts[kMaxHashGridLevels];
  count_ = 0;
  for (int l = 0; l < grid_.n_levels; ++l) {
    starts[l] = count_;
    count_ += counts[l];
  }
  parallel_for(grid_.n_levels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t l = begin; l < end; ++l) {
      std::copy_n(lists_.data() + first_[l], counts[l], entries_.data() + starts[l]);
      for (int64_t i = l * reads; i < (l + 1) * reads; ++i) slots_[i] += static_cast<uint32_t>(starts[l]);
    }
  });
}

}  // namespace dvt
