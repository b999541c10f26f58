// The solver behind direct_backend.h: what it keeps between views and between passes.
#pragma once

#include <algorithm>
#include <vector>

#include "field/direct_solver/direct_arena.h"
#include "field/direct_solver/direct_backend.h"
#include "field/direct_solver/direct_device_rows.h"
#include "field/direct_solver/direct_device_system.h"
#include "field/direct_solver/direct_statistics.h"

namespace dvt::cuda {

class DeviceSolver final : public DirectSolverCuda {
 public:
  explicit DeviceSolver(const DirectSetup& setup) : setup_(setup), rows_(setup, arena_) {}

  Status add(int64_t views, const void* features, Dtype type, const float* coords, bool coords_on_device,
             void* stream) override;
  Status solve(const DirectOptions& options, const float* prior, float* nodes, float* artifacts, DirectReport* report,
               void* stream) override;
  Status average(float* nodes, float* artifacts, void* stream) override;
  void reset() override {
    rows_.reset();
    if (banks_.size() > 1) banks_.clear();
    bank_used_ = 0;
    whole_ = true;
  }

 private:
  // The medians of residuals are taken over about this many views, spread evenly.
  static constexpr int64_t kMedianViews = 64;
  static int64_t median_stride(const SweepShape& s) { return std::max<int64_t>(1, s.views / kMedianViews); }
  static int64_t sampled_rows(const SweepShape& s) { return ceil_div(s.views, median_stride(s)) * s.patches; }

  Status foresee(int64_t views);
  Status room_for_copies(int64_t views, uint16_t** copy);
  Status check_views(int64_t views, const void* features, Dtype type, uint16_t* copy);
  Status first_sums(int64_t views, const void* features, const RowBank& bank, RowList* list);
  Status allocate_pass(const DirectOptions& options, bool coupled);
  Status start_rhs(const float* prior, const float* weights);
  Status reweight(const DirectOptions& options, bool subtract_artifacts, const float* nodes, const float* artifacts,
                  const float* prior);
  Status measure(const DirectOptions& options, const float* nodes, const float* artifacts, const float* prior,
                 DirectScalars* scalars);
  Status subtract_prior_rows(const float* prior);
  Status fit_gains(const DirectOptions& options, const float* prior, float* nodes, float* artifacts,
                   DirectReport* report);
  Status solve_system(const DirectOptions& options, bool from_guess, const float* prior, float* nodes, float* artifacts,
                      DirectReport* report);
  Status mean_artifacts(const float* nodes, bool gains, float* artifacts);
  Status check_finite(const float* nodes, const float* artifacts, bool* finite);
  RowBank bank() const { return {bank_type_, rows_.pointers(), whole_}; }
  SweepShape shape() const { return rows_.shape(rows_.views()); }
  int64_t map_size() const { return setup_.patches * setup_.channels; }
  int64_t node_size() const { return setup_.grid.nodes() * setup_.channels; }

  DirectSetup setup_;
  Arena arena_;
  DeviceRows rows_;
  cudaStream_t stream_ = nullptr;
  Dtype bank_type_ = Dtype::float32;
  bool whole_ = true;
  std::vector<DeviceBuffer<uint16_t>> banks_;  // with Keep::half: copies of the features
  int64_t bank_used_ = 0;                      // views in the last of them
  Piece<float> first_cells_;                   // [cells, 4, channels]: sums of all views with base weights
  Piece<float> first_patches_, next_patches_;  // [patches, channels]
  Piece<uint32_t> flags_;                      // [2]
  // Of a solve:
  DeviceSystem system_;
  Piece<float> cells_, weights_, new_weights_, energy_, steps_, per_patch_, per_channel_;
  Piece<double> parts_;
  Piece<DirectScalars> scalars_;
  Piece<float> gain_, field_sums_, saved_nodes_, saved_patches_;
};

}  // namespace dvt::cuda
