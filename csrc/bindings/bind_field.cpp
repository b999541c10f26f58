// The operators of stage 1, bound for tests and benchmarks; users reach them through the solvers.
#include <pybind11/stl.h>

#include "bindings/field_arrays.h"
#include "core/buffer.h"
#include "field/adam/adam.h"
#include "field/artifacts/artifacts.h"
#include "field/loss/loss.h"

namespace dvt::bindings {
namespace {

Array<float> copy_of(const Array<float>& array) {
  auto out = new_array<float>(std::vector<py::ssize_t>(array.shape(), array.shape() + array.ndim()));
  std::memcpy(out.mutable_data(), array.data(), sizeof(float) * static_cast<size_t>(array.size()));
  return out;
}

Array<float> gather(const py::array& features, const Array<int64_t>& index, bool reference) {
  check_isa();
  const Features bank = features_of(features, "features");
  check_shape(index, "index", {-1});
  for (py::ssize_t i = 0; i < index.size(); ++i)
    if (index.at(i) < 0 || index.at(i) >= bank.rows)
      raise_if_error(invalid_argument("index must be in [0, ", bank.rows, "), got ", index.at(i)));
  auto out = new_array<float>({index.size(), bank.channels});
  (reference ? gather_features_reference : gather_features)(bank, index.data(), index.size(), out.mutable_data());
  return out;
}

int64_t non_finite_at(const py::array& array) {
  check_isa();
  const Features bank = features_of(array, "array");
  py::gil_scoped_release release;
  return first_non_finite(bank);
}

// out, d_params, d_x; the gradients are null without d_out.
py::tuple mlp(const std::vector<int64_t>& widths, const Array<float>& params, const Array<float>& x,
              const py::object& d_out, bool reference) {
  check_isa();
  const MlpShape shape = mlp_shape(widths);
  check_shape(params, "params", {shape.n_params()});
  check_shape(x, "x", {-1, shape.inputs()});
  const int64_t n = x.shape(0);
  auto out = new_array<float>({n, shape.outputs()});
  Array<float> d_y;
  if (!d_out.is_none()) {
    d_y = d_out.cast<Array<float>>();
    check_shape(d_y, "d_out", {n, shape.outputs()});
  }
  if (reference) {
    if (d_out.is_none()) raise_if_error(invalid_argument("the reference needs d_out"));
    auto d_params = new_array<double>({shape.n_params()}), d_x = new_array<double>({n, shape.inputs()});
    mlp_reference(shape, params.data(), x.data(), d_y.data(), n, out.mutable_data(), d_params.mutable_data(),
                  d_x.mutable_data());
    return py::make_tuple(out, d_params, d_x);
  }
  Buffer<float> hidden(n * shape.n_hidden()), d_hidden(n * shape.n_hidden());
  mlp_forward(shape, params.data(), x.data(), n, hidden.data(), out.mutable_data());
  if (d_out.is_none()) return py::make_tuple(out, py::none(), py::none());
  auto d_params = new_array<float>({shape.n_params()}), d_x = new_array<float>({n, shape.inputs()});
  mlp_backward(shape, params.data(), x.data(), hidden.data(), d_y.data(), n, d_hidden.data(), d_params.mutable_data(),
               d_x.mutable_data());
  return py::make_tuple(out, d_params, d_x);
}

void check_patches(const Array<int32_t>& patch, int64_t patches) {
  for (py::ssize_t i = 0; i < patch.size(); ++i)
    if (patch.at(i) < 0 || patch.at(i) >= patches)
      raise_if_error(invalid_argument("patch must be in [0, ", patches, "), got ", patch.at(i)));
}

// base [N, C] + artifacts [P, C] at rows patch [N].
Array<float> add_artifacts(const Array<float>& base, const Array<float>& artifacts, const Array<int32_t>& patch,
                           bool reference) {
  check_isa();
  check_shape(artifacts, "artifacts", {-1, -1});
  check_shape(patch, "patch", {-1});
  check_shape(base, "base", {patch.size(), artifacts.shape(1)});
  check_patches(patch, artifacts.shape(0));
  auto out = copy_of(base);
  (reference ? artifacts_forward_reference : artifacts_forward)(artifacts.data(), patch.data(), patch.size(),
                                                                artifacts.shape(1), out.mutable_data());
  return out;
}

py::array sum_by_patch(const Array<float>& d_out, const Array<int32_t>& patch, int64_t patches, bool reference) {
  check_isa();
  check_shape(patch, "patch", {-1});
  check_shape(d_out, "d_out", {patch.size(), -1});
  check_patches(patch, patches);
  const int64_t n = patch.size(), c = d_out.shape(1);
  if (reference) {
    auto sums = new_array<double>({patches, c});
    artifacts_backward_reference(d_out.data(), patch.data(), n, patches, c, sums.mutable_data());
    return sums;
  }
  auto sums = new_array<float>({patches, c});
  Buffer<int32_t> order(n + patches + 1);
  artifacts_backward(d_out.data(), patch.data(), n, patches, c, order.data(), sums.mutable_data());
  return sums;
}

// (mse, cosine, residual mse, residual l1), d_base, d_residual.
template <class Real, class Run>
py::tuple run_losses(const Array<float>& base, bool has_residual, Run&& run) {
  const std::vector<py::ssize_t> shape{base.shape(0), base.shape(1)};
  auto d_base = new_array<Real>(shape), d_residual = new_array<Real>(shape);
  const Losses l = run(d_base.mutable_data(), d_residual.mutable_data());
  return py::make_tuple(py::make_tuple(l.mse, l.cosine, l.residual_mse, l.residual_l1), d_base,
                        has_residual ? py::object(d_residual) : py::object(py::none()));
}

py::tuple losses(const Array<float>& base, const py::object& residual, const Array<float>& raw, double residual_mse,
                 double residual_l1, double scale, bool reference) {
  check_isa();
  check_shape(base, "base", {-1, -1});
  const int64_t n = base.shape(0), c = base.shape(1);
  check_shape(raw, "raw", {n, c});
  Array<float> h;
  if (!residual.is_none()) {
    h = residual.cast<Array<float>>();
    check_shape(h, "residual", {n, c});
  }
  const float* h_data = residual.is_none() ? nullptr : h.data();
  const LossWeights weights{static_cast<float>(residual_mse), static_cast<float>(residual_l1),
                            static_cast<float>(scale)};
  if (reference)
    return run_losses<double>(base, h_data != nullptr, [&](double* d_base, double* d_residual) {
      return loss_reference(weights, base.data(), h_data, raw.data(), n, c, d_base, d_residual);
    });
  Buffer<float> rows(4 * n);
  return run_losses<float>(base, h_data != nullptr, [&](float* d_base, float* d_residual) {
    return loss_forward_backward(weights, base.data(), h_data, raw.data(), n, c, rows.data(), d_base, d_residual);
  });
}

AdamOptions adam_options(std::pair<double, double> betas, double eps, double weight_decay) {
  return {betas.first, betas.second, eps, weight_decay};
}

// One step t of lr; returns the new params, exp_avg, exp_avg_sq.
py::tuple adam(const Array<float>& params, const Array<float>& grads, const Array<float>& exp_avg,
               const Array<float>& exp_avg_sq, double lr, int64_t t, std::pair<double, double> betas, double eps,
               double weight_decay, bool reference) {
  check_isa();
  check_shape(params, "params", {-1});
  for (const auto& [array, name] : {std::pair(grads, "grads"), {exp_avg, "exp_avg"}, {exp_avg_sq, "exp_avg_sq"}})
    check_shape(array, name, {params.size()});
  const AdamOptions options = adam_options(betas, eps, weight_decay);
  auto p = copy_of(params), m = copy_of(exp_avg), v = copy_of(exp_avg_sq);
  (reference ? adam_update_reference : adam_update)(options, adam_step_factors(options, lr, t), params.size(),
                                                    grads.data(), p.mutable_data(), m.mutable_data(), v.mutable_data());
  return py::make_tuple(p, m, v);
}

// A lazy table that owns its arrays.
class LazyTable {
 public:
  LazyTable(const Array<float>& params, const std::vector<double>& lr, std::pair<double, double> betas, double eps,
            double weight_decay)
      : params_(copy_of(params)), exp_avg_(copy_of(params)), exp_avg_sq_(copy_of(params)) {
    check_isa();
    check_shape(params, "params", {-1, -1});
    const int64_t entries = params.shape(0), width = params.shape(1);
    if (width != 1 && width != 2 && width != 4 && width != 8)
      raise_if_error(invalid_argument("params must have 1, 2, 4 or 8 columns, got ", width));
    std::fill_n(exp_avg_.mutable_data(), params.size(), 0.0f);
    std::fill_n(exp_avg_sq_.mutable_data(), params.size(), 0.0f);
    const AdamOptions options = adam_options(betas, eps, weight_decay);
    std::vector<AdamStep> steps;
    for (size_t s = 0; s < lr.size(); ++s)
      steps.push_back(adam_step_factors(options, lr[s], static_cast<int64_t>(s) + 1));
    const AdamTable table{entries,
                          static_cast<int>(width),
                          params_.mutable_data(),
                          exp_avg_.mutable_data(),
                          exp_avg_sq_.mutable_data(),
                          last_step_.zeroed(entries)};
    lazy_ = std::make_unique<LazyAdam>(options, std::move(steps), table, entries);
  }

