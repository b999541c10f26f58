// Memory and the loop of a fit on the device; its steps are in hashgrid_step.cu.
//
// The host enqueues graphs of steps and stays one ahead: while it looks at the losses of one, the next is running.
#include "field/cuda/hashgrid_fitter.h"

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstring>

#include "core/buffer.h"

namespace dvt::cuda {
namespace {

// Hands out pieces of one allocation, aligned for vectors and for whole lines.
class Pieces {
 public:
  explicit Pieces(char* base) : base_(base) {}
  template <class T>
  void take(T** out, int64_t count) {
    *out = base_ ? reinterpret_cast<T*>(base_ + bytes_) : nullptr;
    bytes_ += (static_cast<size_t>(count) * sizeof(T) + 255) / 256 * 256;
  }
  void take(void** out, int64_t bytes) { take(reinterpret_cast<char**>(out), bytes); }
  size_t bytes() const { return bytes_; }

 private:
  char* base_;
  size_t bytes_ = 0;
};

}  // namespace

size_t HashgridFit::lay_out(char* base, size_t* zeroed) {
  const int64_t n = recipe_.options.batch, c = ld(), patches = recipe_.size.patches();
  const int64_t grid = recipe_.grid.n_params(), entries = recipe_.grid.entries;
  Pieces pieces(base);
  pieces.take(&clock_, 1);
  pieces.take(&status_, 1);
  pieces.take(&lazy_.counts, 4);
  pieces.take(&lazy_.exp_avg, grid);
  pieces.take(&lazy_.exp_avg_sq, grid);
  pieces.take(&lazy_.last_step, entries);
  pieces.take(&lazy_.claims, entries);
  if (options_.deterministic)
    pieces.take(&lazy_.fixed_grads, lazy_.max_count * recipe_.grid.n_features);
  else
    pieces.take(&lazy_.grads, lazy_.max_count * recipe_.grid.n_features);
  for (MlpCuda* mlp : {&field_, &residual_}) {
    pieces.take(&mlp->exp_avg, mlp->layout.count);
    pieces.take(&mlp->exp_avg_sq, mlp->layout.count);
  }
  pieces.take(&artifacts_.params, patches * c);
  pieces.take(&artifacts_.exp_avg, patches * c);
  pieces.take(&artifacts_.exp_avg_sq, patches * c);
  *zeroed = pieces.bytes();

  pieces.take(&lazy_.params, grid);
  pieces.take(&lazy_.slots, 2 * entries);
  pieces.take(&lazy_.lists, 2 * lazy_.max_count);
  for (MlpCuda* mlp : {&field_, &residual_}) {
    pieces.take(&mlp->params, mlp->layout.count);
    if (operand_ == Operand::float32)
      mlp->operands = mlp->params;
    else
      pieces.take(&mlp->operands, mlp->layout.count * operand_size(operand_));
    for (int i = 0; i < mlp->layout.shape.n_layers; ++i)
      pieces.take(&mlp->parts[i], mlp_parts(mlp->layout, i, n, operand_, multiprocessors_));
  }
  pieces.take(&steps_, recipe_.options.steps);
  pieces.take(&residual_steps_, recipe_.options.steps - recipe_.first_phase());
  pieces.take(&history_, recipe_.options.steps);
  pieces.take(&bad_, 2);
  // A step's arrays; operands with room for float32, which the final evaluation takes.
  const int64_t encoded = field_.layout.ld(0), hidden = field_.layout.ld(1), narrow = residual_.layout.ld(1);
  pieces.take(&encoding_, 4 * n * encoded);
  pieces.take(&d_encoding_, n * encoded);
  pieces.take(&hidden_, 4 * n * hidden);
  pieces.take(&d_hidden_, 4 * n * hidden);
  for (int i = 0; i < 2; ++i) {
    pieces.take(&residual_hidden_[i], 4 * n * narrow);
    pieces.take(&d_residual_hidden_[i], 4 * n * narrow);
  }
  pieces.take(&raw_, 4 * n * c);
  pieces.take(&base_, n * c);
  pieces.take(&h_, n * c);
  pieces.take(&d_base_, 4 * n * c);
  pieces.take(&d_h_, 4 * n * c);
  if (operand_ == Operand::float32)
    d_base_float_ = static_cast<float*>(d_base_);
  else
    pieces.take(&d_base_float_, n * c);
  int64_t* rows;
  int32_t* patch;
  pieces.take(&rows, n);
  pieces.take(&patch, n);
  pieces.take(&loss_.row_losses, 4 * n);
  loss_.rows = rows;
  loss_.patch = patch;
  return pieces.bytes();
}

Status HashgridFit::allocate() {
  size_t zeroed = 0;
  const size_t bytes = lay_out(nullptr, &zeroed);
  DVT_RETURN_IF_ERROR(state_.allocate(bytes, "a fit of solver 'hashgrid'"));
  lay_out(static_cast<char*>(state_.data()), &zeroed);
  return check(cudaMemsetAsync(state_.data(), 0, zeroed, stream_.main()), "clearing the state of a fit");
}

Status HashgridFit::check_problem(const HashgridCudaProblem& problem) {
  const int64_t rows = recipe_.size.rows(), c = recipe_.size.channels;
  cudaStream_t main = stream_.main();
  bank_.dtype = problem.dtype;
  bank_.rows = rows;
  bank_.channels = c;
  bank_.patches = recipe_.size.patches();
  bank_.features = problem.features;
  bank_.coords = problem.coords;
  if (!problem.features_on_device) {
    const int64_t bytes = rows * c * size_of(problem.dtype);
    DVT_RETURN_IF_ERROR(features_.allocate(bytes, "the features of a fit"));
    DVT_RETURN_IF_ERROR(features_.upload(static_cast<const char*>(problem.features), bytes, main, "copying features"));
    bank_.features = features_.data();
  }
  if (!problem.coords_on_device) {
    DVT_RETURN_IF_ERROR(coords_.allocate(2 * rows, "the coordinates of a fit"));
    DVT_RETURN_IF_ERROR(coords_.upload(problem.coords, 2 * rows, main, "copying coordinates"));
    bank_.coords = coords_.data();
  }
  int64_t bad[2];
  DVT_RETURN_IF_ERROR(check_features(bank_, bad_, main));
  DVT_RETURN_IF_ERROR(check_coords(bank_.coords, 2 * rows, bad_ + 1, main));
  DVT_CUDA(cudaMemcpyAsync(bad, bad_, sizeof bad, cudaMemcpyDeviceToHost, main), "looking at the features");
  DVT_CUDA(cudaStreamSynchronize(main), "looking at the features");
  if (bad[0] != INT64_MAX) return recipe_.non_finite_feature(bad[0]);
  if (bad[1] == INT64_MAX) return Status();
  float value = 0;
  DVT_CUDA(cudaMemcpy(&value, bank_.coords + bad[1], sizeof value, cudaMemcpyDeviceToHost), "looking at coordinates");
  return invalid_argument("coords must be in [0, 1], got ", value);
}

Status HashgridFit::upload_tables() {
  const std::vector<AdamStep> steps = recipe_.adam_steps();
  std::vector<AdamStep> residual;
  for (int64_t s = recipe_.first_phase(); s < recipe_.options.steps; ++s)
    residual.push_back(recipe_.residual_adam_step(s));
  DVT_CUDA(
      cudaMemcpyAsync(steps_, steps.data(), steps.size() * sizeof(AdamStep), cudaMemcpyHostToDevice, stream_.main()),
      "copying the schedule");
  DVT_CUDA(cudaMemcpyAsync(residual_steps_, residual.data(), residual.size() * sizeof(AdamStep), cudaMemcpyHostToDevice,
                           stream_.main()),
           "copying the schedule");
  return check(cudaStreamSynchronize(stream_.main()), "copying the schedule");
}

Status HashgridFit::make(const HashgridCudaOptions& options, const HashgridCudaProblem& problem,
                         std::unique_ptr<HashgridFit>* out) {
  if (options.graph_steps < 0 || options.graph_steps > 1000)
    return invalid_argument("graph_steps must be 0 to 1000, got ", options.graph_steps);
  if (options.sweep_steps < 1 || options.sweep_steps > (1 << 20))
    return invalid_argument("sweep_steps must be 1 to 1048576, got ", options.sweep_steps);
  auto fit = std::unique_ptr<HashgridFit>(new HashgridFit());
  fit->options_ = options;
  fit->device_ = problem.device;
  DVT_RETURN_IF_ERROR(operand_of(options.compute, &fit->operand_));
  DVT_RETURN_IF_ERROR(HashgridRecipe::make(options.recipe, problem.size, &fit->recipe_));
  const HashgridRecipe& recipe = fit->recipe_;
  const int64_t n = recipe.options.batch;
  const DeviceGuard guard(problem.device);
  DVT_RETURN_IF_ERROR(guard.status());
  const DeviceTraits* traits;
  DVT_RETURN_IF_ERROR(current_traits(&traits));
  fit->multiprocessors_ = traits->multiprocessors;

  LazyGrid& lazy = fit->lazy_;
  lazy.grid = recipe.grid;
  lazy.constants = AdamConstants(recipe.options.adam);
  lazy.max_count = lazy_grid_max_count(recipe.grid, n);
  lazy.window = static_cast<int>(ceil_div(recipe.grid.entries, options.sweep_steps));
  // In fixed point: an addend is a gradient of a few units of loss_scale / batch at most, and 4 n of them must not
  // wrap.
  const double unit = static_cast<double>(recipe.options.loss.scale) / static_cast<double>(n);
  lazy.fixed_scale = static_cast<float>(std::ldexp(1.0, std::clamp(38 - std::ilogb(unit), -100, 100)));
  lazy.fixed_limit = static_cast<float>(std::ldexp(1.0, 61 - std::ilogb(4.0 * static_cast<double>(n))));

  fit->field_.layout = MlpLayout(recipe.field_mlp);
  fit->residual_.layout = MlpLayout(recipe.residual_mlp);
  DVT_RETURN_IF_ERROR(fit->stream_.create());
  for (cudaEvent_t& event : fit->done_)
    DVT_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
  DVT_CUDA(cudaMallocHost(reinterpret_cast<void**>(&fit->seen_), kSlots * sizeof(FitStatus)), "allocating for losses");
  DVT_RETURN_IF_ERROR(fit->allocate());

  // What the caller's stream still writes comes first.
  DVT_CUDA(cudaEventRecord(fit->done_[0], static_cast<cudaStream_t>(problem.stream)), "waiting for the features");
  DVT_CUDA(cudaStreamWaitEvent(fit->stream_.main(), fit->done_[0], 0), "waiting for the features");
  DVT_RETURN_IF_ERROR(fit->check_problem(problem));
  DVT_RETURN_IF_ERROR(fit->upload_tables());

  fit->batch_.n = n;
  fit->batch_.seed = recipe.options.seed;
  fit->batch_.first_stream = kFirstStep;
  fit->batch_.clock = fit->clock_;
  lazy.steps = fit->steps_;
  for (MlpCuda* mlp : {&fit->field_, &fit->residual_}) {
    mlp->operand = fit->operand_;
    mlp->constants = lazy.constants;
    mlp->steps = fit->steps_;
  }
  fit->residual_.steps = fit->residual_steps_;
  fit->residual_.first_step = static_cast<int32_t>(recipe.first_phase());
  ArtifactsCall& artifacts = fit->artifacts_;
  artifacts.n = n;
  artifacts.patches = recipe.size.patches();
  artifacts.ld = fit->ld();
  artifacts.d_base = fit->d_base_float_;
  artifacts.patch = fit->loss_.patch;
  artifacts.constants = lazy.constants;
  artifacts.steps = fit->steps_;
  LossCall& loss = fit->loss_;
  loss.weights = recipe.options.loss;
  loss.n = n;
  loss.field = fit->base_;
  loss.artifacts = artifacts.params;
  loss.ld = fit->ld();
  loss.operand = fit->operand_;
  loss.d_base = fit->d_base_;
  loss.d_residual = fit->d_h_;

  Buffer<float> grid(recipe.grid.n_params()), field(recipe.field_mlp.n_params()),
      map(recipe.size.patches() * recipe.size.channels), residual(recipe.residual_mlp.n_params());
  const HashgridParameters initial{grid.data(), field.data(), map.data(), residual.data()};
  recipe.initialise(initial);
  DVT_RETURN_IF_ERROR(fit->set_parameters(initial));
  fit->loss_history_.reserve(static_cast<size_t>(recipe.options.steps));
  *out = std::move(fit);
  return Status();
}

HashgridFit::~HashgridFit() {
  const DeviceGuard guard(device_);
  if (stream_.main()) cudaStreamSynchronize(stream_.main());
  for (auto& [phase, graph] : graphs_) cudaGraphExecDestroy(graph);
  for (cudaEvent_t event : done_)
    if (event) cudaEventDestroy(event);
  if (seen_) cudaFreeHost(seen_);
}

Status HashgridFit::check_samples(const int64_t* samples, int64_t count) const {
  for (int64_t i = 0; i < count; ++i)
    if (samples[i] < 0 || samples[i] >= bank_.rows)
      return invalid_argument("samples must be in [0, ", bank_.rows, "), got ", samples[i]);
  return Status();
}

Status HashgridFit::upload_samples(const int64_t* samples, int64_t count) {
  DVT_RETURN_IF_ERROR(check_samples(samples, count));
  if (count > samples_.count()) DVT_RETURN_IF_ERROR(samples_.allocate(count, "the samples of a fit"));
  DVT_RETURN_IF_ERROR(samples_.upload(samples, count, stream_.main(), "copying samples"));
  DVT_CUDA(cudaStreamSynchronize(stream_.main()), "copying samples");
  batch_.samples = samples_.data();
  batch_.first_step = static_cast<int32_t>(step_);
  return Status();
}

Status HashgridFit::start(int64_t count, const int64_t* samples) {
  const DeviceGuard guard(device_);
  DVT_RETURN_IF_ERROR(guard.status());
  until_ = step_ + std::clamp<int64_t>(count, 0, recipe_.options.steps - step_);
  reported_ = step_;
  batch_.samples = nullptr;
  if (until_ == step_) return Status();
  if (samples) DVT_RETURN_IF_ERROR(upload_samples(samples, (until_ - step_) * batch_.n));
  DVT_RETURN_IF_ERROR(lazy_grid_begin(lazy_, clock_, stream_.main()));
  return lazy_grid_prepare(lazy_, bank_, batch_, -1, stream_.main());
}

// Up to a graph's worth of steps of one phase, then a copy of the losses for the host.
Status HashgridFit::enqueue_some() {
  const bool second_phase = enqueued_ >= recipe_.first_phase();
  const int64_t phase_end = second_phase ? recipe_.options.steps : recipe_.first_phase();
  int64_t count = std::min(until_, phase_end) - enqueued_;
  if (options_.graph_steps > 0 && count >= options_.graph_steps && !batch_.samples) {
    count = options_.graph_steps;
    DVT_RETURN_IF_ERROR(launch_graph(second_phase));
  } else {
    count = std::min<int64_t>(count, std::max<int64_t>(1, options_.graph_steps));
    for (int64_t i = 0; i < count; ++i)
      DVT_RETURN_IF_ERROR(
          enqueue_step(static_cast<int>(i), second_phase, !batch_.samples || enqueued_ + i + 1 < until_));
    DVT_RETURN_IF_ERROR(advance_clock(count));
  }
  DVT_CUDA(cudaMemcpyAsync(&seen_[next_slot_], status_, sizeof(FitStatus), cudaMemcpyDeviceToHost, stream_.main()),
           "copying losses");
  DVT_CUDA(cudaEventRecord(done_[next_slot_], stream_.main()), "copying losses");
  pending_.push_back({enqueued_, enqueued_ + count, next_slot_});
  enqueued_ += count;
  next_slot_ = (next_slot_ + 1) % kSlots;
  return Status();
}

Status HashgridFit::look(const Pending& pending) {
  DVT_CUDA(cudaEventSynchronize(done_[pending.slot]), "running steps of a fit");
  const FitStatus& seen = seen_[pending.slot];
  step_ = pending.last;
  losses_ = {seen.mse, seen.cosine, seen.residual_mse, seen.residual_l1};
  if (seen.bad_step != 0)
    return non_finite("the loss is ", seen.bad_loss, " at step ", seen.bad_step, " of ", recipe_.options.steps);
  return Status();
}

Status HashgridFit::advance(int64_t report_every, const Progress& progress, bool* more) {
  const DeviceGuard guard(device_);
  DVT_RETURN_IF_ERROR(guard.status());
  if (enqueued_ < until_) DVT_RETURN_IF_ERROR(enqueue_some());
  if (static_cast<int>(pending_.size()) == kSlots || enqueued_ == until_) {
    if (!pending_.empty()) {
      const Pending oldest = pending_.front();
      pending_.erase(pending_.begin());
      DVT_RETURN_IF_ERROR(look(oldest));
      const int64_t every = std::max<int64_t>(1, report_every);
      const bool due = step_ / every > reported_ / every || step_ == recipe_.options.steps;
      if (due) {
        reported_ = step_;
        if (progress && !progress(step_, recipe_.options.steps, losses_.total(recipe_.options.loss)))
          return Status(StatusCode::cancelled, format("cancelled at step ", step_, " of ", recipe_.options.steps));
      }
    }
  }
  *more = enqueued_ < until_ || !pending_.empty();
  return Status();
}

Status HashgridFit::finish() {
  const DeviceGuard guard(device_);
  DVT_RETURN_IF_ERROR(guard.status());
  pending_.clear();
  batch_.samples = nullptr;
  DVT_CUDA(cudaStreamSynchronize(stream_.main()), "running steps of a fit");
  step_ = enqueued_;
  const int64_t known = static_cast<int64_t>(loss_history_.size());
  loss_history_.resize(static_cast<size_t>(step_));
  if (step_ == known) return Status();
  DVT_CUDA(cudaMemcpy(loss_history_.data() + known, history_ + known,
                      static_cast<size_t>(step_ - known) * sizeof(float), cudaMemcpyDeviceToHost),
           "copying losses");
  FitStatus last;
  DVT_CUDA(cudaMemcpy(&last, status_, sizeof last, cudaMemcpyDeviceToHost), "copying losses");
  losses_ = {last.mse, last.cosine, last.residual_mse, last.residual_l1};
  return Status();
}

Status HashgridFit::run(int64_t count, const int64_t* samples, int64_t report_every, const Progress& progress) {
  Status status = start(count, samples);
  for (bool more = status.ok() && until_ > step_; more && status.ok();) status = advance(report_every, progress, &more);
  const Status finished = finish();
  return status.ok() ? finished : status;
}

Status make_hashgrid_fitter(const HashgridCudaOptions& options, const HashgridCudaProblem& problem,
                            std::unique_ptr<HashgridFitterCuda>* out) {
  std::unique_ptr<HashgridFit> fit;
  DVT_RETURN_IF_ERROR(HashgridFit::make(options, problem, &fit));
  *out = std::move(fit);
  return Status();
}

Status run_hashgrid_fitters(
    const std::vector<HashgridFitterCuda*>& fitters, int64_t count, int64_t report_every,
    const std::function<bool(int64_t fitter, int64_t step, int64_t steps, double loss)>& progress) {
  Status status;
  std::vector<bool> more(fitters.size(), true);
  for (HashgridFitterCuda* fitter : fitters)
    if (status.ok()) status = static_cast<HashgridFit*>(fitter)->start(count, nullptr);
  for (bool any = true; any && status.ok();) {
    any = false;
    for (size_t i = 0; i < fitters.size() && status.ok(); ++i) {
      if (!more[i]) continue;
      bool left = false;
      status = static_cast<HashgridFit*>(fitters[i])
                   ->advance(
                       report_every,
                       [&](int64_t step, int64_t steps, double loss) {
                         return !progress || progress(static_cast<int64_t>(i), step, steps, loss);
                       },
                       &left);
      if (!status.ok()) status = Status(status.code(), format("fit ", i, ": ", status.message()));
      more[i] = left;
      any = any || left;
    }
  }
  for (HashgridFitterCuda* fitter : fitters) {
    const Status finished = static_cast<HashgridFit*>(fitter)->finish();
    if (status.ok()) status = finished;
  }
  return status;
}

}  // namespace dvt::cuda
