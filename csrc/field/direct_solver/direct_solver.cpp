#include "field/direct_solver/direct_solver.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/threads.h"

namespace dvt {
namespace {

// The value that `rank` others precede in order.
double ranked(std::vector<float> values, size_t rank) {
  const auto place = values.begin() + static_cast<std::ptrdiff_t>(rank);
  std::nth_element(values.begin(), place, values.end());
  return *place;
}

// The middle of the values, the upper of two.
double median(std::vector<float> values) {
  const size_t rank = values.size() / 2;
  return values.empty() ? 0 : ranked(std::move(values), rank);
}

constexpr float kLargestHalf = 65504.0f;
// A token without length has no direction: its cosine term must not outweigh everything else.
constexpr float kLargestCosineWeight = 1e3f;
// The medians of residuals, of all rows and of each patch, are taken over about this many views, spread evenly.
constexpr int64_t kMedianViews = 64;
constexpr int64_t kGroup = 16;
// Reweighting ends when the weights change by less than this share of their sum.
constexpr double kSettled = 2e-3;
// ... and the estimates by less than this factor.
constexpr double kSettledRatio = 1.5;
// With an automatic ridge: the first pass's, which is also the largest, and the smallest.
constexpr double kLargestRidge = 5, kSmallestRidge = 0.01;
// The same for the smoothness, and how much of the steps of F counts: the largest may be outlier tokens that an early
// pass still holds.
constexpr double kFirstSmoothness = 0.2, kSmallestSmoothness = 0.01, kLargestSmoothness = 0.5;
constexpr double kCountedSteps = 0.95;
constexpr double kGainRidge = 20;
constexpr double kOutlyingArtifact = 1.5;  // in medians of |G|

}  // namespace

DirectSolver::DirectSolver(GridShape grid, int64_t patches, int64_t channels, Keep keep, bool cosine)
    : grid_(grid), patches_(patches), channels_(channels), keep_(keep), cosine_(cosine) {
  first_nodes_.zeroed(grid.nodes() * channels);
  first_patches_.zeroed(patches * channels);
}

void DirectSolver::place(int64_t views, const float* coords) {
  const size_t first = taps_.size(), count = static_cast<size_t>(views * patches_);
  taps_.resize(first + count);
  base_weights_.resize(first + count, 1.0f);
  locate(grid_, views * patches_, coords, taps_.data() + first);
}

Status DirectSolver::add(int64_t views, const float* features, const float* coords) {
  const int64_t size = patches_ * channels_;
  std::vector<uint8_t> finite(static_cast<size_t>(views));
  parallel_for(views, 1, [&](int64_t begin, int64_t end) {
    for (int64_t v = begin; v < end; ++v) finite[v] = bilinear_kernels().all_finite(size, features + v * size);
  });
  for (int64_t v = 0; v < views; ++v)
    if (!finite[v]) return non_finite("features of view ", views_ + v, " contain NaN or infinity");
  std::vector<const float*> pointers(static_cast<size_t>(views));
  for (int64_t v = 0; v < views; ++v) pointers[v] = features + v * size;
  if (keep_ == Keep::half) {
    std::vector<float> largest(static_cast<size_t>(views));
    std::vector<Buffer<uint16_t>> copies;
    for (int64_t v = 0; v < views; ++v) copies.emplace_back(size);
    parallel_for(views, 1, [&](int64_t begin, int64_t end) {
      for (int64_t v = begin; v < end; ++v)
        largest[v] = bilinear_kernels().to_half(size, pointers[v], copies[v].data());
    });
    for (int64_t v = 0; v < views; ++v)
      if (largest[v] > kLargestHalf)
        return invalid_argument("features of view ", views_ + v, " exceed the range of float16 (65504): solve from ",
                                "float32 features kept by the caller, or with one pass");
    for (auto& copy : copies) {
      half_.push_back(copy.data());
      bank_.push_back(std::move(copy));
    }
  }
  place(views, coords);
  float* weights = base_weights_.data() + views_ * patches_;
  if (cosine_) {
    parallel_for(views, 1, [&](int64_t begin, int64_t end) {
      bilinear_kernels().energy((end - begin) * patches_, channels_, pointers[begin], weights + begin * patches_);
    });
    for (int64_t i = 0; i < views * patches_; ++i)
      weights[i] = 1.0f + std::min(kLargestCosineWeight, static_cast<float>(channels_) / (2.0f * weights[i]));
  }
  if (keep_ == Keep::borrow) borrowed_.insert(borrowed_.end(), pointers.begin(), pointers.end());
  scatter(grid_, views, patches_, taps_.data() + views_ * patches_, weights, channels_, pointers.data(),
          first_nodes_.data(), first_patches_.data());
  views_ += views;
  return Status();
}

void DirectSolver::accumulate(int64_t first, int64_t views, float* node_sums, float* patch_sums) const {
  const Tap* taps = taps_.data() + first * patches_;
  const float* weights = weights_.data() + first * patches_;
  if (keep_ == Keep::borrow)
    scatter(grid_, views, patches_, taps, weights, channels_, borrowed_.data() + first, node_sums, patch_sums);
  else
    scatter(grid_, views, patches_, taps, weights, channels_, half_.data() + first, node_sums, patch_sums);
}

void DirectSolver::view_residual(int64_t v, const float* nodes, const float* artifacts, float* energy) const {
  const Tap* taps = taps_.data() + v * patches_;
  if (keep_ == Keep::borrow)
    residual_energy(grid_, patches_, taps, channels_, borrowed_[v], nodes, artifacts, energy);
  else
    residual_energy(grid_, patches_, taps, channels_, half_[v], nodes, artifacts, energy);
}

// One more sweep over the features: residuals under the last solution, row weights, and the weighted right-hand side.
// False if the weights hardly moved, and then another solve would change nothing worth its time.
bool DirectSolver::reweight(const DirectOptions& options, const float* nodes, const float* artifacts,
                            DirectSystem* system, DirectReport* report) {
  std::vector<float> energy(weights_.size()), sample;
  const int64_t stride = std::max<int64_t>(1, views_ / kMedianViews);
  for (int64_t v = 0; v < views_; v += stride) {
    float* e = energy.data() + v * patches_;
    view_residual(v, nodes, artifacts, e);
    sample.insert(sample.end(), e, e + patches_);
  }
  // The median of a patch over views (of two the lower). It bounds from below what its rows count as: where F is seen
  // by an outlying patch alone, as a corner of the image is by corner tokens, F follows that patch, and its residual
  // there tells nothing.
  std::vector<float> typical(static_cast<size_t>(patches_)), column(sample.size() / static_cast<size_t>(patches_));
  for (int64_t i = 0; i < patches_; ++i) {
    for (size_t v = 0; v < column.size(); ++v) column[v] = sample[v * static_cast<size_t>(patches_) + i];
    typical[i] = static_cast<float>(ranked(column, (column.size() - 1) / 2));
  }
  const double middle = std::sqrt(median(std::move(sample)));
  const double limit = std::max(options.outlier_threshold * middle, 1e-30);
  float* node_sums = system->nodes_rhs.zeroed(grid_.nodes() * channels_);
  float* patch_sums = system->patches_rhs.zeroed(patches_ * channels_);
  int64_t outliers = 0;
  double moved = 0, total = 0;
  // A group of views at a time: what the residuals bring into the cache, the sums still find there.
  for (int64_t first = 0; first < views_; first += kGroup) {
    const int64_t last = std::min(views_, first + kGroup);
    for (int64_t v = first; v < last; ++v) {
      float* e = energy.data() + v * patches_;
      float* w = weights_.data() + v * patches_;
      if (v % stride != 0) view_residual(v, nodes, artifacts, e);
      for (int64_t i = 0; i < patches_; ++i) {
        const double excess = std::max(1.0, std::sqrt(static_cast<double>(std::max(e[i], typical[i]))) / limit);
        const float weight = base_weights_[v * patches_ + i] * static_cast<float>(1.0 / (excess * excess));
        moved += std::fabs(weight - w[i]);
        total += w[i];
        w[i] = weight;
        outliers += excess * excess > 2.0;
      }
    }
    accumulate(first, last - first, node_sums, patch_sums);
  }
  report->median_residual = middle;
  report->outlier_share = static_cast<double>(outliers) / static_cast<double>(weights_.size());
  return moved > kSettled * total;
}

// The ridge that the data ask for: the variance of a row's residual over the variance of G (empirical Bayes). Medians
// over rows and patches, so that outlier tokens do not decide; what G owes to noise alone is taken off. A patch whose G
// stands far out gets less, by the square of how far: its artifact is real, and shrinking it would leave a part in F.
// True if the ridge moved enough to be worth another solve.
bool DirectSolver::estimate_ridge(const float* artifacts, const float* prior, double median_residual, double* mu,
                                  DirectSystem* system) const {
  std::vector<float> deviation(static_cast<size_t>(patches_ * channels_)), column(static_cast<size_t>(patches_));
  for (int64_t i = 0; i < patches_; ++i) {
    const float unshrink = unshrinkage(*system, i);
    for (int64_t k = i * channels_; k < (i + 1) * channels_; ++k)
      deviation[k] = (artifacts[k] - (prior ? prior[k] : 0.0f)) * unshrink;
  }
  std::vector<float> energy(static_cast<size_t>(patches_), 0.0f);
  for (int64_t k = 0; k < channels_; ++k) {
    for (int64_t i = 0; i < patches_; ++i) column[i] = deviation[i * channels_ + k];
    const float centre = static_cast<float>(median(column));
    for (int64_t i = 0; i < patches_; ++i) energy[i] += (column[i] - centre) * (column[i] - centre);
  }
  const double noise = median_residual * median_residual, typical = median(energy);
  const double signal = typical - noise / median(system->patch_weights);
  const double found = signal * kLargestRidge <= noise ? kLargestRidge : std::max(kSmallestRidge, noise / signal);
  const bool moved = std::max(found, *mu) > kSettledRatio * std::min(found, *mu);
  *mu = found;
  const double limit = std::max(1e-30, kOutlyingArtifact * kOutlyingArtifact * typical);
  for (int64_t i = 0; i < patches_; ++i)
    system->ridge[i] = static_cast<float>(found / std::max(1.0, static_cast<double>(energy[i]) / limit));
  return moved;
}

// The smoothness that the data ask for: the variance of a row's residual over that of F's steps.
double DirectSolver::estimated_smoothness(const float* nodes, double median_residual) const {
  std::vector<float> steps;
  const auto step = [&](int64_t a, int64_t b) {
    float sum = 0;
    for (int64_t k = 0; k < channels_; ++k) {
      const float d = nodes[a * channels_ + k] - nodes[b * channels_ + k];
      sum += d * d;
    }
    steps.push_back(sum);
  };
  for (int64_t i = 0; i < grid_.ny; ++i)
    for (int64_t j = 0; j < grid_.nx; ++j) {
      const int64_t at = i * grid_.nx + j;
      if (j + 1 < grid_.nx) step(at, at + 1);
      if (i + 1 < grid_.ny) step(at, at + grid_.nx);
    }
  std::sort(steps.begin(), steps.end());
  const size_t counted = std::max<size_t>(1, static_cast<size_t>(kCountedSteps * static_cast<double>(steps.size())));
  double mean = 0;
  for (size_t i = 0; i < counted; ++i) mean += steps[i];
  mean /= static_cast<double>(counted);
  const double noise = median_residual * median_residual;
  return noise >= kLargestSmoothness * mean ? kLargestSmoothness : std::max(kSmallestSmoothness, noise / mean);
}

// From G shrunk towards G0 to the mean of what F leaves: (D + mu) (G - G0) = sum_v w (y - F - G0).
float DirectSolver::unshrinkage(const DirectSystem& system, int64_t patch) {
  return 1.0f + system.ridge[patch] / std::max(system.patch_weights[patch], 1e-20f);
}

// gain [patches, channels] = A, and centre [channels] = the mean of F over its nodes. A is pulled to zero by kGainRidge
// rows of ordinary content.
void DirectSolver::fit_gain(const float* nodes, const float* artifacts, float* gain, float* centre) const {
  const int64_t n = grid_.nodes(), c = channels_, p = patches_;
  std::vector<double> sums(static_cast<size_t>(c), 0.0), squares(static_cast<size_t>(c), 0.0);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t k = 0; k < c; ++k) sums[k] += nodes[i * c + k];
  for (int64_t k = 0; k < c; ++k) centre[k] = static_cast<float>(sums[k] / static_cast<double>(n));
  for (int64_t i = 0; i < n; ++i)
    for (int64_t k = 0; k < c; ++k) squares[k] += std::pow(nodes[i * c + k] - centre[k], 2.0);
  Buffer<float> square;
  square.zeroed(p * c);
  std::memset(gain, 0, sizeof(float) * static_cast<size_t>(p * c));
  if (keep_ == Keep::borrow)
    gain_sums(grid_, views_, p, taps_.data(), weights_.data(), c, borrowed_.data(), nodes, centre, artifacts, gain,
              square.data());
  else
    gain_sums(grid_, views_, p, taps_.data(), weights_.data(), c, half_.data(), nodes, centre, artifacts, gain,
              square.data());
  for (int64_t i = 0; i < p; ++i)
    for (int64_t k = 0; k < c; ++k) {
      const double variance = squares[k] / static_cast<double>(n);
      gain[i * c + k] /= static_cast<float>(square[i * c + k] + kGainRidge * variance + 1e-30);
    }
}

