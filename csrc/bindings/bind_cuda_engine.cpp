// The engine on a CUDA device: models and sessions behind the CUDA library's interface.
#include <pybind11/stl.h>

#include "bindings/device_array.h"
#include "bindings/engine_arguments.h"

namespace dvt::bindings {
namespace {

struct CudaModel {
  std::shared_ptr<cuda::EngineModelCuda> model;
};

cuda::EngineCompute compute_of(const std::string& name) {
  for (const auto compute : {cuda::EngineCompute::float32, cuda::EngineCompute::tf32, cuda::EngineCompute::float16,
                             cuda::EngineCompute::bfloat16})
    if (name == cuda::compute_name(compute)) return compute;
  raise_if_error(invalid_argument("dtype must be float32, tf32, float16 or bfloat16, got '", name, "'"));
  return cuda::EngineCompute::float32;
}

CudaModel load(const py::bytes& data, const std::string& dtype, int device) {
  const cuda::EngineCompute compute = compute_of(dtype);
  const cuda::Backend& backend = cuda_backend();
  raise_if_error(backend.check_device(device));
  const std::string_view text = data;
  CudaModel made;
  Status status;
  {
    py::gil_scoped_release release;
    EngineWeights weights;
    status = read_engine_weights(text.data(), text.size(), &weights);
    std::unique_ptr<cuda::EngineModelCuda> model;
    if (status.ok()) status = backend.create_engine_model(weights, compute, device, &model);
    made.model = std::move(model);
  }
  raise_if_error(status);
  return made;
}

struct CudaSession {
  std::shared_ptr<cuda::EngineModelCuda> model;
  std::unique_ptr<cuda::EngineSessionCuda> session;

  // Tensors on the device; only enqueues.
  void run(const py::object& input, const py::object& output, const py::object& raw, uintptr_t stream) {
    const int device = session->device();
    const DeviceArray in = device_array(input, "x", device), out = device_array(output, "out", device);
    DeviceArray raw_array;
    if (!raw.is_none()) raw_array = device_array(raw, "raw", device);
    Status status;
    {
      py::gil_scoped_release release;
      status = session->run(in.view, out.view, raw.is_none() ? nullptr : &raw_array.view,
                            reinterpret_cast<void*>(stream), nullptr, 0);
    }
    raise_if_error(status);
  }

  // Arrays in main memory; returns when the result is there.
  void run_host(const py::array& input, const py::array& output, const py::object& raw) {
    const TensorView in = view_of(input, "input", false), out = view_of(output, "output", true);
    TensorView raw_view;
    if (!raw.is_none()) raw_view = view_of(py::cast<py::array>(raw), "raw", true);
    Status status;
    {
      py::gil_scoped_release release;
      status = session->run_host(in, out, raw.is_none() ? nullptr : &raw_view);
    }
    raise_if_error(status);
  }
};

}  // namespace

void bind_cuda_engine(py::module_& m) {
  py::class_<CudaModel>(m, "CudaEngineModel")
      .def_static("from_bytes", &load, py::arg("data"), py::arg("dtype"), py::arg("device"))
      .def_property_readonly("has_vit", [](const CudaModel& self) { return self.model->has_vit(); })
      .def_property_readonly("has_denoiser", [](const CudaModel& self) { return self.model->has_denoiser(); })
      .def_property_readonly("dim", [](const CudaModel& self) { return self.model->dim(); })
      .def_property_readonly("dtype", [](const CudaModel& self) { return cuda::compute_name(self.model->compute()); })
      .def_property_readonly("device", [](const CudaModel& self) { return self.model->device(); })
      .def_property_readonly("bytes", [](const CudaModel& self) { return self.model->bytes(); })
      .def_property_readonly("metadata", [](const CudaModel& self) { return self.model->metadata(); })
      .def_property_readonly("image_size", [](const CudaModel& self) -> py::object {
        if (!self.model->has_vit()) return py::none();
        return py::make_tuple(self.model->image_height(), self.model->image_width());
      });

  py::class_<CudaSession>(m, "CudaEngineSession")
      .def(py::init([](const CudaModel& model, const std::string& input, std::pair<int64_t, int64_t> size,
                       std::pair<int64_t, int64_t> grid, int64_t batch, int64_t threads,
                       std::pair<int64_t, int64_t> max_source) {
             const SessionOptions options = session_options(input, size, grid, batch, threads, max_source);
             CudaSession made;
             made.model = model.model;
             Status status;
             {
               py::gil_scoped_release release;
               status = model.model->create_session(options, &made.session);
             }
             raise_if_error(status);
             return made;
           }),
           py::arg("model"), py::kw_only(), py::arg("input"), py::arg("size"), py::arg("grid"), py::arg("batch"),
           py::arg("threads"), py::arg("max_source"))
      .def("run", &CudaSession::run, py::arg("input"), py::arg("output"), py::arg("raw"), py::arg("stream"))
      .def("run_host", &CudaSession::run_host, py::arg("input").noconvert(), py::arg("output").noconvert(),
           py::arg("raw"))
      .def("finite",
           [](CudaSession& self) {
             bool finite = true;
             Status status;
             {
               py::gil_scoped_release release;
               status = self.session->finite(&finite);
             }
             raise_if_error(status);
             return finite;
           })
      .def_property_readonly("device", [](const CudaSession& self) { return self.session->device(); })
      .def_property_readonly("launches", [](const CudaSession& self) { return self.session->launches(); })
      .def_property_readonly("grid",
                             [](const CudaSession& self) {
                               return py::make_tuple(self.session->grid_height(), self.session->grid_width());
                             })
      .def_property_readonly("size",
                             [](const CudaSession& self) {
                               const SessionOptions& o = self.session->options();
                               return py::make_tuple(o.image_height, o.image_width);
                             })
      .def_property_readonly("workspace_bytes",
                             [](const CudaSession& self) { return self.session->workspace_bytes(); });
}

}  // namespace dvt::bindings
