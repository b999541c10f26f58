#include "field/hashgrid_fitter.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/random.h"
#include "field/artifacts/artifacts.h"

namespace dvt {

HashgridFitter::Group::Group(int64_t n) : count(n), params(n), grads(n) {
  exp_avg.zeroed(n);
  exp_avg_sq.zeroed(n);
}

void HashgridFitter::Group::update(const AdamOptions& options, AdamStep step) {
  adam_update(options, step, count, grads.data(), params.data(), exp_avg.data(), exp_avg_sq.data());
}

Status HashgridFitter::make(const HashgridOptions& options, const HashgridProblem& problem,
                            std::unique_ptr<HashgridFitter>* fitter) {
  HashgridRecipe recipe;
  DVT_RETURN_IF_ERROR(
      HashgridRecipe::make(options, {problem.views, problem.height, problem.width, problem.channels}, &recipe));
  const Features features{problem.features, problem.half, recipe.size.rows(), problem.channels};
  const int64_t bad = first_non_finite(features);
  if (bad >= 0) return recipe.non_finite_feature(bad);
  for (int64_t i = 0; i < 2 * features.rows; ++i)
    if (!(problem.coords[i] >= 0.0f && problem.coords[i] <= 1.0f))
      return invalid_argument("coords must be in [0, 1], got ", problem.coords[i]);
  fitter->reset(new HashgridFitter(recipe, problem));
  return Status();
}

HashgridFitter::HashgridFitter(const HashgridRecipe& recipe, const HashgridProblem& problem)
    : recipe_(recipe),
      options_(recipe.options),
      problem_(problem),
      features_{problem.features, problem.half, recipe.size.rows(), problem.channels},
      grid_(recipe.grid),
      field_mlp_(recipe.field_mlp),
      residual_mlp_(recipe.residual_mlp),
      field_(field_mlp_.n_params()),
      artifacts_(patches() * problem.channels),
      residual_(residual_mlp_.n_params()),
      grid_params_(grid_.n_params()),
      touched_(grid_, options_.batch),
      grid_adam_(options_.adam, recipe.adam_steps(),
                 AdamTable{grid_.entries, grid_.n_features, grid_params_.data(), grid_exp_avg_.zeroed(grid_.n_params()),
                           grid_exp_avg_sq_.zeroed(grid_.n_params()), grid_last_step_.zeroed(grid_.entries)},
                 touched_.max_count()) {
  const int64_t n = options_.batch, c = problem.channels, reads = n * grid_.n_corners() * grid_.n_levels;
  grid_grads_.at_least(touched_.max_count() * grid_.n_features);
  samples_.at_least(n);
  patch_.at_least(n);
  patch_order_.at_least(n + patches() + 1);
  indices_.at_least(reads);
  weights_.at_least(reads);
  coords_.at_least(n * 2);
  encoding_.at_least(n * grid_.n_outputs());
  d_encoding_.at_least(n * grid_.n_outputs());
  hidden_.at_least(n * field_mlp_.n_hidden());
  residual_hidden_.at_least(n * residual_mlp_.n_hidden());
  d_hidden_.at_least(n * std::max(field_mlp_.n_hidden(), residual_mlp_.n_hidden()));
  for (Buffer<float>* rows : {&raw_, &base_, &h_, &d_base_, &d_h_}) rows->at_least(n * c);
  loss_rows_.at_least(n * 4);
  loss_history_.reserve(static_cast<size_t>(options_.steps));
  recipe_.initialise({grid_params_.data(), field_.params.data(), artifacts_.params.data(), residual_.params.data()});
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
  const bool second_phase = step_ >= recipe_.first_phase();
  forward_backward(samples, second_phase);
  const AdamStep now = adam_step_factors(options_.adam, hashgrid_learning_rate(options_, step_), step_ + 1);
  grid_adam_.update(touched_.entries(), touched_.count(), grid_grads_.data(), step_ + 1);
  field_.update(options_.adam, now);
  if (second_phase)
    residual_.update(options_.adam, recipe_.residual_adam_step(step_));
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
