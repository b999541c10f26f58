// The least-squares solver and its field. One object per solve; the arrays it borrows are kept alive here.
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>

#include "bindings/direct_arguments.h"

namespace dvt::bindings {
namespace {

class PyDirectSolver {
 public:
  PyDirectSolver(int64_t ny, int64_t nx, int64_t patches, int64_t channels, const std::string& keep, bool cosine) {
    check_environment();
    check_direct_problem(ny, nx, patches, channels);
    const Keep mode = keep_of(keep);
    borrow_ = mode == Keep::borrow;
    py::gil_scoped_release release;
    solver_ = std::make_unique<DirectSolver>(GridShape{ny, nx}, patches, channels, mode, cosine);
  }

  void add(const Array<float>& features, const Array<float>& coords) {
    check_shape(features, "features", {-1, solver_->patches(), solver_->channels()});
    check_shape(coords, "coords", {features.shape(0), solver_->patches(), 2});
    const int64_t views = features.shape(0);
    const float *f = features.data(), *xy = coords.data();
    Status status;
    {
      py::gil_scoped_release release;
      status = solver_->add(views, f, xy);
    }
    raise_if_error(status);
    if (borrow_) borrowed_.push_back(features);
  }

  py::tuple solve(py::object smoothness, py::object artifact_ridge, int passes, int residual, double outlier_threshold,
                  py::object prior, bool fix_artifacts, const std::string& method, double tolerance,
                  int max_iterations) {
    const DirectOptions options = direct_options(smoothness, artifact_ridge, passes, residual, outlier_threshold,
                                                 fix_artifacts, method, tolerance, max_iterations);
    Array<float> prior_array;
    const float* prior_data = nullptr;
    if (!prior.is_none()) {
      prior_array = prior.cast<Array<float>>();
      check_shape(prior_array, "artifacts", {solver_->patches(), solver_->channels()});
      prior_data = prior_array.data();
    }
    auto nodes = new_array<float>({solver_->grid().ny, solver_->grid().nx, solver_->channels()});
    auto artifacts = new_array<float>({solver_->patches(), solver_->channels()});
    float *nodes_data = nodes.mutable_data(), *artifacts_data = artifacts.mutable_data();
    DirectReport report;
    Status status;
    {
      py::gil_scoped_release release;
      status = solver_->solve(options, prior_data, nodes_data, artifacts_data, &report);
    }
    raise_if_error(status);
    return py::make_tuple(nodes, artifacts, report_dict(report));
  }

 private:
  std::unique_ptr<DirectSolver> solver_;
  bool borrow_ = false;
  std::vector<Array<float>> borrowed_;
};

std::vector<Tap> taps_of(GridShape grid, int64_t count, const float* coords) {
  std::vector<Tap> taps(static_cast<size_t>(count));
  locate(grid, count, coords, taps.data());
  return taps;
}

Array<float> interpolate_binding(const Array<float>& nodes, const Array<float>& coords, bool reference) {
  check_environment();
  check_shape(nodes, "nodes", {-1, -1, -1});
  check_shape(coords, "coords", {-1, 2});
  const GridShape grid{nodes.shape(0), nodes.shape(1)};
  const int64_t channels = nodes.shape(2), count = coords.shape(0);
  check_grid(grid.ny, grid.nx, channels);
  auto out = new_array<float>({count, channels});
  const float *from = nodes.data(), *xy = coords.data();
  float* to = out.mutable_data();
  py::gil_scoped_release release;
  const std::vector<Tap> taps = taps_of(grid, count, xy);
  (reference ? interpolate_reference : interpolate)(grid, count, taps.data(), channels, from, to);
  return out;
}

py::tuple scatter_binding(int64_t ny, int64_t nx, const Array<float>& coords, const Array<float>& weights,
                          const Array<float>& values, bool reference) {
  check_environment();
  check_shape(coords, "coords", {-1, 2});
  const int64_t count = coords.shape(0);
  check_shape(weights, "weights", {count});
  check_shape(values, "values", {count, -1});
  const GridShape grid{ny, nx};
  const int64_t channels = values.shape(1);
  check_grid(ny, nx, channels);
  auto nodes = new_array<float>({ny, nx, channels});
  auto patches = new_array<float>({count, channels});
  const float *xy = coords.data(), *w = weights.data(), *rows = values.data();
  float *node_sums = nodes.mutable_data(), *patch_sums = patches.mutable_data();
  {
    py::gil_scoped_release release;
    std::fill_n(node_sums, grid.nodes() * channels, 0.0f);
    std::fill_n(patch_sums, count * channels, 0.0f);
    const std::vector<Tap> taps = taps_of(grid, count, xy);
    if (reference)
      scatter_reference(grid, count, taps.data(), w, channels, rows, node_sums, patch_sums);
    else
      scatter(grid, 1, count, taps.data(), w, channels, &rows, node_sums, patch_sums);
  }
  return py::make_tuple(nodes, patches);
}

}  // namespace

void bind_direct(py::module_& m) {
  py::class_<PyDirectSolver>(m, "DirectSolver")
      .def(py::init<int64_t, int64_t, int64_t, int64_t, const std::string&, bool>(), py::arg("ny"), py::arg("nx"),
           py::arg("patches"), py::arg("channels"), py::arg("keep"), py::arg("cosine"))
      .def("add", &PyDirectSolver::add, py::arg("features"), py::arg("coords"))
      .def("solve", &PyDirectSolver::solve, py::kw_only(), py::arg("smoothness"), py::arg("artifact_ridge"),
           py::arg("passes"), py::arg("residual") = 0, py::arg("outlier_threshold"), py::arg("prior") = py::none(),
           py::arg("fix_artifacts") = false, py::arg("method") = "auto", py::arg("tolerance") = 1e-5,
           py::arg("max_iterations") = 200);
  m.def("interpolate", &interpolate_binding, py::arg("nodes"), py::arg("coords"), py::arg("reference") = false);
  m.def("scatter", &scatter_binding, py::arg("ny"), py::arg("nx"), py::arg("coords"), py::arg("weights"),
        py::arg("values"), py::arg("reference") = false);
}

}  // namespace dvt::bindings
