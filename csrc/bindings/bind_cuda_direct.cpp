// The least-squares solver on a CUDA device, the baseline that averages, and fields at the nodes of a grid there.
#include <pybind11/stl.h>

#include <algorithm>

#include "bindings/device_array.h"
#include "bindings/direct_arguments.h"

namespace dvt::bindings {
namespace {

void* as_stream(uintptr_t stream) { return reinterpret_cast<void*>(stream); }

const float* float_data(const DeviceArray& array, const char* name) {
  if (array.view.dtype != Dtype::float32)
    raise_if_error(invalid_argument(name, " must be float32, got ", dtype_name(array.view.dtype)));
  return static_cast<const float*>(array.view.data);
}

int64_t count_of(const TensorView& view) {
  int64_t count = 1;
  for (int i = 0; i < view.rank; ++i) count *= view.shape[i];
  return count;
}

class Solver {
 public:
  Solver(int64_t ny, int64_t nx, int64_t patches, int64_t channels, const std::string& keep, bool cosine,
         bool solves_artifacts, int64_t expected_views, int device, uintptr_t stream)
      : stream_(stream) {
    check_direct_problem(ny, nx, patches, channels);
    const cuda::Backend& backend = cuda_backend();
    raise_if_error(backend.check_device(device));
    setup_.grid = {ny, nx};
    setup_.patches = patches;
    setup_.channels = channels;
    setup_.keep = keep_of(keep);
    setup_.cosine = cosine;
    setup_.solves_artifacts = solves_artifacts;
    setup_.expected_views = expected_views;
    setup_.device = device;
    Status status;
    {
      py::gil_scoped_release release;
      status = backend.create_direct_solver(setup_, &solver_);
    }
    raise_if_error(status);
  }

  void add(const py::object& features, const Array<float>& coords) {
    const DeviceArray there = contiguous_device_array(features, "features", setup_.device);
    if (there.view.rank != 3 || there.view.shape[1] != setup_.patches || there.view.shape[2] != setup_.channels)
      raise_if_error(invalid_argument("features must have shape (*, ", setup_.patches, ", ", setup_.channels, ")"));
    const int64_t views = there.view.shape[0];
    check_shape(coords, "coords", {views, setup_.patches, 2});
    const float* at = coords.data();
    Status status;
    {
      py::gil_scoped_release release;
      status = solver_->add(views, there.view.data, there.view.dtype, at, false, as_stream(stream_));
    }
    raise_if_error(status);
    if (setup_.keep == Keep::borrow) borrowed_.push_back(there);
  }

  py::tuple solve(const py::object& smoothness, const py::object& artifact_ridge, int passes, int residual,
                  double outlier_threshold, const py::object& prior, bool fix_artifacts, const std::string& method,
                  double tolerance, int max_iterations) {
    const DirectOptions options = direct_options(smoothness, artifact_ridge, passes, residual, outlier_threshold,
                                                 fix_artifacts, method, tolerance, max_iterations);
    DeviceArray prior_array;
    const float* prior_data = nullptr;
    if (!prior.is_none()) {
      prior_array = contiguous_device_array(prior, "artifacts", setup_.device);
      if (count_of(prior_array.view) != setup_.patches * setup_.channels)
        raise_if_error(invalid_argument("artifacts must have shape (", setup_.patches, ", ", setup_.channels, ")"));
      prior_data = float_data(prior_array, "artifacts");
    }
    DirectReport report;
    const auto [nodes, artifacts] = results(
        [&](float* n, float* a) { return solver_->solve(options, prior_data, n, a, &report, as_stream(stream_)); });
    return py::make_tuple(nodes, artifacts, report_dict(report));
  }

  py::tuple average() {
    const auto [nodes, artifacts] =
        results([&](float* n, float* a) { return solver_->average(n, a, as_stream(stream_)); });
    return py::make_tuple(nodes, artifacts);
  }

  void reset() {
    solver_->reset();
    borrowed_.clear();
  }

 private:
  template <class Run>
  std::pair<DeviceArray, DeviceArray> results(Run&& run) {
    const int64_t c = setup_.channels;
    DeviceArray nodes = new_device_array({setup_.grid.ny, setup_.grid.nx, c}, Dtype::float32, setup_.device);
    DeviceArray artifacts = new_device_array({setup_.patches, c}, Dtype::float32, setup_.device);
    auto *n = static_cast<float*>(nodes.view.data), *a = static_cast<float*>(artifacts.view.data);
    Status status;
    {
      py::gil_scoped_release release;
      status = run(n, a);
    }
    raise_if_error(status);
    return {nodes, artifacts};
  }

