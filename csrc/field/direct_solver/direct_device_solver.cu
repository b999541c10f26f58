// The direct solver on a device: the same passes as direct_solver.cpp, with the sweeps, the matrix and the iterations
// of this folder. What decides between passes - medians, the ridge, the smoothness, how much weights moved - is found
// on the device and read back once a pass.
//
// Counted at full size (C = 768, 769 views of 37 x 37 patches, 99 x 100 nodes; an H200 reads 4.3 TB/s): the first sums
// read the bank twice, a reweighted pass 1.1 times and the changed rows once more: 1.5 ms and 0.9 ms of float32, half
// of that of 16-bit numbers. An iteration is about 0.2 ms, and there are 10 to 13 in the first pass, 3 to 5 in others.
#include "field/direct_solver/direct_device_solver.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "field/direct_solver/direct_device_average.h"

namespace dvt::cuda {
namespace {

// As in direct_solver.cpp, where they are explained.
constexpr double kSettled = 2e-3, kSettledRatio = 1.5;
constexpr double kLargestRidge = 5, kSmallestRidge = 0.01;
constexpr double kFirstSmoothness = 0.2, kSmallestSmoothness = 0.01, kLargestSmoothness = 0.5;
constexpr double kOutlyingArtifact = 1.5;

// What is read and written in fours.
Status check_aligned(const void* pointer, const char* name) {
  if (reinterpret_cast<uintptr_t>(pointer) % 16 == 0) return Status();
  return invalid_argument(name, " must be aligned to 16 bytes");
}

bool moved_much(double a, double b) { return std::max(a, b) > kSettledRatio * std::min(a, b); }

}  // namespace

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
  DVT_RETURN_IF_ERROR(foresee(views));
  DVT_RETURN_IF_ERROR(flags_.at_least(arena_, 2));
  DVT_RETURN_IF_ERROR(rows_.place(views, coords, coords_on_device, stream_));
  uint16_t* copy = nullptr;
  if (setup_.keep == Keep::half) {
    DVT_RETURN_IF_ERROR(room_for_copies(views, &copy));
    if (type == Dtype::float32) {
      DVT_RETURN_IF_ERROR(check_views(views, features, type, copy));
    } else {
      DVT_CUDA(cudaMemcpyAsync(copy, features, static_cast<size_t>(views * size * element), cudaMemcpyDeviceToDevice,
                               stream_),
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
    for (int64_t v = 0; v < views; ++v) pointers[v] = copy + v * size;
    DVT_RETURN_IF_ERROR(rows_.point_to(pointers, stream_));
    bank_used_ += views;
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
  DVT_RETURN_IF_ERROR(first_cells_.at_least(arena_, shape.cells() * 4 * setup_.channels));
  if (setup_.cosine) {
    DVT_RETURN_IF_ERROR(energy_.at_least(arena_, shape.rows()));
    DVT_RETURN_IF_ERROR(
        row_energy({shape, bank, rows_.places(), first, shape.rows(), 1, nullptr, nullptr, energy_.data()}, stream_));
    DVT_RETURN_IF_ERROR(
        cosine_weights(shape.rows(), setup_.channels, energy_.data(), rows_.base_weights() + first, stream_));
  }
  uint32_t flag = 0;
  if (setup_.solves_artifacts) {
    DVT_RETURN_IF_ERROR(first_patches_.at_least(arena_, size));
    DVT_RETURN_IF_ERROR(next_patches_.at_least(arena_, size));
    PatchSweep sweep{shape,
                     bank,
                     rows_.base_weights(),
                     before,
                     before > 0 ? first_patches_.data() : nullptr,
                     nullptr,
                     next_patches_.data()};
    DVT_RETURN_IF_ERROR(patch_sweep(sweep, stream_));
    DVT_RETURN_IF_ERROR(flags_.zero(2, stream_, "checking features"));
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

// All of the memory that one round of views and a solve take, in one allocation.
Status DeviceSolver::foresee(int64_t views) {
  if (flags_.data()) return Status();
  const bool passes = setup_.keep != Keep::nothing;
  const int64_t expected = std::max(views, setup_.expected_views);
  const SweepShape s = rows_.shape(expected);
  const int64_t cells = s.cells() * 4 * s.channels, rows = s.rows();
  size_t bytes;
  DVT_RETURN_IF_ERROR(DeviceSystem::bytes(s, setup_.solves_artifacts, &bytes));
  bytes += DeviceRows::bytes(setup_, expected) + 2 * Piece<float>::bytes(cells) + 2 * Piece<float>::bytes(map_size()) +
           (passes ? 2 : 1) * Piece<float>::bytes(rows) + Piece<float>::bytes(s.patches) +
           Piece<float>::bytes(2 * s.channels) + Piece<DirectScalars>::bytes(1) + Piece<uint32_t>::bytes(2);
  if (passes)
    bytes += Piece<float>::bytes(sampled_rows(s)) + Piece<float>::bytes(grid_edges(s.grid)) +
             Piece<double>::bytes(3 * kWeightParts);
  return arena_.reserve(bytes, "the direct solver");
}

// The copies of all expected views lie in one allocation; what comes beyond gets its own.
Status DeviceSolver::room_for_copies(int64_t views, uint16_t** copy) {
  const int64_t size = map_size();
  if (banks_.empty() || (bank_used_ + views) * size > banks_.back().count()) {
    const int64_t room = std::max(views, setup_.expected_views - rows_.views());
    DeviceBuffer<uint16_t> bank;
    DVT_RETURN_IF_ERROR(bank.allocate(room * size, "a 16-bit copy of the features"));
    banks_.push_back(std::move(bank));
    bank_used_ = 0;
  }
  *copy = banks_.back().data() + bank_used_ * size;
  return Status();
}

Status DeviceSolver::allocate_pass(const DirectOptions& options, bool coupled) {
  const SweepShape s = shape();
  DVT_RETURN_IF_ERROR(system_.allocate(s, coupled, arena_, stream_));
  DVT_RETURN_IF_ERROR(rows_.sort_all(coupled, stream_));
  DVT_RETURN_IF_ERROR(weights_.at_least(arena_, s.rows()));
  DVT_RETURN_IF_ERROR(scalars_.at_least(arena_, 1));
  if (options.passes > 1) {
    DVT_RETURN_IF_ERROR(new_weights_.at_least(arena_, s.rows()));
    DVT_RETURN_IF_ERROR(
        energy_.at_least(arena_, setup_.channels > kMostReweightedChannels ? s.rows() : sampled_rows(s)));
    DVT_RETURN_IF_ERROR(steps_.at_least(arena_, grid_edges(s.grid)));
    DVT_RETURN_IF_ERROR(parts_.at_least(arena_, 3 * kWeightParts));
  }
  DVT_RETURN_IF_ERROR(per_patch_.at_least(arena_, s.patches));
  DVT_RETURN_IF_ERROR(per_channel_.at_least(arena_, 2 * s.channels));
  return cells_.at_least(arena_, s.cells() * 4 * s.channels);
}

Status DeviceSolver::check_finite(const float* nodes, const float* artifacts, bool* finite) {
  uint32_t flag;
  DVT_RETURN_IF_ERROR(flags_.zero(2, stream_, "checking the solution"));
  DVT_RETURN_IF_ERROR(find_non_finite(node_size(), nodes, flags_.data(), stream_));
  DVT_RETURN_IF_ERROR(find_non_finite(map_size(), artifacts, flags_.data(), stream_));
  DVT_RETURN_IF_ERROR(flags_.download(&flag, 1, stream_, "checking the solution"));
  *finite = flag == 0;
  return Status();
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
  DVT_RETURN_IF_ERROR(check_aligned(prior, "artifacts that are given"));
  DVT_RETURN_IF_ERROR(check_aligned(nodes, "nodes"));
  DVT_RETURN_IF_ERROR(check_aligned(artifacts, "artifacts"));
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
  DVT_RETURN_IF_ERROR(check_aligned(nodes, "nodes"));
  DVT_RETURN_IF_ERROR(check_aligned(artifacts, "artifacts"));
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
