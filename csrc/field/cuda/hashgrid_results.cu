// What is asked of a fit between steps: gradients, parameters, and F, G and h as maps.
#include <algorithm>
#include <climits>
#include <numeric>

#include "core/buffer.h"
#include "field/cuda/hashgrid_fitter.h"

namespace dvt::cuda {
namespace {

// Rows of `width` floats, `from_ld` apart, to rows that are `to_ld` apart.
Status copy_rows(float* to, int64_t to_ld, const float* from, int64_t from_ld, int64_t width, int64_t rows,
                 cudaMemcpyKind kind, cudaStream_t stream) {
  return check(cudaMemcpy2DAsync(to, static_cast<size_t>(to_ld) * 4, from, static_cast<size_t>(from_ld) * 4,
                                 static_cast<size_t>(width) * 4, static_cast<size_t>(rows), kind, stream),
               "copying the results of a fit");
}

}  // namespace

Status HashgridFit::gradients(const int64_t* samples, bool second_phase, const HashgridParameters& grads,
                              Losses* losses) {
  const DeviceGuard guard(device_);
  DVT_RETURN_IF_ERROR(guard.status());
  const int64_t n = batch_.n, c = recipe_.size.channels, patches = recipe_.size.patches();
  const int64_t grid = recipe_.grid.n_params();
  cudaStream_t main = stream_.main();
  // Gradients of everything, in the places of parameters.
  DeviceBuffer<float> found;
  const int64_t map_at = grid, field_at = map_at + patches * ld(), residual_at = field_at + field_.layout.count;
  const int64_t count = residual_at + residual_.layout.count;
  DVT_RETURN_IF_ERROR(found.allocate(count, "the gradients of a fit"));
  DVT_RETURN_IF_ERROR(found.zero(main, "clearing the gradients of a fit"));
  DVT_RETURN_IF_ERROR(upload_samples(samples, n));

  DVT_RETURN_IF_ERROR(lazy_grid_begin(lazy_, clock_, main));
  DVT_RETURN_IF_ERROR(lazy_grid_prepare(lazy_, bank_, batch_, -1, main));
  DVT_RETURN_IF_ERROR(enqueue_forward(0, second_phase));
  LossCall loss = loss_;
  loss.residual = second_phase ? h_ : nullptr;
  loss.d_base_float = d_base_float_;
  DVT_RETURN_IF_ERROR(loss_forward_backward(loss, bank_, main));
  DeviceBuffer<float> total;
  DeviceBuffer<FitStatus> status;
  DVT_RETURN_IF_ERROR(total.allocate(1, "a loss"));
  DVT_RETURN_IF_ERROR(status.allocate(1, "a loss"));
  DVT_RETURN_IF_ERROR(status.zero(main, "a loss"));
  DVT_RETURN_IF_ERROR(loss_sum(loss.weights, loss.row_losses, n, nullptr, 0, total.data(), status.data(), main));
  float* d_residual = found.data() + residual_at;
  float* d_field = found.data() + field_at;
  if (second_phase) {
    DVT_RETURN_IF_ERROR(mlp_layer_backward(residual_, 2, d_h_, residual_hidden_[1], n, d_residual_hidden_[1], main));
    DVT_RETURN_IF_ERROR(
        mlp_layer_backward(residual_, 1, d_residual_hidden_[1], residual_hidden_[0], n, d_residual_hidden_[0], main));
    DVT_RETURN_IF_ERROR(mlp_layer_gradients(residual_, 2, d_h_, residual_hidden_[1], n, d_residual, main));
    DVT_RETURN_IF_ERROR(
        mlp_layer_gradients(residual_, 1, d_residual_hidden_[1], residual_hidden_[0], n, d_residual, main));
    DVT_RETURN_IF_ERROR(mlp_layer_gradients(residual_, 0, d_residual_hidden_[0], raw_, n, d_residual, main));
  } else {
    DVT_RETURN_IF_ERROR(artifacts_backward(artifacts_, found.data() + map_at, main));
  }
  DVT_RETURN_IF_ERROR(mlp_layer_backward(field_, 1, d_base_, hidden_, n, d_hidden_, main));
  DVT_RETURN_IF_ERROR(mlp_layer_backward(field_, 0, d_hidden_, nullptr, n, d_encoding_, main));
  DVT_RETURN_IF_ERROR(mlp_layer_gradients(field_, 1, d_base_, hidden_, n, d_field, main));
  DVT_RETURN_IF_ERROR(mlp_layer_gradients(field_, 0, d_hidden_, encoding_, n, d_field, main));
  DVT_RETURN_IF_ERROR(lazy_grid_backward(lazy_, bank_, batch_, 0, d_encoding_, field_.layout.ld(0), loss_.rows, main));
  DVT_RETURN_IF_ERROR(lazy_grid_gradients(lazy_, clock_, found.data(), main));
  DVT_RETURN_IF_ERROR(stream_.join());
  batch_.samples = nullptr;

  Buffer<float> padded(count);
  DVT_RETURN_IF_ERROR(found.download(padded.data(), count, main, "copying gradients"));
  std::copy_n(padded.data(), grid, grads.grid);
  for (int64_t p = 0; p < patches; ++p) std::copy_n(padded.data() + map_at + p * ld(), c, grads.artifacts + p * c);
  field_.layout.strip(padded.data() + field_at, grads.field);
  residual_.layout.strip(padded.data() + residual_at, grads.residual);
  FitStatus seen;
  DVT_RETURN_IF_ERROR(status.download(&seen, 1, main, "copying losses"));
  *losses = {seen.mse, seen.cosine, seen.residual_mse, seen.residual_l1};
  return Status();
}

Status HashgridFit::parameters(const HashgridParameters& to) {
  const DeviceGuard guard(device_);
  DVT_RETURN_IF_ERROR(guard.status());
  const int64_t c = recipe_.size.channels, patches = recipe_.size.patches();
  cudaStream_t main = stream_.main();
  DVT_RETURN_IF_ERROR(lazy_grid_flush(lazy_, clock_, main));
  DVT_CUDA(cudaMemcpyAsync(to.grid, lazy_.params, static_cast<size_t>(recipe_.grid.n_params()) * sizeof(float),
                           cudaMemcpyDeviceToHost, main),
           "copying parameters");
  DVT_RETURN_IF_ERROR(copy_rows(to.artifacts, c, artifacts_.params, ld(), c, patches, cudaMemcpyDeviceToHost, main));
  Buffer<float> field(field_.layout.count), residual(residual_.layout.count);
  for (auto [mlp, padded] : {std::pair(&field_, &field), std::pair(&residual_, &residual)})
    DVT_CUDA(cudaMemcpyAsync(padded->data(), mlp->params, static_cast<size_t>(mlp->layout.count) * sizeof(float),
                             cudaMemcpyDeviceToHost, main),
             "copying parameters");
  DVT_CUDA(cudaStreamSynchronize(main), "copying parameters");
  field_.layout.strip(field.data(), to.field);
  residual_.layout.strip(residual.data(), to.residual);
  return Status();
}

Status HashgridFit::set_parameters(const HashgridParameters& from) {
  if (step_ != 0) return invalid_argument("parameters can be set before the first step only");
  const DeviceGuard guard(device_);
  DVT_RETURN_IF_ERROR(guard.status());
  const int64_t c = recipe_.size.channels, patches = recipe_.size.patches();
  cudaStream_t main = stream_.main();
  DVT_CUDA(cudaMemcpyAsync(lazy_.params, from.grid, static_cast<size_t>(recipe_.grid.n_params()) * sizeof(float),
                           cudaMemcpyHostToDevice, main),
           "copying parameters");
  DVT_RETURN_IF_ERROR(copy_rows(artifacts_.params, ld(), from.artifacts, c, c, patches, cudaMemcpyHostToDevice, main));
  Buffer<float> field(field_.layout.count), residual(residual_.layout.count);
  field_.layout.pad(from.field, field.data());
  residual_.layout.pad(from.residual, residual.data());
  for (auto [mlp, padded] : {std::pair(&field_, &field), std::pair(&residual_, &residual)}) {
    DVT_CUDA(cudaMemcpyAsync(mlp->params, padded->data(), static_cast<size_t>(mlp->layout.count) * sizeof(float),
                             cudaMemcpyHostToDevice, main),
             "copying parameters");
    DVT_RETURN_IF_ERROR(mlp_round_weights(*mlp, main));
  }
  return check(cudaStreamSynchronize(main), "copying parameters");
}

Batch HashgridFit::rows_from(int64_t first, int64_t n) {
  Batch batch = batch_;
  batch.n = n;
  batch.samples = samples_.data() + first;
  batch.first_step = static_cast<int32_t>(step_);  // the clock's
  return batch;
}

MlpCuda HashgridFit::in_float(const MlpCuda& mlp) const {
  MlpCuda out = mlp;
  out.operand = Operand::float32;
  out.operands = mlp.params;
  return out;
}

Status HashgridFit::evaluate_field(const Bank& bank, int64_t first, int64_t n, float* out) {
  cudaStream_t main = stream_.main();
  const MlpCuda field = in_float(field_);
  DVT_RETURN_IF_ERROR(lazy_grid_forward(lazy_, bank, rows_from(first, n), 0, Operand::float32, encoding_,
                                        field.layout.ld(0), const_cast<int64_t*>(loss_.rows),
                                        const_cast<int32_t*>(loss_.patch), main));
  DVT_RETURN_IF_ERROR(mlp_layer_forward(field, 0, encoding_, n, hidden_, main));
  return mlp_layer_forward(field, 1, hidden_, n, out, main);
}

Status HashgridFit::evaluate_residual(int64_t first, int64_t n, float* out) {
  cudaStream_t main = stream_.main();
  const MlpCuda residual = in_float(residual_);
  DVT_RETURN_IF_ERROR(gather_batch(bank_, rows_from(first, n), 0, Operand::float32, raw_, ld(), main));
  DVT_RETURN_IF_ERROR(mlp_layer_forward(residual, 0, raw_, n, residual_hidden_[0], main));
  DVT_RETURN_IF_ERROR(mlp_layer_forward(residual, 1, residual_hidden_[0], n, residual_hidden_[1], main));
  return mlp_layer_forward(residual, 2, residual_hidden_[1], n, out, main);
}

Status HashgridFit::decomposition(float* semantics, float* artifacts, float* residual, bool to_device) {
  const DeviceGuard guard(device_);
  DVT_RETURN_IF_ERROR(guard.status());
  const int64_t c = recipe_.size.channels, patches = recipe_.size.patches(), first = recipe_.size.rows() - patches;
  const cudaMemcpyKind kind = to_device ? cudaMemcpyDeviceToDevice : cudaMemcpyDeviceToHost;
  cudaStream_t main = stream_.main();
  std::vector<int64_t> rows(static_cast<size_t>(patches));
  std::iota(rows.begin(), rows.end(), first);
  DVT_RETURN_IF_ERROR(upload_samples(rows.data(), patches));
  batch_.samples = nullptr;
  DVT_RETURN_IF_ERROR(lazy_grid_flush(lazy_, clock_, main));
  // Rows of C channels without padding, as `check_features` reads them.
  DeviceBuffer<float> maps;
  DVT_RETURN_IF_ERROR(maps.allocate(3 * patches * c, "the results of a fit"));
  float *f = maps.data(), *g = f + patches * c, *h = g + patches * c;
  for (int64_t done = 0; done < patches; done += batch_.n) {
    const int64_t n = std::min(batch_.n, patches - done);
    DVT_RETURN_IF_ERROR(evaluate_field(bank_, done, n, base_));
    DVT_RETURN_IF_ERROR(copy_rows(f + done * c, c, base_, ld(), c, n, cudaMemcpyDeviceToDevice, main));
    DVT_RETURN_IF_ERROR(evaluate_residual(done, n, h_));
    DVT_RETURN_IF_ERROR(copy_rows(h + done * c, c, h_, ld(), c, n, cudaMemcpyDeviceToDevice, main));
  }
  DVT_RETURN_IF_ERROR(copy_rows(g, c, artifacts_.params, ld(), c, patches, cudaMemcpyDeviceToDevice, main));
  Bank results;
  results.features = maps.data();
  results.rows = 3 * patches;
  results.channels = c;
  DVT_RETURN_IF_ERROR(check_features(results, bad_, main));
  const size_t bytes = static_cast<size_t>(patches * c) * sizeof(float);
  DVT_CUDA(cudaMemcpyAsync(semantics, f, bytes, kind, main), "copying the results of a fit");
  DVT_CUDA(cudaMemcpyAsync(artifacts, g, bytes, kind, main), "copying the results of a fit");
  DVT_CUDA(cudaMemcpyAsync(residual, h, bytes, kind, main), "copying the results of a fit");
  int64_t bad = 0;
  DVT_CUDA(cudaMemcpyAsync(&bad, bad_, sizeof bad, cudaMemcpyDeviceToHost, main), "copying the results of a fit");
  DVT_CUDA(cudaStreamSynchronize(main), "copying the results of a fit");
  if (bad != INT64_MAX)
    return non_finite("the parameters are not finite after step ", step_, " of ", recipe_.options.steps);
  return Status();
}

Status HashgridFit::query(const float* coords, int64_t n, float* out, bool on_device) {
  if (n <= 0) return Status();
  const DeviceGuard guard(device_);
  DVT_RETURN_IF_ERROR(guard.status());
  const int64_t c = recipe_.size.channels;
  cudaStream_t main = stream_.main();
  DeviceBuffer<float> points;
  Bank bank = bank_;
  bank.rows = bank.patches = n;
  bank.coords = coords;
  if (!on_device) {
    DVT_RETURN_IF_ERROR(points.allocate(2 * n, "the coordinates of a query"));
    DVT_RETURN_IF_ERROR(points.upload(coords, 2 * n, main, "copying coordinates"));
    bank.coords = points.data();
  }
  const int64_t chunk = std::min(batch_.n, n);
  std::vector<int64_t> rows(static_cast<size_t>(n));
  std::iota(rows.begin(), rows.end(), int64_t{0});
  if (n > samples_.count()) DVT_RETURN_IF_ERROR(samples_.allocate(n, "the rows of a query"));
  DVT_RETURN_IF_ERROR(samples_.upload(rows.data(), n, main, "copying rows"));
  DVT_RETURN_IF_ERROR(lazy_grid_flush(lazy_, clock_, main));
  for (int64_t done = 0; done < n; done += chunk) {
    const int64_t count = std::min(chunk, n - done);
    DVT_RETURN_IF_ERROR(evaluate_field(bank, done, count, base_));
    DVT_RETURN_IF_ERROR(copy_rows(out + done * c, c, base_, ld(), c, count,
                                  on_device ? cudaMemcpyDeviceToDevice : cudaMemcpyDeviceToHost, main));
  }
  return check(cudaStreamSynchronize(main), "querying the field of a fit");
}

}  // namespace dvt::cuda
