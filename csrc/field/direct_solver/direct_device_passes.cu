// What the direct solver does in a pass on the device: new weights and right-hand sides, the numbers by which the next
// pass is chosen, the system, the gain field, the mean that F leaves; direct_device_solver.cu puts them in order.
#include <algorithm>
#include <utility>

#include "field/direct_solver/direct_device_solver.h"

namespace dvt::cuda {
namespace {

// As in direct_solver.cpp, where they are explained.
constexpr double kCountedSteps = 0.95, kGainRidge = 20;
constexpr double kMeanSmoothness = 0.2;  // of the matrix for the mean that F leaves: only its scaling depends on it
// Where the choice of the method is ours there is no other to fall back to: iterations are cheap.
constexpr int kAutomaticIterations = 500;

}  // namespace

Status DeviceSolver::start_rhs(const float* prior, const float* weights) {
  const SweepShape s = shape();
  DVT_CUDA(cudaMemcpyAsync(weights_.data(), weights, static_cast<size_t>(s.rows()) * sizeof(float),
                           cudaMemcpyDeviceToDevice, stream_),
           "copying weights");
  DVT_RETURN_IF_ERROR(gather_nodes(s.grid, s.channels, first_cells_.data(), false, system_.nodes_rhs(), stream_));
  if (prior) DVT_RETURN_IF_ERROR(subtract_prior_rows(prior));
  if (!system_.patches_rhs()) return Status();
  return check(cudaMemcpyAsync(system_.patches_rhs(), first_patches_.data(),
                               static_cast<size_t>(map_size()) * sizeof(float), cudaMemcpyDeviceToDevice, stream_),
               "copying a right-hand side");
}

// nodes_rhs -= E prior for the current weights, patches_rhs -= D prior.
Status DeviceSolver::subtract_prior_rows(const float* prior) {
  const SweepShape s = shape();
  DVT_RETURN_IF_ERROR(
      map_sweep({s, rows_.places(), rows_.list(), weights_.data(), prior, nullptr, nullptr, cells_.data()}, stream_));
  return gather_nodes(s.grid, s.channels, cells_.data(), true, system_.nodes_rhs(), stream_);
}

// One more sweep over the features: residuals under the last solution, row weights, and the weighted right-hand side.
Status DeviceSolver::reweight(const DirectOptions& options, bool subtract_artifacts, const float* nodes,
                              const float* artifacts, const float* prior) {
  const SweepShape s = shape();
  const int64_t stride = median_stride(s), sampled = sampled_rows(s);
  DirectScalars* scalars = scalars_.data();
  RowEnergy rows{s, bank(), rows_.places(), 0, sampled, stride, nodes, artifacts, energy_.data()};
  DVT_RETURN_IF_ERROR(row_energy(rows, stream_));
  DVT_RETURN_IF_ERROR(
      select_ranked(1, sampled, sampled, 1, energy_.data(), sampled / 2, &scalars->median_energy, stream_));
  float* typical = per_patch_.data();  // as in direct_solver.cpp
  const int64_t views = sampled / s.patches;
  DVT_RETURN_IF_ERROR(select_ranked(s.patches, views, 1, s.patches, energy_.data(), (views - 1) / 2, typical, stream_));
  DVT_RETURN_IF_ERROR(set_limit(options.outlier_threshold, scalars, stream_));
  CellSweep sweep{s, bank(), rows_.places(), rows_.list(), rows_.base_weights(), cells_.data()};
  if (s.channels > kMostReweightedChannels) {
    rows.stride = 1, rows.count = s.rows();
    DVT_RETURN_IF_ERROR(row_energy(rows, stream_));
    DVT_RETURN_IF_ERROR(outlier_weights(s.rows(), s.patches, rows_.base_weights(), energy_.data(), typical,
                                        &scalars->limit, new_weights_.data(), stream_));
    sweep.weights = new_weights_.data();
    DVT_RETURN_IF_ERROR(cell_sweep(sweep, false, stream_));
  } else {
    sweep.new_weights = new_weights_.data();
    sweep.limit = &scalars->limit;
    sweep.typical = typical;
    sweep.nodes = nodes;
    sweep.artifacts = artifacts;
    sweep.subtract_artifacts = subtract_artifacts;
    DVT_RETURN_IF_ERROR(cell_sweep(sweep, true, stream_));
  }
  DVT_RETURN_IF_ERROR(compare_weights(s.rows(), rows_.base_weights(), weights_.data(), new_weights_.data(),
                                      parts_.data(), scalars, stream_));
  std::swap(weights_, new_weights_);
  DVT_RETURN_IF_ERROR(gather_nodes(s.grid, s.channels, cells_.data(), false, system_.nodes_rhs(), stream_));
  const bool subtracted = subtract_artifacts && s.channels <= kMostReweightedChannels;
  if (prior && !subtracted) DVT_RETURN_IF_ERROR(subtract_prior_rows(prior));
  if (!system_.patches_rhs()) return Status();
  PatchSweep patches{s, bank(), weights_.data(), 0, first_patches_.data(), rows_.base_weights(), system_.patches_rhs()};
  return patch_sweep(patches, stream_);
}

// What the next pass is chosen by, in *scalars.
Status DeviceSolver::measure(const DirectOptions& options, const float* nodes, const float* artifacts,
                             const float* prior, DirectScalars* scalars) {
  const SweepShape s = shape();
  DirectScalars* out = scalars_.data();
  if (options.automatic_ridge && !options.fix_artifacts) {
    const PatchMaps maps = system_.maps();
    DVT_RETURN_IF_ERROR(unshrunk_deviation(maps, artifacts, prior, system_.map_scratch(), stream_));
    DVT_RETURN_IF_ERROR(to_channels(s.patches, s.channels, system_.channel_stride(), system_.map_scratch(), nullptr,
                                    false, nullptr, system_.channel_scratch(), stream_));
    DVT_RETURN_IF_ERROR(select_ranked(s.channels, s.patches, system_.channel_stride(), 1, system_.channel_scratch(),
                                      s.patches / 2, per_channel_.data(), stream_));
    DVT_RETURN_IF_ERROR(deviation_energy(s.patches, s.channels, system_.map_scratch(), per_channel_.data(),
                                         per_patch_.data(), stream_));
    DVT_RETURN_IF_ERROR(
        select_ranked(1, s.patches, s.patches, 1, per_patch_.data(), s.patches / 2, &out->typical_deviation, stream_));
    DVT_RETURN_IF_ERROR(select_ranked(1, s.patches, s.patches, 1, maps.patch_weights, s.patches / 2,
                                      &out->median_patch_weight, stream_));
  }
  if (options.automatic_smoothness) {
    const int64_t edges = grid_edges(s.grid);
    const int64_t counted = std::max<int64_t>(1, static_cast<int64_t>(kCountedSteps * static_cast<double>(edges)));
    DVT_RETURN_IF_ERROR(measure_steps(s.grid, s.channels, nodes, counted, steps_.data(), out, stream_));
  }
  return scalars_.download(scalars, 1, stream_, "a pass of the direct solver");
}

Status DeviceSolver::solve_system(const DirectOptions& options, bool from_guess, const float* prior, float* nodes,
                                  float* artifacts, DirectReport* report) {
  const bool automatic = options.method == DirectMethod::automatic;
  const int most = automatic ? std::max(options.max_iterations, kAutomaticIterations) : options.max_iterations;
  if (options.fix_artifacts)
    DVT_CUDA(cudaMemcpyAsync(artifacts, prior, static_cast<size_t>(map_size()) * sizeof(float),
                             cudaMemcpyDeviceToDevice, stream_),
             "copying artifacts");
  DVT_RETURN_IF_ERROR(
      system_.solve(from_guess, options.tolerance, most, prior, nodes, artifacts, &report->iterations, stream_));
  if (report->iterations <= most) return Status();
  bool finite;
  DVT_RETURN_IF_ERROR(check_finite(nodes, artifacts, &finite));
  if (!finite) return Status();  // which is what solve reports
  return invalid_argument("pcg did not reach the tolerance of ", options.tolerance, " in ", most,
                          " iterations: allow more, or a larger tolerance");
}

// G as the mean over views of what F (and the gain field) leaves; see direct_solver.cpp.
Status DeviceSolver::mean_artifacts(const float* nodes, bool gains, float* artifacts) {
  const SweepShape s = shape();
  DVT_RETURN_IF_ERROR(system_.assemble(s, rows_.places(), rows_.list(), rows_.patch_rows(), rows_.base_weights(),
                                       kMeanSmoothness, stream_));
  DVT_RETURN_IF_ERROR(system_.multiply_field(nodes, system_.patches_rhs(), stream_));
  return mean_left(system_.maps(), first_patches_.data(), system_.patches_rhs(), gains ? gain_.data() : nullptr,
                   per_channel_.data(), artifacts, stream_);
}

// The gain field and (F, G) in turn; per_channel_ holds the centre of F, and how far gains are pulled to zero.
Status DeviceSolver::fit_gains(const DirectOptions& options, const float* prior, float* nodes, float* artifacts,
                               DirectReport* report) {
  const SweepShape s = shape();
  const int64_t n = node_size(), p = map_size();
  const auto copy = [&](float* to, const float* from, int64_t count) {
    return check(
        cudaMemcpyAsync(to, from, static_cast<size_t>(count) * sizeof(float), cudaMemcpyDeviceToDevice, stream_),
        "copying a right-hand side");
  };
  DVT_RETURN_IF_ERROR(gain_.at_least(arena_, p));
  DVT_RETURN_IF_ERROR(field_sums_.at_least(arena_, p));
  DVT_RETURN_IF_ERROR(saved_nodes_.at_least(arena_, n));
  DVT_RETURN_IF_ERROR(copy(saved_nodes_.data(), system_.nodes_rhs(), n));
  if (system_.patches_rhs()) {
    DVT_RETURN_IF_ERROR(saved_patches_.at_least(arena_, p));
    DVT_RETURN_IF_ERROR(copy(saved_patches_.data(), system_.patches_rhs(), p));
  }
  float *centre = per_channel_.data(), *pull = centre + s.channels;
  for (int turn = 0; turn < options.residual; ++turn) {
    DVT_RETURN_IF_ERROR(node_statistics(s.grid.nodes(), s.channels, nodes, kGainRidge, centre, pull, stream_));
    DVT_RETURN_IF_ERROR(gain_sweep(
        {s, bank(), rows_.places(), weights_.data(), nodes, artifacts, centre, pull, gain_.data(), field_sums_.data()},
        stream_));
    DVT_RETURN_IF_ERROR(map_sweep(
        {s, rows_.places(), rows_.list(), weights_.data(), gain_.data(), nodes, centre, cells_.data()}, stream_));
    DVT_RETURN_IF_ERROR(copy(system_.nodes_rhs(), saved_nodes_.data(), n));
    DVT_RETURN_IF_ERROR(gather_nodes(s.grid, s.channels, cells_.data(), true, system_.nodes_rhs(), stream_));
    if (system_.patches_rhs())
      DVT_RETURN_IF_ERROR(subtract_gain(system_.maps(), saved_patches_.data(), gain_.data(), field_sums_.data(),
                                        system_.patches_rhs(), stream_));
    DVT_RETURN_IF_ERROR(solve_system(options, true, prior, nodes, artifacts, report));
  }
  return Status();
}

}  // namespace dvt::cuda