  // Brings the entries to step - 1, then takes the step with their gradients.
  void step(const Array<uint32_t>& entries, const Array<float>& grads, int64_t step) {
    check_shape(entries, "entries", {-1});
    check_shape(grads, "grads", {entries.size(), params_.shape(1)});
    lazy_->catch_up(entries.data(), entries.size(), step - 1);
    lazy_->update(entries.data(), entries.size(), grads.data(), step);
  }
  py::tuple flushed(int64_t step) {
    lazy_->flush(step);
    return py::make_tuple(params_, exp_avg_, exp_avg_sq_);
  }

 private:
  Array<float> params_, exp_avg_, exp_avg_sq_;
  Buffer<int32_t> last_step_;
  std::unique_ptr<LazyAdam> lazy_;
};

}  // namespace

void bind_field(py::module_& m) {
  m.def("gather_features", &gather, py::arg("features"), py::arg("index"), py::arg("reference") = false);
  m.def("first_non_finite", &non_finite_at, py::arg("array"));
  m.def("mlp", &mlp, py::arg("widths"), py::arg("params"), py::arg("x"), py::arg("d_out") = py::none(),
        py::arg("reference") = false);
  m.def("add_artifacts", &add_artifacts, py::arg("base"), py::arg("artifacts"), py::arg("patch"),
        py::arg("reference") = false);
  m.def("sum_by_patch", &sum_by_patch, py::arg("d_out"), py::arg("patch"), py::arg("patches"),
        py::arg("reference") = false);
  m.def("losses", &losses, py::arg("base"), py::arg("residual"), py::arg("raw"), py::arg("residual_mse") = 0.1,
        py::arg("residual_l1") = 0.02, py::arg("scale") = 1.0, py::arg("reference") = false);
  m.def("adam", &adam, py::arg("params"), py::arg("grads"), py::arg("exp_avg"), py::arg("exp_avg_sq"), py::arg("lr"),
        py::arg("t"), py::arg("betas"), py::arg("eps"), py::arg("weight_decay"), py::arg("reference") = false);
  py::class_<LazyTable>(m, "LazyAdam")
      .def(py::init<const Array<float>&, const std::vector<double>&, std::pair<double, double>, double, double>(),
           py::arg("params"), py::arg("lr"), py::arg("betas"), py::arg("eps"), py::arg("weight_decay"))
      .def("step", &LazyTable::step, py::arg("entries"), py::arg("grads"), py::arg("step"))
      .def("flushed", &LazyTable::flushed, py::arg("step"));
}

}  // namespace dvt::bindings