  cuda::DirectSetup setup_;
  uintptr_t stream_;
  std::unique_ptr<cuda::DirectSolverCuda> solver_;
  std::vector<DeviceArray> borrowed_;
};

GridShape grid_of(const DeviceArray& nodes) {
  if (nodes.view.rank != 3) raise_if_error(invalid_argument("nodes must have shape (*, *, *)"));
  return {nodes.view.shape[0], nodes.view.shape[1]};
}

// coords: float32 [n, 2] in main memory; the values come back there.
Array<float> query(const DeviceArray& nodes, const Array<float>& coords, uintptr_t stream) {
  check_shape(coords, "coords", {-1, 2});
  const GridShape grid = grid_of(nodes);
  const int64_t n = coords.shape(0), c = nodes.view.shape[2];
  auto out = new_array<float>({n, c});
  if (n == 0) return out;
  const DeviceArray at = new_device_array({n, 2}, Dtype::float32, nodes.device);
  const DeviceArray values = new_device_array({n, c}, Dtype::float32, nodes.device);
  const cuda::Backend& backend = cuda_backend();
  const float* from = coords.data();
  float* to = out.mutable_data();
  const auto run = [&]() -> Status {
    void* const s = as_stream(stream);
    DVT_RETURN_IF_ERROR(backend.copy(nodes.device, at.view.data, from, n * 8, s));
    DVT_RETURN_IF_ERROR(backend.query_field(nodes.device, grid, c, static_cast<const float*>(nodes.view.data), n,
                                            static_cast<const float*>(at.view.data),
                                            static_cast<float*>(values.view.data), s));
    DVT_RETURN_IF_ERROR(backend.copy(nodes.device, to, values.view.data, n * c * 4, s));
    return backend.synchronise(nodes.device, s);
  };
  Status status;
  {
    py::gil_scoped_release release;
    status = run();
  }
  raise_if_error(status);
  return out;
}

// What a decomposition holds beside G, from what a solver found: moves the constant that G gives to F, then F's mean
// over each patch of the last view, that view's features as float32, and what is left of them.
py::tuple parts(const DeviceArray& nodes, const DeviceArray& artifacts, const Array<float>& coords,
                const py::object& features, uintptr_t stream) {
  const GridShape grid = grid_of(nodes);
  check_shape(coords, "coords", {-1, -1, 2});
  const int64_t h = coords.shape(0), w = coords.shape(1), c = nodes.view.shape[2];
  const int device = nodes.device;
  const DeviceArray last = contiguous_device_array(features, "features", device);
  if (count_of(last.view) != h * w * c || count_of(artifacts.view) != h * w * c)
    raise_if_error(invalid_argument("features and artifacts must have ", h * w * c, " values"));
  const DeviceArray at = new_device_array({h, w, 2}, Dtype::float32, device);
  const DeviceArray semantics = new_device_array({h, w, c}, Dtype::float32, device);
  const DeviceArray raw = new_device_array({h, w, c}, Dtype::float32, device);
  const DeviceArray residual = new_device_array({h, w, c}, Dtype::float32, device);
  const cuda::Backend& backend = cuda_backend();
  const auto bytes = static_cast<int64_t>(backend.gauge_workspace_bytes(h * w, c));
  const DeviceArray space = new_device_array({std::max<int64_t>(bytes, 1)}, Dtype::uint8, device);
  const float* from = coords.data();
  const auto run = [&]() -> Status {
    void* const s = as_stream(stream);
    auto *n = static_cast<float*>(nodes.view.data), *a = static_cast<float*>(artifacts.view.data);
    DVT_RETURN_IF_ERROR(backend.apply_gauge(device, h * w, c, a, grid.nodes(), n, space.view.data, s));
    DVT_RETURN_IF_ERROR(backend.copy(device, at.view.data, from, h * w * 2 * 4, s));
    DVT_RETURN_IF_ERROR(backend.field_patch_means(device, grid, c, n, h, w, static_cast<const float*>(at.view.data),
                                                  static_cast<float*>(semantics.view.data), s));
    DVT_RETURN_IF_ERROR(
        backend.residual(device, last.view.data, last.view.dtype, static_cast<const float*>(semantics.view.data), a,
                         h * w * c, static_cast<float*>(raw.view.data), static_cast<float*>(residual.view.data), s));
    return backend.synchronise(device, s);  // before the workspace and what the caller gave goes
  };
  Status status;
  {
    py::gil_scoped_release release;
    status = run();
  }
  raise_if_error(status);
  DeviceArray map = artifacts;
  map.view.rank = 3;
  map.view.shape[0] = h;
  map.view.shape[1] = w;
  map.view.shape[2] = c;
  map.view.strides[0] = w * c;
  map.view.strides[1] = c;
  map.view.strides[2] = 1;
  return py::make_tuple(raw, semantics, map, residual);
}

}  // namespace

void bind_cuda_direct(py::module_& m) {
  py::class_<Solver>(m, "CudaDirectSolver")
      .def(py::init<int64_t, int64_t, int64_t, int64_t, const std::string&, bool, bool, int64_t, int, uintptr_t>(),
           py::arg("ny"), py::arg("nx"), py::arg("patches"), py::arg("channels"), py::arg("keep"), py::arg("cosine"),
           py::arg("solves_artifacts") = true, py::arg("expected_views") = 0, py::arg("device") = 0,
           py::arg("stream") = 0)
      .def("add", &Solver::add, py::arg("features"), py::arg("coords"))
      .def("solve", &Solver::solve, py::kw_only(), py::arg("smoothness"), py::arg("artifact_ridge"), py::arg("passes"),
           py::arg("residual"), py::arg("outlier_threshold"), py::arg("prior"), py::arg("fix_artifacts"),
           py::arg("method"), py::arg("tolerance"), py::arg("max_iterations"))
      .def("average", &Solver::average)
      .def("reset", &Solver::reset);
  m.def("cuda_query_field", &query, py::arg("nodes"), py::arg("coords"), py::arg("stream") = 0);
  m.def("cuda_parts", &parts, py::arg("nodes"), py::arg("artifacts"), py::arg("coords"), py::arg("features"),
        py::arg("stream") = 0);
}

}  // namespace dvt::bindings
