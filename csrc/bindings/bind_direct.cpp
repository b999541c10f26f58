// The least-squares solver and its field. One object per solve; the arrays it borrows are kept alive here.
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>

#include "bindings/convert.h"
#include "field/direct_solver/direct_solver.h"

namespace dvt::bindings {
namespace {

constexpr int64_t kMaxNodes = 1 << 24, kMaxPatches = 1 << 24, kMaxChannels = 1 << 20;

// With these limits no product of sizes wraps, and what is too large for the machine fails where memory is asked for.
void check_grid(int64_t ny, int64_t nx, int64_t channels) {
  if (ny < 2 || nx < 2) raise_if_error(invalid_argument("grid must have at least 2 x 2 nodes, got ", ny, " x ", nx));
  if (ny > kMaxNodes / nx)
    raise_if_error(invalid_argument("grid must have at most ", kMaxNodes, " nodes, got ", ny, " x ", nx));
  if (channels < 1 || channels > kMaxChannels)
    raise_if_error(invalid_argument("channels must be 1 to ", kMaxChannels, ", got ", channels));
}

class PyDirectSolver {
 public:
  PyDirectSolver(int64_t ny, int64_t nx, int64_t patches, int64_t channels, const std::string& keep, bool cosine) {
    check_environment();
    check_grid(ny, nx, channels);
    if (patches < 1 || patches > kMaxPatches)
      raise_if_error(invalid_argument("patches must be 1 to ", kMaxPatches, ", got ", patches));
    if (keep != "borrow" && keep != "half" && keep != "nothing")
      raise_if_error(invalid_argument("keep must be 'borrow', 'half' or 'nothing', got '", keep, "'"));
    const Keep mode = keep == "borrow" ? Keep::borrow : keep == "half" ? Keep::half : Keep::nothing;
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
    if (method != "auto" && method != "schur" && method != "pcg")
      raise_if_error(invalid_argument("method must be 'auto', 'schur' or 'pcg', got '", method, "'"));
    DirectOptions options;
    options.automatic_smoothness = smoothness.is_none();
    if (!options.automatic_smoothness) options.smoothness = smoothness.cast<double>();
    options.automatic_ridge = artifact_ridge.is_none();
    if (!options.automatic_ridge) options.artifact_ridge = artifact_ridge.cast<double>();
    options.passes = passes;
    options.residual = residual;
    options.outlier_threshold = outlier_threshold;
    options.fix_artifacts = fix_artifacts;
    options.method = method == "schur" ? DirectMethod::schur
                     : method == "pcg" ? DirectMethod::pcg
                                       : DirectMethod::automatic;
    options.tolerance = tolerance;
    options.max_iterations = max_iterations;
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
    py::dict info;
    info["method"] = report.method == DirectMethod::pcg ? "pcg" : "schur";
    info["passes"] = report.passes;
    info["iterations"] = report.iterations;
    info["smoothness"] = report.smoothness;
    info["artifact_ridge"] = report.artifact_ridge;
    info["median_residual"] = report.median_residual;
    info["outlier_share"] = report.outlier_share;
    return py::make_tuple(nodes, artifacts, info);
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