// G as the mean over views of what F (and h, where gain is not null) leaves; scratch [nodes, channels]. The G of the
// equations is shrunk, and where tokens stand out it is the mean of the few rows that kept their weight: right for
// finding F, and not what the ViT puts there.
void DirectSolver::mean_left_by_field(const float* nodes, const float* gain, const float* centre, float* scratch,
                                      float* artifacts) const {
  std::memcpy(artifacts, first_patches_.data(), sizeof(float) * static_cast<size_t>(patches_ * channels_));
  subtract_field(grid_, views_, patches_, taps_.data(), base_weights_.data(), channels_, nodes, artifacts);
  if (gain)
    scatter_gain(grid_, views_, patches_, taps_.data(), base_weights_.data(), channels_, gain, nodes, centre, scratch,
                 artifacts);
  for (int64_t i = 0; i < patches_; ++i) {
    double total = 0;
    for (int64_t v = 0; v < views_; ++v) total += base_weights_[v * patches_ + i];
    for (int64_t k = i * channels_; k < (i + 1) * channels_; ++k) artifacts[k] /= static_cast<float>(total);
  }
}

// F and G for the system's right-hand side, which holds what the prior does not explain.
Status DirectSolver::solve_once(const DirectSystem& system, const DirectOptions& options, const float* prior,
                                float* nodes, float* artifacts, DirectReport* report) const {
  const int64_t size = patches_ * channels_;
  if (options.fix_artifacts) std::memset(artifacts, 0, sizeof(float) * static_cast<size_t>(size));
  if (report->method == DirectMethod::pcg) {
    report->iterations = system.solve_pcg(options.tolerance, options.max_iterations, nodes, artifacts);
    if (report->iterations > options.max_iterations) {
      if (options.method == DirectMethod::pcg)
        return invalid_argument("pcg did not reach the tolerance of ", options.tolerance, " in ",
                                options.max_iterations, " iterations: allow more, or take method 'schur'");
      report->method = DirectMethod::schur;  // the choice was ours
    }
  }
  if (report->method == DirectMethod::schur)
    DVT_RETURN_IF_ERROR(system.solve_schur(options.fix_artifacts, nodes, artifacts));
  if (prior)
    for (int64_t i = 0; i < size; ++i) artifacts[i] += prior[i];
  return Status();
}

