// The direct solver on a device: the same passes as direct_solver.cpp, with the sweeps, the matrix and the iterations
// of this folder. What decides between passes - medians, the ridge, the smoothness, how much weights moved - is found
// on the device and read back once a pass.
//
// Counted at full size (C = 768, 769 views of 37 x 37 patches, 99 x 100 nodes; an H200 reads 4.3 TB/s): the first sums
// read the bank twice, a reweighted pass 1.1 times and the changed rows once more: 1.5 ms and 0.9 ms of float32, half
// of that of 16-bit numbers. An iteration is about 0.2 ms, and there are 10 to 13 in the first pass, 3 to 5 in others.
#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "field/direct_solver/direct_backend.h"
#include "field/direct_solver/direct_device_average.h"
#include "field/direct_solver/direct_device_rows.h"
#include "field/direct_solver/direct_device_system.h"
#include "field/direct_solver/direct_statistics.h"

namespace dvt::cuda {
namespace {

// As in direct_solver.cpp, where they are explained.
constexpr int64_t kMedianViews = 64;
constexpr double kSettled = 2e-3, kSettledRatio = 1.5;
constexpr double kLargestRidge = 5, kSmallestRidge = 0.01;
constexpr double kFirstSmoothness = 0.2, kSmallestSmoothness = 0.01, kLargestSmoothness = 0.5;
constexpr double kCountedSteps = 0.95, kGainRidge = 20, kOutlyingArtifact = 1.5;
// Where the choice of the method is ours there is no other to fall back to: iterations are cheap.
constexpr int kAutomaticIterations = 500;

bool moved_much(double a, double b) { return std::max(a, b) > kSettledRatio * std::min(a, b); }

class DeviceSolver final : public DirectSolverCuda {
 public:
  explicit DeviceSolver(const DirectSetup& setup) : setup_(setup), rows_(setup) {}

  Status add(int64_t views, const void* features, Dtype type, const float* coords, bool coords_on_device,
             void* stream) override;
  Status solve(const DirectOptions& options, const float* prior, float* nodes, float* artifacts, DirectReport* report,
               void* stream) override;
  Status average(float* nodes, float* artifacts, void* stream) override;
  void reset() override {
    rows_.reset();
    banks_.clear();
    whole_ = true;
  }

