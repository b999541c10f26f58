// The engine: models and sessions. Checks of Python's types are in dvt_fast/engine; what a session refuses, it says.
#include <pybind11/stl.h>

#include "bindings/engine_arguments.h"
#include "engine/model.h"
#include "engine/model_packed.h"
#include "engine/session.h"

namespace dvt::bindings {
namespace {

Dtype dtype_of(const std::string& name) {
  for (const Dtype dtype : {Dtype::float32, Dtype::float16, Dtype::bfloat16})
    if (name == dtype_name(dtype)) return dtype;
  raise_if_error(invalid_argument("dtype must be float32, float16 or bfloat16, got '", name, "'"));
  return Dtype::float32;
}

using SharedModel = std::shared_ptr<const Model>;

struct NativeModel {
  SharedModel model;
};

struct NativeSession {
  std::unique_ptr<Session> session;

  void run(const py::array& input, const py::array& output, const py::object& raw) {
    check_environment();
    const TensorView in = view_of(input, "input", false), out = view_of(output, "output", true);
    TensorView raw_view;
    if (!raw.is_none()) raw_view = view_of(py::cast<py::array>(raw), "raw", true);
    Status status;
    {
      py::gil_scoped_release release;
      status = session->run(in, out, raw.is_none() ? nullptr : &raw_view);
    }
    raise_if_error(status);
  }
};

}  // namespace

void bind_engine(py::module_& m) {
  py::class_<NativeModel>(m, "EngineModel")
      .def_static("from_bytes",
                  [](const py::bytes& data, const std::string& dtype) {
                    check_environment();
                    const std::string_view text = data;
                    NativeModel made;
                    const Dtype packed = dtype_of(dtype);
                    Status status;
                    {
                      py::gil_scoped_release release;
                      status = Model::from_bytes(text.data(), text.size(), packed, &made.model);
                    }
                    raise_if_error(status);
                    return made;
                  })
      .def_property_readonly("has_vit", [](const NativeModel& self) { return self.model->has_vit(); })
      .def_property_readonly("has_denoiser", [](const NativeModel& self) { return self.model->has_denoiser(); })
      .def_property_readonly("dim", [](const NativeModel& self) { return self.model->dim(); })
      .def_property_readonly("dtype", [](const NativeModel& self) { return dtype_name(self.model->dtype()); })
      .def_property_readonly("metadata", [](const NativeModel& self) { return self.model->metadata(); })
      .def_property_readonly("image_size", [](const NativeModel& self) -> py::object {
        const auto& embed = self.model->packed().patch_embed;
        if (!embed) return py::none();
        return py::make_tuple(embed->image_size[0], embed->image_size[1]);
      });

  py::class_<NativeSession>(m, "EngineSession")
      .def(py::init([](const NativeModel& model, const std::string& input, std::pair<int64_t, int64_t> size,
                       std::pair<int64_t, int64_t> grid, int64_t batch, int64_t threads,
                       std::pair<int64_t, int64_t> max_source) {
             check_environment();
             const SessionOptions options = session_options(input, size, grid, batch, threads, max_source);
             NativeSession made;
             Status status;
             {
               py::gil_scoped_release release;
               status = Session::create(model.model, options, &made.session);
             }
             raise_if_error(status);
             return made;
           }),
           py::arg("model"), py::kw_only(), py::arg("input"), py::arg("size"), py::arg("grid"), py::arg("batch"),
           py::arg("threads"), py::arg("max_source"))
      .def("run", &NativeSession::run, py::arg("input").noconvert(), py::arg("output").noconvert(), py::arg("raw"))
      .def_property_readonly("grid",
                             [](const NativeSession& self) {
                               return py::make_tuple(self.session->grid_height(), self.session->grid_width());
                             })
      .def_property_readonly("size",
                             [](const NativeSession& self) {
                               const SessionOptions& o = self.session->options();
                               return py::make_tuple(o.image_height, o.image_width);
                             })
      .def_property_readonly("workspace_bytes",
                             [](const NativeSession& self) { return self.session->workspace_bytes(); });
}

}  // namespace dvt::bindings
