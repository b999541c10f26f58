// The operators of stage 1, bound for tests and benchmarks; users reach them through the solvers.
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>

#include "bindings/field_arrays.h"
#include "core/buffer.h"
#include "field/adam/adam.h"
#include "field/artifacts/artifacts.h"
#include "field/loss/loss.h"

namespace dvt::bindings {
namespace {

Array<float> gather(const py::array& features, const Array<int64_t>& index, bool reference) {
  check_environment();
  const Features bank = features_of(features, "features");
  check_shape(index, "index", {-1});
  for (py::ssize_t i = 0; i < index.size(); ++i)
    if (index.at(i) < 0 || index.at(i) >= bank.rows)
      raise_if_error(invalid_argument("index must be in [0, ", bank.rows, "), got ", index.at(i)));
  auto out = new_array<float>({index.size(), bank.channels});
  const int64_t* rows = index.data();
  const int64_t n = index.size();
  float* to = out.mutable_data();
  py::gil_scoped_release release;
  (reference ? gather_features_reference : gather_features)(bank, rows, n, to);
  return out;
}

int64_t non_finite_at(const py::array& array) {
  check_environment();
  const Features bank = features_of(array, "array");
  py::gil_scoped_release release;
  return first_non_finite(bank);
}

// out, d_params, d_x; the gradients are null without d_out.
py::tuple mlp(const std::vector<int64_t>& widths, const Array<float>& params, const Array<float>& x,
              const py::object& d_out, bool reference) {
  check_environment();
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
  const float *p = params.data(), *from = x.data(), *d = d_out.is_none() ? nullptr : d_y.data();
  float* to = out.mutable_data();
  if (reference) {
    if (!d) raise_if_error(invalid_argument("the reference needs d_out"));
    auto d_params = new_array<double>({shape.n_params()}), d_x = new_array<double>({n, shape.inputs()});
    double *to_params = d_params.mutable_data(), *to_x = d_x.mutable_data();
    {
      py::gil_scoped_release release;
      mlp_reference(shape, p, from, d, n, to, to_params, to_x);
    }
    return py::make_tuple(out, d_params, d_x);
  }
  Buffer<float> hidden(n * shape.n_hidden());
  {
    py::gil_scoped_release release;
    mlp_forward(shape, p, from, n, hidden.data(), to);
  }
  if (!d) return py::make_tuple(out, py::none(), py::none());
  auto d_params = new_array<float>({shape.n_params()}), d_x = new_array<float>({n, shape.inputs()});
  float *to_params = d_params.mutable_data(), *to_x = d_x.mutable_data();
  {
    py::gil_scoped_release release;
    Buffer<float> d_hidden(n * shape.n_hidden());
    mlp_backward(shape, p, from, hidden.data(), d, n, d_hidden.data(), to_params, to_x);
  }
  return py::make_tuple(out, d_params, d_x);
}

constexpr int64_t kMaxPatches = 1 << 24;

void check_patches(const Array<int32_t>& patch, int64_t patches) {
  for (py::ssize_t i = 0; i < patch.size(); ++i)
    if (patch.at(i) < 0 || patch.at(i) >= patches)
      raise_if_error(invalid_argument("patch must be in [0, ", patches, "), got ", patch.at(i)));
}

// base [N, C] + artifacts [P, C] at rows patch [N].
Array<float> add_artifacts(const Array<float>& base, const Array<float>& artifacts, const Array<int32_t>& patch,
                           bool reference) {
  check_environment();
  check_shape(artifacts, "artifacts", {-1, -1});
  check_shape(patch, "patch", {-1});
  check_shape(base, "base", {patch.size(), artifacts.shape(1)});
  check_patches(patch, artifacts.shape(0));
  auto out = copy_of(base);
  const int64_t n = patch.size(), c = artifacts.shape(1);
  const float* g = artifacts.data();
  const int32_t* rows = patch.data();
  float* to = out.mutable_data();
  py::gil_scoped_release release;
  (reference ? artifacts_forward_reference : artifacts_forward)(g, rows, n, c, to);
  return out;
}

py::array sum_by_patch(const Array<float>& d_out, const Array<int32_t>& patch, int64_t patches, bool reference) {
  check_environment();
  check_shape(patch, "patch", {-1});
  check_shape(d_out, "d_out", {patch.size(), -1});
  if (patches < 0 || patches > kMaxPatches)
    raise_if_error(invalid_argument("patches must be 0 to ", kMaxPatches, ", got ", patches));
  check_patches(patch, patches);
  const int64_t n = patch.size(), c = d_out.shape(1);
  const float* d = d_out.data();
  const int32_t* rows = patch.data();
  if (reference) {
    auto sums = new_array<double>({patches, c});
    double* to = sums.mutable_data();
    {
      py::gil_scoped_release release;
      artifacts_backward_reference(d, rows, n, patches, c, to);
    }
    return sums;
  }
  auto sums = new_array<float>({patches, c});
  float* to = sums.mutable_data();
  {
    py::gil_scoped_release release;
    Buffer<int32_t> order(n + patches + 1);
    artifacts_backward(d, rows, n, patches, c, order.data(), to);
  }
  return sums;
}

// (mse, cosine, residual mse, residual l1), d_base, d_residual.
template <class Real, class Run>
py::tuple run_losses(const Array<float>& base, bool has_residual, Run&& run) {
  const std::vector<py::ssize_t> shape{base.shape(0), base.shape(1)};
  auto d_base = new_array<Real>(shape), d_residual = new_array<Real>(shape);
  Real *to_base = d_base.mutable_data(), *to_residual = d_residual.mutable_data();
  Losses l;
  {
    py::gil_scoped_release release;
    l = run(to_base, to_residual);
  }
  return py::make_tuple(py::make_tuple(l.mse, l.cosine, l.residual_mse, l.residual_l1), d_base,
                        has_residual ? py::object(d_residual) : py::object(py::none()));
}

py::tuple losses(const Array<float>& base, const py::object& residual, const Array<float>& raw, double residual_mse,
                 double residual_l1, double scale, bool reference) {
  check_environment();
  check_shape(base, "base", {-1, -1});
  const int64_t n = base.shape(0), c = base.shape(1);
  check_shape(raw, "raw", {n, c});
  Array<float> h;
  if (!residual.is_none()) {
    h = residual.cast<Array<float>>();
    check_shape(h, "residual", {n, c});
  }
  const float *x = base.data(), *y = raw.data(), *h_data = residual.is_none() ? nullptr : h.data();
  const LossWeights weights{static_cast<float>(residual_mse), static_cast<float>(residual_l1),
                            static_cast<float>(scale)};
  if (reference)
    return run_losses<double>(base, h_data != nullptr, [&](double* d_base, double* d_residual) {
      return loss_reference(weights, x, h_data, y, n, c, d_base, d_residual);
    });
  return run_losses<float>(base, h_data != nullptr, [&](float* d_base, float* d_residual) {
    Buffer<float> rows(4 * n);
    return loss_forward_backward(weights, x, h_data, y, n, c, rows.data(), d_base, d_residual);
  });
}

AdamOptions adam_options(std::pair<double, double> betas, double eps, double weight_decay) {
  return {betas.first, betas.second, eps, weight_decay};
}

// One step t of lr; returns the new params, exp_avg, exp_avg_sq.
py::tuple adam(const Array<float>& params, const Array<float>& grads, const Array<float>& exp_avg,
               const Array<float>& exp_avg_sq, double lr, int64_t t, std::pair<double, double> betas, double eps,
               double weight_decay, bool reference) {
  check_environment();
  check_shape(params, "params", {-1});
  for (const auto& [array, name] : {std::pair(grads, "grads"), {exp_avg, "exp_avg"}, {exp_avg_sq, "exp_avg_sq"}})
    check_shape(array, name, {params.size()});
  const AdamOptions options = adam_options(betas, eps, weight_decay);
  auto p = copy_of(params), m = copy_of(exp_avg), v = copy_of(exp_avg_sq);
  const int64_t n = params.size();
  const float* g = grads.data();
  float *p_data = p.mutable_data(), *m_data = m.mutable_data(), *v_data = v.mutable_data();
  {
    py::gil_scoped_release release;
    (reference ? adam_update_reference : adam_update)(options, adam_step_factors(options, lr, t), n, g, p_data, m_data,
                                                      v_data);
  }
  return py::make_tuple(p, m, v);
}

// A lazy table that owns its arrays.
class LazyTable {
 public:
  LazyTable(const Array<float>& params, const std::vector<double>& lr, std::pair<double, double> betas, double eps,
            double weight_decay)
      : params_(copy_of(params)),
        exp_avg_(copy_of(params)),
        exp_avg_sq_(copy_of(params)),
        steps_(static_cast<int64_t>(lr.size())) {
    check_environment();
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

  // Brings the entries, each listed once, to step - 1, then takes the step with their gradients.
  void step(const Array<uint32_t>& entries, const Array<float>& grads, int64_t step) {
    check_shape(entries, "entries", {-1});
    check_shape(grads, "grads", {entries.size(), params_.shape(1)});
    check_step(step, step_ + 1);
    std::vector<bool> listed(static_cast<size_t>(params_.shape(0)));
    for (py::ssize_t i = 0; i < entries.size(); ++i) {
      const uint32_t entry = entries.at(i);
      if (entry >= listed.size())
        raise_if_error(invalid_argument("entries must be in [0, ", listed.size(), "), got ", entry));
      if (listed[entry]) raise_if_error(invalid_argument("entries must differ, got ", entry, " twice"));
      listed[entry] = true;
    }
    step_ = step;
    const uint32_t* list = entries.data();
    const int64_t count = entries.size();
    const float* g = grads.data();
    py::gil_scoped_release release;
    lazy_->catch_up(list, count, step - 1);
    lazy_->update(list, count, g, step);
  }
  py::tuple flushed(int64_t step) {
    check_step(step, step_);
    step_ = step;
    {
      py::gil_scoped_release release;
      lazy_->flush(step);
    }
    return py::make_tuple(params_, exp_avg_, exp_avg_sq_);
  }

 private:
  void check_step(int64_t step, int64_t first) const {
    if (step < first || step > steps_)
      raise_if_error(invalid_argument("step must be in [", first, ", ", steps_, "], got ", step));
  }

  Array<float> params_, exp_avg_, exp_avg_sq_;
  int64_t step_ = 0, steps_;  // the step that no entry is past, and how many there are
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