 private:
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
  DeviceRows rows_;
  cudaStream_t stream_ = nullptr;
  Dtype bank_type_ = Dtype::float32;
  bool whole_ = true;
  std::vector<DeviceBuffer<uint16_t>> banks_;         // with Keep::half, a call of `add` each
  DeviceBuffer<float> first_cells_;                   // [cells, 4, channels]: sums of all views with base weights
  DeviceBuffer<float> first_patches_, next_patches_;  // [patches, channels]
  DeviceBuffer<uint32_t> flags_;                      // [2]
  // Of a solve:
  DeviceSystem system_;
  DeviceBuffer<float> cells_, weights_, new_weights_, energy_, steps_, per_patch_, per_channel_;
  DeviceBuffer<double> parts_;
  DeviceBuffer<DirectScalars> scalars_;
  DeviceBuffer<float> gain_, field_sums_, saved_nodes_, saved_patches_;
};

template <class T>
Status at_least(DeviceBuffer<T>& buffer, int64_t count) {
  return buffer.count() >= count ? Status() : buffer.allocate(count, "the direct solver");
}

// Copies them, where they are kept, and names the first bad view.
Status DeviceSolver::check_views(int64_t views, const void* features, Dtype type, uint16_t* copy) {
  uint32_t first[2] = {~0u, ~0u};
  DVT_CUDA(cudaMemsetAsync(flags_.data(), 0xff, sizeof(first), stream_), "inspecting views");
  DVT_RETURN_IF_ERROR(inspect_views(views, map_size(), features, type, copy, flags_.data(), stream_));
  DVT_RETURN_IF_ERROR(flags_.download(first, 2, stream_, "inspecting views"));
  if (first[0] != ~0u) return non_finite("features of view ", rows_.views() + first[0], " contain NaN or infinity");
  if (copy && first[1] != ~0u)
    return invalid_argument("features of view ", rows_.views() + first[1], " exceed the range of float16 (65504): ",
                            "solve from float32 features kept by the caller, or with one pass");
  return Status();
}

Status DeviceSolver::add(int64_t views, const void* features, Dtype type, const float* coords, bool coords_on_device,
                         void* stream) {
  if (views == 0) return Status();
  if (type != Dtype::float32 && type != Dtype::float16 && type != Dtype::bfloat16)
    return invalid_argument("features must be float32, float16 or bfloat16, got ", dtype_name(type));
  const Dtype kept_type = setup_.keep == Keep::half && type == Dtype::float32 ? Dtype::float16 : type;
  if (rows_.views() > 0 && setup_.keep != Keep::nothing && kept_type != bank_type_)
    return invalid_argument("features must be ", dtype_name(bank_type_), " like those before, got ", dtype_name(type));
  DeviceGuard guard(setup_.device);
  DVT_RETURN_IF_ERROR(guard.status());
  stream_ = static_cast<cudaStream_t>(stream);
  const int64_t size = map_size(), element = size_of(type);
  DVT_RETURN_IF_ERROR(at_least(flags_, 2));
  DVT_RETURN_IF_ERROR(rows_.place(views, coords, coords_on_device, stream_));
  DeviceBuffer<uint16_t> copy;
  if (setup_.keep == Keep::half) {
    DVT_RETURN_IF_ERROR(copy.allocate(views * size, "a float16 copy of the features"));
    if (type == Dtype::float32) {
      DVT_RETURN_IF_ERROR(check_views(views, features, type, copy.data()));
    } else {
      DVT_CUDA(cudaMemcpyAsync(copy.data(), features, static_cast<size_t>(views * size * element),
                               cudaMemcpyDeviceToDevice, stream_),
               "copying features");
    }
  }
  std::vector<const void*> pointers(static_cast<size_t>(views));
  for (int64_t v = 0; v < views; ++v) pointers[v] = static_cast<const char*>(features) + v * size * element;
  DVT_RETURN_IF_ERROR(rows_.point_to(pointers, stream_));
  const bool whole = reads_whole(features, type, setup_.channels);
  RowList list;
  DVT_RETURN_IF_ERROR(first_sums(views, features, {type, rows_.pointers(), whole}, &list));
  if (setup_.keep == Keep::half) {
    for (int64_t v = 0; v < views; ++v) pointers[v] = copy.data() + v * size;
    DVT_RETURN_IF_ERROR(rows_.point_to(pointers, stream_));
    banks_.push_back(std::move(copy));
  }
  bank_type_ = kept_type;
  whole_ = whole_ && (setup_.keep == Keep::half ? setup_.channels % 4 == 0 : whole);
  rows_.commit(views, &list);
  return Status();
}

// The right-hand sides with base weights. G's comes first, into another buffer: it is small, and NaN or infinity in any
// feature shows in it before anything is changed.
Status DeviceSolver::first_sums(int64_t views, const void* features, const RowBank& bank, RowList* list) {
  const SweepShape shape = rows_.shape(views);
  const int64_t before = rows_.views(), first = before * setup_.patches, size = map_size();
  DVT_RETURN_IF_ERROR(at_least(first_cells_, shape.cells() * 4 * setup_.channels));
  if (setup_.cosine) {
    DVT_RETURN_IF_ERROR(at_least(energy_, shape.rows()));
    DVT_RETURN_IF_ERROR(
        row_energy({shape, bank, rows_.places(), first, shape.rows(), 1, nullptr, nullptr, energy_.data()}, stream_));
    DVT_RETURN_IF_ERROR(
        cosine_weights(shape.rows(), setup_.channels, energy_.data(), rows_.base_weights() + first, stream_));
  }
  uint32_t flag = 0;
  if (setup_.solves_artifacts) {
    DVT_RETURN_IF_ERROR(at_least(first_patches_, size));
    DVT_RETURN_IF_ERROR(at_least(next_patches_, size));
    PatchSweep sweep{shape,
                     bank,
                     rows_.base_weights(),
                     before,
                     before > 0 ? first_patches_.data() : nullptr,
                     nullptr,
                     next_patches_.data()};
    DVT_RETURN_IF_ERROR(patch_sweep(sweep, stream_));
    DVT_RETURN_IF_ERROR(flags_.zero(stream_, "checking features"));
    DVT_RETURN_IF_ERROR(find_non_finite(size, next_patches_.data(), flags_.data(), stream_));
    DVT_RETURN_IF_ERROR(flags_.download(&flag, 1, stream_, "checking features"));
  }
  if (!setup_.solves_artifacts || flag) DVT_RETURN_IF_ERROR(check_views(views, features, bank.type, nullptr));
  if (setup_.solves_artifacts) std::swap(first_patches_, next_patches_);
  DVT_RETURN_IF_ERROR(rows_.sort_by_cell(first, shape.rows(), list, stream_));
  CellSweep sweep{shape, bank, rows_.places(), *list, rows_.base_weights(), first_cells_.data()};
  sweep.add = before > 0;
  return cell_sweep(sweep, false, stream_);
}

Status DeviceSolver::allocate_pass(const DirectOptions& options, bool coupled) {
  const SweepShape s = shape();
  const int64_t sampled = std::min(s.views, 2 * kMedianViews) * s.patches;
  DVT_RETURN_IF_ERROR(system_.allocate(s, coupled, stream_));
  DVT_RETURN_IF_ERROR(rows_.sort_all(coupled, stream_));
  DVT_RETURN_IF_ERROR(at_least(weights_, s.rows()));
  DVT_RETURN_IF_ERROR(at_least(scalars_, 1));
  if (options.passes > 1) {
    DVT_RETURN_IF_ERROR(at_least(new_weights_, s.rows()));
    DVT_RETURN_IF_ERROR(at_least(energy_, setup_.channels > kMostReweightedChannels ? s.rows() : sampled));
    DVT_RETURN_IF_ERROR(at_least(steps_, grid_edges(s.grid)));
    DVT_RETURN_IF_ERROR(at_least(parts_, 3 * kWeightParts));
  }
  DVT_RETURN_IF_ERROR(at_least(per_patch_, s.patches));
  DVT_RETURN_IF_ERROR(at_least(per_channel_, 2 * s.channels));
  return at_least(cells_, s.cells() * 4 * s.channels);
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
  const int64_t stride = std::max<int64_t>(1, s.views / kMedianViews);
  const int64_t sampled = ceil_div(s.views, stride) * s.patches;
  DirectScalars* scalars = scalars_.data();
  RowEnergy rows{s, bank(), rows_.places(), 0, sampled, stride, nodes, artifacts, energy_.data()};
  DVT_RETURN_IF_ERROR(row_energy(rows, stream_));
  DVT_RETURN_IF_ERROR(
      select_ranked(1, sampled, sampled, energy_.data(), sampled / 2, &scalars->median_energy, stream_));
  DVT_RETURN_IF_ERROR(set_limit(options.outlier_threshold, scalars, stream_));
  CellSweep sweep{s, bank(), rows_.places(), rows_.list(), rows_.base_weights(), cells_.data()};
  if (s.channels > kMostReweightedChannels) {
    rows.stride = 1, rows.count = s.rows();
    DVT_RETURN_IF_ERROR(row_energy(rows, stream_));
    DVT_RETURN_IF_ERROR(
        outlier_weights(s.rows(), rows_.base_weights(), energy_.data(), &scalars->limit, new_weights_.data(), stream_));
    sweep.weights = new_weights_.data();
    DVT_RETURN_IF_ERROR(cell_sweep(sweep, false, stream_));
  } else {
    sweep.new_weights = new_weights_.data();
    sweep.limit = &scalars->limit;
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
    DVT_RETURN_IF_ERROR(select_ranked(s.channels, s.patches, system_.channel_stride(), system_.channel_scratch(),
                                      s.patches / 2, per_channel_.data(), stream_));
    DVT_RETURN_IF_ERROR(deviation_energy(s.patches, s.channels, system_.map_scratch(), per_channel_.data(),
                                         per_patch_.data(), stream_));
    DVT_RETURN_IF_ERROR(
        select_ranked(1, s.patches, s.patches, per_patch_.data(), s.patches / 2, &out->typical_deviation, stream_));
    DVT_RETURN_IF_ERROR(
        select_ranked(1, s.patches, s.patches, maps.patch_weights, s.patches / 2, &out->median_patch_weight, stream_));
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

Status DeviceSolver::check_finite(const float* nodes, const float* artifacts, bool* finite) {
  uint32_t flag;
  DVT_RETURN_IF_ERROR(flags_.zero(stream_, "checking the solution"));
  DVT_RETURN_IF_ERROR(find_non_finite(node_size(), nodes, flags_.data(), stream_));
  DVT_RETURN_IF_ERROR(find_non_finite(map_size(), artifacts, flags_.data(), stream_));
  DVT_RETURN_IF_ERROR(flags_.download(&flag, 1, stream_, "checking the solution"));
  *finite = flag == 0;
  return Status();
}

// G as the mean over views of what F (and the gain field) leaves; see direct_solver.cpp.
Status DeviceSolver::mean_artifacts(const float* nodes, bool gains, float* artifacts) {
  const SweepShape s = shape();
  DVT_RETURN_IF_ERROR(system_.assemble(s, rows_.places(), rows_.list(), rows_.patch_rows(), rows_.base_weights(),
                                       kFirstSmoothness, stream_));
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
  DVT_RETURN_IF_ERROR(at_least(gain_, p));
  DVT_RETURN_IF_ERROR(at_least(field_sums_, p));
  DVT_RETURN_IF_ERROR(at_least(saved_nodes_, n));
  DVT_RETURN_IF_ERROR(copy(saved_nodes_.data(), system_.nodes_rhs(), n));
  if (system_.patches_rhs()) {
    DVT_RETURN_IF_ERROR(at_least(saved_patches_, p));
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

Status DeviceSolver::solve(const DirectOptions& options, const float* prior, float* nodes, float* artifacts,
                           DirectReport* report, void* stream) {
  if (rows_.views() == 0) return invalid_argument("no views: add at least one before solving");
  if (!options.automatic_smoothness && !(options.smoothness > 0))
    return invalid_argument("smoothness must be positive, got ", options.smoothness);
  if (!(options.artifact_ridge >= 0))
    return invalid_argument("artifact_ridge must not be negative, got ", options.artifact_ridge);
  if (options.max_iterations < 1)
    return invalid_argument("max_iterations must be at least 1, got ", options.max_iterations);
  if (options.passes < 1) return invalid_argument("passes must be at least 1, got ", options.passes);
  if (options.residual < 0) return invalid_argument("residual must not be negative, got ", options.residual);
  if ((options.passes > 1 || options.residual > 0) && setup_.keep == Keep::nothing)
    return invalid_argument("reweighted passes and a residual need the features, and they were not kept: use one pass");
  if (options.fix_artifacts && !prior) return invalid_argument("fixed artifacts were asked for and none were given");
  if (!options.fix_artifacts && !setup_.solves_artifacts)
    return invalid_argument("artifacts are solved for only where the solver was made for it");
  if (options.method == DirectMethod::schur)
    return invalid_argument("method must be 'auto' or 'pcg' on CUDA, got 'schur'");
  DeviceGuard guard(setup_.device);
  DVT_RETURN_IF_ERROR(guard.status());
  stream_ = static_cast<cudaStream_t>(stream);
  const bool fixed = options.fix_artifacts, coupled = !fixed;
  DVT_RETURN_IF_ERROR(allocate_pass(options, coupled));
  report->method = DirectMethod::pcg;
  double mu = options.automatic_ridge ? kLargestRidge : options.artifact_ridge;
  double lambda = options.automatic_smoothness ? kFirstSmoothness : options.smoothness;
  const int64_t p = setup_.patches;
  DVT_RETURN_IF_ERROR(fill(p, static_cast<float>(mu), system_.ridge(), stream_));
  DVT_RETURN_IF_ERROR(start_rhs(prior, rows_.base_weights()));

  // The matrix for the current weights; what the prior explains leaves G's right-hand side (F's it has left already).
  bool prepared = false;
  const auto prepare = [&]() -> Status {
    prepared = true;
    DVT_RETURN_IF_ERROR(
        system_.assemble(shape(), rows_.places(), rows_.list(), rows_.patch_rows(), weights_.data(), lambda, stream_));
    return prior && coupled ? subtract_prior(system_.maps(), prior, system_.patches_rhs(), stream_) : Status();
  };
  for (int pass = 0; pass < options.passes; ++pass) {
    if (pass > 0) {
      prepared = false;
      DirectScalars found;
      DVT_RETURN_IF_ERROR(reweight(options, fixed, nodes, artifacts, prior));
      DVT_RETURN_IF_ERROR(measure(options, nodes, artifacts, prior, &found));
      const double noise = found.median_energy;
      report->median_residual = std::sqrt(noise);
      report->outlier_share = found.outliers / static_cast<double>(shape().rows());
      bool moved = found.moved > kSettled * found.total;
      if (options.automatic_ridge && coupled) {
        const double typical = found.typical_deviation, signal = typical - noise / found.median_patch_weight;
        const double ridge = signal * kLargestRidge <= noise ? kLargestRidge : std::max(kSmallestRidge, noise / signal);
        moved |= moved_much(ridge, mu);
        mu = ridge;
        const double limit = std::max(1e-30, kOutlyingArtifact * kOutlyingArtifact * typical);
        DVT_RETURN_IF_ERROR(outlying_ridge(p, static_cast<float>(ridge), static_cast<float>(limit), per_patch_.data(),
                                           system_.ridge(), stream_));
      }
      if (options.automatic_smoothness) {
        const double smoothness = noise >= kLargestSmoothness * found.mean_step
                                      ? kLargestSmoothness
                                      : std::max(kSmallestSmoothness, noise / found.mean_step);
        moved |= moved_much(smoothness, lambda);
        if (moved) lambda = smoothness;
      }
      if (!moved) break;
    }
    report->passes = pass + 1;
    report->smoothness = lambda;
    report->artifact_ridge = mu;
    DVT_RETURN_IF_ERROR(prepare());
    DVT_RETURN_IF_ERROR(solve_system(options, pass > 0, prior, nodes, artifacts, report));
  }
  if (options.residual > 0) {
    if (!prepared) DVT_RETURN_IF_ERROR(prepare());  // the last reweighting was too small to be solved for
    DVT_RETURN_IF_ERROR(fit_gains(options, prior, nodes, artifacts, report));
  }
  if (coupled) DVT_RETURN_IF_ERROR(mean_artifacts(nodes, options.residual > 0, artifacts));
  bool finite;
  DVT_RETURN_IF_ERROR(check_finite(nodes, artifacts, &finite));
  if (finite && std::isfinite(report->median_residual)) return Status();
  system_.spoil();
  return non_finite("the solution is not finite: features or the prior are too large for float32, or the prior is not ",
                    "finite");
}

Status DeviceSolver::average(float* nodes, float* artifacts, void* stream) {
  if (rows_.views() == 0) return invalid_argument("no views: add at least one before averaging");
  if (setup_.cosine || !setup_.solves_artifacts)
    return invalid_argument("an average takes a solver without cosine weights that was made to solve for artifacts");
  DeviceGuard guard(setup_.device);
  DVT_RETURN_IF_ERROR(guard.status());
  stream_ = static_cast<cudaStream_t>(stream);
  const SweepShape s = shape();
  DirectOptions options;
  options.passes = 1;
  DVT_RETURN_IF_ERROR(allocate_pass(options, true));
  DVT_RETURN_IF_ERROR(fill(s.patches, 0.0f, system_.ridge(), stream_));
  DVT_RETURN_IF_ERROR(gather_nodes(s.grid, s.channels, first_cells_.data(), false, nodes, stream_));
  // The sums of a row of the stencil, which without lambda is its coverage: taps add up to one.
  DVT_RETURN_IF_ERROR(
      system_.assemble(s, rows_.places(), rows_.list(), rows_.patch_rows(), rows_.base_weights(), 1.0, stream_));
  DVT_RETURN_IF_ERROR(divide_by_coverage(s.grid, s.channels, system_.stencil_rows(), nodes, cells_.data(), stream_));
  DVT_RETURN_IF_ERROR(system_.multiply_field(nodes, system_.patches_rhs(), stream_));
  return mean_left(system_.maps(), first_patches_.data(), system_.patches_rhs(), nullptr, nullptr, artifacts, stream_);
}

}  // namespace

Status create_direct_solver(const DirectSetup& setup, std::unique_ptr<DirectSolverCuda>* out) {
  if (setup.grid.ny < 2 || setup.grid.nx < 2)
    return invalid_argument("grid must have at least 2 x 2 nodes, got ", setup.grid.ny, " x ", setup.grid.nx);
  if (setup.grid.nodes() > 1 << 24)
    return invalid_argument("grid must have at most ", 1 << 24, " nodes, got ", setup.grid.nodes());
  if (setup.patches < 1 || setup.channels < 1)
    return invalid_argument("patches and channels must be at least 1, got ", setup.patches, " and ", setup.channels);
  const DeviceTraits* traits;
  DVT_RETURN_IF_ERROR(device_traits(setup.device, &traits));
  *out = std::make_unique<DeviceSolver>(setup);
  return Status();
}

}  // namespace dvt::cuda
