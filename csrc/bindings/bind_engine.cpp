// The engine: models and sessions. Checks of Python's types are in dvt_fast/engine; what a session refuses, it says.
#include <pybind11/stl.h>

#include "bindings/convert.h"
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

TensorView view_of(const py::array& array, const char* name, bool writable) {
  TensorView view;
  const char kind = array.dtype().kind();
  const auto size = array.itemsize();
  if (kind == 'f' && size == 4)
    view.dtype = Dtype::float32;
  else if (kind == 'f' && size == 2)
    view.dtype = Dtype::float16;
  else if (kind == 'u' && size == 1)
    view.dtype = Dtype::uint8;
  else
    raise_if_error(invalid_argument(name, " must be float32, float16 or uint8, got ",
                                    py::str(static_cast<py::object>(array.dtype())).cast<std::string>()));
  if (array.ndim() < 1 || array.ndim() > kMaxRank)
    raise_if_error(invalid_argument(name, " must have 3 or 4 dimensions, got ", array.ndim()));
  if (writable && !array.writeable()) raise_if_error(invalid_argument(name, " cannot be written to"));
  if (size > 1 && array.dtype().attr("byteorder").cast<std::string>() == ">")
    raise_if_error(invalid_argument(name, " must be in this machine's byte order"));
  view.rank = static_cast<int>(array.ndim());
  for (int i = 0; i < view.rank; ++i) {
    view.shape[i] = array.shape(i);
    if (array.strides(i) % size != 0 || reinterpret_cast<uintptr_t>(array.data()) % static_cast<size_t>(size) != 0)
      raise_if_error(invalid_argument(name, " lies across the bounds of its numbers: give a copy"));
    view.strides[i] = array.strides(i) / size;
  }
  view.data = const_cast<void*>(array.data());
  return view;
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
             SessionOptions options;
             options.input = input == "image"        ? InputKind::image
                             : input == "normalized" ? InputKind::normalized
                                                     : InputKind::features;
             std::tie(options.image_height, options.image_width) = size;
             std::tie(options.grid_height, options.grid_width) = grid;
             std::tie(options.max_source_height, options.max_source_width) = max_source;
             options.batch = batch;
             options.threads = threads;
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