Status DirectSolver::solve(const DirectOptions& options, const float* prior, float* nodes, float* artifacts,
                           DirectReport* report) {
  if (views_ == 0) return invalid_argument("no views: add at least one before solving");
  if (!options.automatic_smoothness && !(options.smoothness > 0))
    return invalid_argument("smoothness must be positive, got ", options.smoothness);
  if (!(options.artifact_ridge >= 0))
    return invalid_argument("artifact_ridge must not be negative, got ", options.artifact_ridge);
  if (options.max_iterations < 1)
    return invalid_argument("max_iterations must be at least 1, got ", options.max_iterations);
  if (options.passes < 1) return invalid_argument("passes must be at least 1, got ", options.passes);
  if (options.residual < 0) return invalid_argument("residual must not be negative, got ", options.residual);
  if ((options.passes > 1 || options.residual > 0) && keep_ == Keep::nothing)
    return invalid_argument("reweighted passes and a residual need the features, and they were not kept: use one pass");
  if (options.fix_artifacts && !prior) return invalid_argument("fixed artifacts were asked for and none were given");
  const int64_t n = grid_.nodes(), c = channels_, p = patches_;
  weights_ = base_weights_;
  double mu = options.automatic_ridge ? kLargestRidge : options.artifact_ridge;
  DirectSystem system{grid_, p, c, views_, taps_.data(), weights_.data()};
  system.lambda = options.automatic_smoothness ? kFirstSmoothness : options.smoothness;
  system.ridge.assign(static_cast<size_t>(p), static_cast<float>(mu));
  system.nodes_rhs.at_least(n * c);
  system.patches_rhs.at_least(p * c);
  std::memcpy(system.nodes_rhs.data(), first_nodes_.data(), sizeof(float) * static_cast<size_t>(n * c));
  std::memcpy(system.patches_rhs.data(), first_patches_.data(), sizeof(float) * static_cast<size_t>(p * c));
  const bool schur = options.method == DirectMethod::schur || options.fix_artifacts ||
                     (options.method == DirectMethod::automatic && system.schur_is_cheaper());
  report->method = schur ? DirectMethod::schur : DirectMethod::pcg;

  // The matrix for the current weights; what the prior explains leaves the right-hand side, to solve for G - G0.
  const auto prepare = [&] {
    system.assemble();
    if (!prior) return;
    std::vector<float> negative(weights_.size());
    for (size_t i = 0; i < weights_.size(); ++i) negative[i] = -weights_[i];
    const std::vector<const float*> priors(static_cast<size_t>(views_), prior);
    scatter(grid_, views_, p, taps_.data(), negative.data(), c, priors.data(), system.nodes_rhs.data(),
            system.patches_rhs.data());
  };
  bool prepared = false;
  for (int pass = 0; pass < options.passes; ++pass) {
    if (pass > 0) {
      prepared = false;
      bool moved = reweight(options, nodes, artifacts, &system, report);
      if (options.automatic_ridge && !options.fix_artifacts)
        moved |= estimate_ridge(artifacts, prior, report->median_residual, &mu, &system);
      if (options.automatic_smoothness) {
        const double found = estimated_smoothness(nodes, report->median_residual);
        moved |= std::max(found, system.lambda) > kSettledRatio * std::min(found, system.lambda);
        if (moved) system.lambda = found;
      }
      if (!moved) break;
    }
    report->passes = pass + 1;
    report->smoothness = system.lambda;
    report->artifact_ridge = mu;
    prepare();
    prepared = true;
    DVT_RETURN_IF_ERROR(solve_once(system, options, prior, nodes, artifacts, report));
  }
  Buffer<float> gain, centre;
  if (options.residual > 0) {
    if (!prepared) prepare();  // the last reweighting was too small to be solved for
    gain.at_least(p * c);
    centre.at_least(c);
    Buffer<float> nodes_rhs(n * c), patches_rhs(p * c);
    std::memcpy(nodes_rhs.data(), system.nodes_rhs.data(), sizeof(float) * static_cast<size_t>(n * c));
    std::memcpy(patches_rhs.data(), system.patches_rhs.data(), sizeof(float) * static_cast<size_t>(p * c));
    for (int turn = 0; turn < options.residual; ++turn) {
      fit_gain(nodes, artifacts, gain.data(), centre.data());
      std::memcpy(system.nodes_rhs.data(), nodes_rhs.data(), sizeof(float) * static_cast<size_t>(n * c));
      std::memcpy(system.patches_rhs.data(), patches_rhs.data(), sizeof(float) * static_cast<size_t>(p * c));
      scatter_gain(grid_, views_, p, taps_.data(), weights_.data(), c, gain.data(), nodes, centre.data(),
                   system.nodes_rhs.data(), system.patches_rhs.data());
      DVT_RETURN_IF_ERROR(solve_once(system, options, prior, nodes, artifacts, report));
    }
  }
  if (!options.fix_artifacts) mean_left_by_field(nodes, gain.data(), centre.data(), system.nodes_rhs.data(), artifacts);
  const auto finite = bilinear_kernels().all_finite;
  if (!finite(n * c, nodes) || !finite(p * c, artifacts) || !std::isfinite(report->median_residual))
    return non_finite(
        "the solution is not finite: features or the prior are too large for float32, or the prior is not ", "finite");
  return Status();
}

}  // namespace dvt
