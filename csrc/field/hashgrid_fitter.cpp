#include "field/hashgrid_fitter.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/random.h"
#include "field/artifacts/artifacts.h"

namespace dvt {
namespace {

enum Stream : uint64_t { kGrid, kField, kArtifacts, kResidual, kFirstStep };

// With these no product of sizes wraps.
constexpr int64_t kMaxPatches = 1 << 24, kMaxWidth = 1 << 20;

Status check(const HashgridOptions& o, const HashgridProblem& p) {
  if (p.views < 1 || p.height < 1 || p.width < 1 || p.channels < 1)
    return invalid_argument("features must have at least one view, patch and channel");
  if (o.steps < 1) return invalid_argument("steps must be at least 1, got ", o.steps);
  if (o.batch < 1 || o.batch > (1 << 20)) return invalid_argument("batch must be 1 to 1048576, got ", o.batch);
  if (o.steps > (1 << 30)) return invalid_argument("steps must be at most 1073741824, got ", o.steps);
  if (p.height > kMaxPatches / p.width || p.channels > kMaxWidth)
    return invalid_argument("features must have at most ", kMaxPatches, " patches a view and ", kMaxWidth,
                            " channels, got ", p.height, " x ", p.width, " and ", p.channels);
  if (o.hidden_dim < 0 || o.hidden_dim > kMaxWidth)
    return invalid_argument("hidden_dim must be 0 (the default) to ", kMaxWidth, ", got ", o.hidden_dim);
  if (o.residual_dim < 0 || o.residual_dim > kMaxWidth)
    return invalid_argument("residual_dim must be 0 (the default) to ", kMaxWidth, ", got ", o.residual_dim);
  const auto positive = [](double x) { return x > 0 && std::isfinite(x); };
  const auto at_least_zero = [](double x) { return x >= 0 && std::isfinite(x); };
  if (!positive(o.lr)) return invalid_argument("lr must be positive, got ", o.lr);
  if (!at_least_zero(o.lr_final)) return invalid_argument("lr_final must be at least 0, got ", o.lr_final);
  if (!(o.warmup >= 0 && o.warmup <= 1)) return invalid_argument("warmup must be in [0, 1], got ", o.warmup);
  for (double beta : {o.adam.beta1, o.adam.beta2})
    if (!(beta >= 0 && beta < 1)) return invalid_argument("betas must be in [0, 1), got ", beta);
  // torch's lerp takes another form from a weight of a half on; the exact replay follows the small one.
  if (!(1 - o.adam.beta1 < 0.5)) return invalid_argument("betas[0] must be above 0.5, got ", o.adam.beta1);
  if (!at_least_zero(o.adam.eps)) return invalid_argument("eps must be at least 0, got ", o.adam.eps);
  if (!at_least_zero(o.adam.weight_decay))
    return invalid_argument("weight_decay must be at least 0, got ", o.adam.weight_decay);
  if (!at_least_zero(o.loss.residual_mse) || !at_least_zero(o.loss.residual_l1))
    return invalid_argument("residual weights must be at least 0, got ", o.loss.residual_mse, " and ",
                            o.loss.residual_l1);
  if (!positive(o.loss.scale)) return invalid_argument("loss_scale must be positive, got ", o.loss.scale);
  return Status();
}

std::vector<AdamStep> adam_table(const HashgridOptions& options) {
  std::vector<AdamStep> table;
  for (int64_t s = 0; s < options.steps; ++s)
    table.push_back(adam_step_factors(options.adam, hashgrid_learning_rate(options, s), s + 1));
  return table;
}

// As torch.nn.Linear: weights and biases uniform in +-1 / sqrt(inputs).
void initialise_mlp(const MlpShape& shape, uint64_t seed, Stream stream, float* params) {
  Random random(seed, stream);
  for (int i = 0; i < shape.n_layers; ++i) {
    const float bound = 1.0f / std::sqrt(static_cast<float>(shape.widths[i]));
    const int64_t count = (shape.widths[i] + 1) * shape.widths[i + 1];
    for (int64_t k = 0; k < count; ++k) *params++ = random.uniform(-bound, bound);
  }
}

}  // namespace

double hashgrid_learning_rate(const HashgridOptions& options, int64_t step) {
  const int64_t warm = static_cast<int64_t>(std::llround(options.warmup * static_cast<double>(options.steps)));
  if (step < warm) return options.lr * static_cast<double>(step + 1) / static_cast<double>(warm);
  const double done = static_cast<double>(step - warm) / static_cast<double>(options.steps - warm);
  return options.lr_final + (options.lr - options.lr_final) * 0.5 * (1 + std::cos(3.14159265358979323846 * done));
}

HashgridFitter::Group::Group(int64_t n) : count(n), params(n), grads(n) {
  exp_avg.zeroed(n);
  exp_avg_sq.zeroed(n);
}

void HashgridFitter::Group::update(const AdamOptions& options, AdamStep step) {
  adam_update(options, step, count, grads.data(), params.data(), exp_avg.data(), exp_avg_sq.data());
}

Status HashgridFitter::make(const HashgridOptions& options, const HashgridProblem& problem,
                            std::unique_ptr<HashgridFitter>* fitter) {
  DVT_RETURN_IF_ERROR(check(options, problem));
  HashGrid grid;
  DVT_RETURN_IF_ERROR(make_hash_grid(options.grid, &grid));
  const int64_t c = problem.channels;
  const int64_t hidden = options.hidden_dim ? options.hidden_dim : std::max<int64_t>(1, c / 2);
  const int64_t narrow = options.residual_dim ? options.residual_dim : std::max<int64_t>(1, c / 4);
  const MlpShape field_mlp{2, {grid.n_outputs(), hidden, c}}, residual_mlp{3, {c, narrow, narrow, c}};
  const Features features{problem.features, problem.half, problem.views * problem.height * problem.width, c};
  const int64_t bad = first_non_finite(features);
  if (bad >= 0) {
    const int64_t patch = bad / c, w = problem.width, h = problem.height;
    return non_finite("features have a NaN or infinity at view ", patch / (w * h), ", row ", patch / w % h, ", column ",
                      patch % w, ", channel ", bad % c);
  }
  for (int64_t i = 0; i < 2 * features.rows; ++i)
    if (!(problem.coords[i] >= 0.0f && problem.coords[i] <= 1.0f))
      return invalid_argument("coords must be in [0, 1], got ", problem.coords[i]);
  fitter->reset(new HashgridFitter(options, problem, grid, field_mlp, residual_mlp));
  return Status();
}

HashgridFitter::HashgridFitter(const HashgridOptions& options, const HashgridProblem& problem, const HashGrid& grid,
                               const MlpShape& field_mlp, const MlpShape& residual_mlp)
    : options_(options),
      problem_(problem),
      features_{problem.features, problem.half, problem.views * problem.height * problem.width, problem.channels},
      grid_(grid),
      field_mlp_(field_mlp),
      residual_mlp_(residual_mlp),
      field_(field_mlp.n_params()),
      artifacts_(patches() * problem.channels),
      residual_(residual_mlp.n_params()),
      grid_params_(grid.n_params()),
      touched_(grid, options.batch),
      grid_adam_(options.adam, adam_table(options),
                 AdamTable{grid.entries, grid.n_features, grid_params_.data(), grid_exp_avg_.zeroed(grid.n_params()),
                           grid_exp_avg_sq_.zeroed(grid.n_params()), grid_last_step_.zeroed(grid.entries)},
                 touched_.max_count()) {
  const int64_t n = options.batch, c = problem.channels, reads = n * grid.n_corners() * grid.n_levels;
  grid_grads_.at_least(touched_.max_count() * grid.n_features);
  samples_.at_least(n);
  patch_.at_least(n);
  patch_order_.at_least(n + patches() + 1);
  indices_.at_least(reads);
  weights_.at_least(reads);
  coords_.at_least(n * 2);
  encoding_.at_least(n * grid.n_outputs());
  d_encoding_.at_least(n * grid.n_outputs());
  hidden_.at_least(n * field_mlp.n_hidden());
  residual_hidden_.at_least(n * residual_mlp.n_hidden());
  d_hidden_.at_least(n * std::max(field_mlp.n_hidden(), residual_mlp.n_hidden()));
  for (Buffer<float>* rows : {&raw_, &base_, &h_, &d_base_, &d_h_}) rows->at_least(n * c);
  loss_rows_.at_least(n * 4);
  loss_history_.reserve(static_cast<size_t>(options.steps));
  initialise();
}

void HashgridFitter::initialise() {
  Random grid_random(options_.seed, kGrid), artifacts_random(options_.seed, kArtifacts);
  for (int64_t i = 0; i < grid_.n_params(); ++i) grid_params_[i] = grid_random.uniform(-1e-4f, 1e-4f);
  for (int64_t i = 0; i < artifacts_.count; ++i) artifacts_.params[i] = 0.02f * artifacts_random.normal();
  initialise_mlp(field_mlp_, options_.seed, kField, field_.params.data());
  initialise_mlp(residual_mlp_, options_.seed, kResidual, residual_.params.data());
}

void HashgridFitter::forward_backward(const int64_t* samples, bool second_phase) {
  const int64_t n = options_.batch, c = problem_.channels;
  for (int64_t i = 0; i < n; ++i) {
    std::memcpy(&coords_[2 * i], problem_.coords + 2 * samples[i], 2 * sizeof(float));
    patch_[i] = static_cast<int32_t>(samples[i] % patches());
  }
  gather_features(features_, samples, n, raw_.data());
  hash_grid_corners(grid_, coords_.data(), n, indices_.data(), weights_.data());
  touched_.collect(indices_.data(), n);
  grid_adam_.catch_up(touched_.entries(), touched_.count(), step_);

  hash_grid_forward(grid_, grid_params_.data(), indices_.data(), weights_.data(), n, encoding_.data());
  mlp_forward(field_mlp_, field_.params.data(), encoding_.data(), n, hidden_.data(), base_.data());
  artifacts_forward(artifacts_.params.data(), patch_.data(), n, c, base_.data());
  if (second_phase)
    mlp_forward(residual_mlp_, residual_.params.data(), raw_.data(), n, residual_hidden_.data(), h_.data());

  losses_ = loss_forward_backward(options_.loss, base_.data(), second_phase ? h_.data() : nullptr, raw_.data(), n, c,
                                  loss_rows_.data(), d_base_.data(), d_h_.data());

  if (second_phase)
    mlp_backward(residual_mlp_, residual_.params.data(), raw_.data(), residual_hidden_.data(), d_h_.data(), n,
                 d_hidden_.data(), residual_.grads.data(), nullptr);
  else
    artifacts_backward(d_base_.data(), patch_.data(), n, patches(), c, patch_order_.data(), artifacts_.grads.data());
  mlp_backward(field_mlp_, field_.params.data(), encoding_.data(), hidden_.data(), d_base_.data(), n, d_hidden_.data(),
               field_.grads.data(), d_encoding_.data());
  grid_grads_.zeroed(touched_.count() * grid_.n_features);
  hash_grid_backward_params(grid_, d_encoding_.data(), touched_.slots(), weights_.data(), n, grid_grads_.data());
}

void HashgridFitter::take_step(const int64_t* samples) {
  const int64_t first_phase = options_.steps / 2;
  const bool second_phase = step_ >= first_phase;
  forward_backward(samples, second_phase);
  const double lr = hashgrid_learning_rate(options_, step_);
  const AdamStep now = adam_step_factors(options_.adam, lr, step_ + 1);
  grid_adam_.update(touched_.entries(), touched_.count(), grid_grads_.data(), step_ + 1);
  field_.update(options_.adam, now);
  if (second_phase)
    residual_.update(options_.adam, adam_step_factors(options_.adam, lr, step_ - first_phase + 1));
  else
    artifacts_.update(options_.adam, now);
  ++step_;
}

Status HashgridFitter::check_samples(const int64_t* samples, int64_t count) const {
  for (int64_t i = 0; i < count; ++i)
    if (samples[i] < 0 || samples[i] >= features_.rows)
      return invalid_argument("samples must be in [0, ", features_.rows, "), got ", samples[i]);
  return Status();
}

Status HashgridFitter::run(int64_t count, const int64_t* samples, int64_t report_every, const Progress& progress) {
  const int64_t n = options_.batch, last = step_ + std::clamp<int64_t>(count, 0, options_.steps - step_);
  if (samples) DVT_RETURN_IF_ERROR(check_samples(samples, (last - step_) * n));
  while (step_ < last) {
    if (!samples) {
      Random random(options_.seed, kFirstStep + static_cast<uint64_t>(step_));
      for (int64_t i = 0; i < n; ++i) samples_[i] = random.index(features_.rows);
    }
    take_step(samples ? samples : samples_.data());
    if (samples) samples += n;
    const double loss = losses_.total(options_.loss);
    if (!std::isfinite(loss)) return non_finite("the loss is ", loss, " at step ", step_, " of ", options_.steps);
    loss_history_.push_back(static_cast<float>(loss));
    if (progress && (step_ % report_every == 0 || step_ == options_.steps) && !progress(step_, options_.steps, loss))
      return Status(StatusCode::cancelled, format("cancelled at step ", step_, " of ", options_.steps));
  }
  return Status();
}

Status HashgridFitter::gradients(const int64_t* samples, bool second_phase, const HashgridParameters& grads,
                                 Losses* losses) {
  DVT_RETURN_IF_ERROR(check_samples(samples, options_.batch));
  forward_backward(samples, second_phase);
  const int64_t width = grid_.n_features;
  std::fill_n(grads.grid, grid_.n_params(), 0.0f);
  for (int64_t i = 0; i < touched_.count(); ++i)
    std::copy_n(&grid_grads_[i * width], width, grads.grid + touched_.entries()[i] * width);
  std::copy_n(field_.grads.data(), field_.count, grads.field);
  if (second_phase) {
    std::fill_n(grads.artifacts, artifacts_.count, 0.0f);
    std::copy_n(residual_.grads.data(), residual_.count, grads.residual);
  } else {
    std::copy_n(artifacts_.grads.data(), artifacts_.count, grads.artifacts);
    std::fill_n(grads.residual, residual_.count, 0.0f);
  }
  *losses = losses_;
  return Status();
}

HashgridParameters HashgridFitter::parameters() {
  grid_adam_.flush(step_);
  return {grid_params_.data(), field_.params.data(), artifacts_.params.data(), residual_.params.data()};
}

SemanticsField HashgridFitter::field() {
  const HashgridParameters p = parameters();
  return {grid_, field_mlp_, p.grid, p.field};
}

Status HashgridFitter::decomposition(float* semantics, float* artifacts, float* residual) {
  const int64_t c = problem_.channels, first = (problem_.views - 1) * patches();
  field().query(problem_.coords + 2 * first, patches(), semantics);
  std::copy_n(artifacts_.params.data(), artifacts_.count, artifacts);
  for (int64_t done = 0; done < patches(); done += options_.batch) {
    const int64_t n = std::min(options_.batch, patches() - done);
    for (int64_t i = 0; i < n; ++i) samples_[i] = first + done + i;
    gather_features(features_, samples_.data(), n, raw_.data());
    mlp_forward(residual_mlp_, residual_.params.data(), raw_.data(), n, residual_hidden_.data(), residual + done * c);
  }
  for (int64_t i = 0; i < patches() * c; ++i)
    if (!std::isfinite(semantics[i]) || !std::isfinite(artifacts[i]) || !std::isfinite(residual[i]))
      return non_finite("the parameters are not finite after step ", step_, " of ", options_.steps);
  return Status();
}

}  // namespace dvt
