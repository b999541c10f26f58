// The "hashgrid" fitter on a CUDA device.
#include <pybind11/stl.h>

#include "bindings/device_array.h"
#include "bindings/hashgrid_arguments.h"

namespace dvt::bindings {
namespace {

// The fitter and the arrays that it reads.
class Fitter {
 public:
  Fitter(const py::object& features, const Array<float>& coords, const HashgridOptions& recipe,
         const std::string& compute, bool deterministic, int64_t graph_steps, int device, uintptr_t stream)
      : coords_(coords) {
    const cuda::Backend& backend = cuda_backend();
    raise_if_error(backend.check_device(device));
    cuda::HashgridCudaOptions options;
    options.recipe = recipe;
    options.compute = compute;
    options.deterministic = deterministic;
    options.graph_steps = graph_steps;
    cuda::HashgridCudaProblem problem;
    const bool in_main_memory = py::isinstance<py::array>(features);
    features_ = in_main_memory ? host_array(features, device) : contiguous_device_array(features, "features", device);
    const TensorView& view = features_.view;
    if (view.rank != 4) raise_if_error(invalid_argument("features must have shape [V, H, W, C], got rank ", view.rank));
    check_shape(coords_, "coords", {view.shape[0], view.shape[1], view.shape[2], 2});
    problem.features = view.data;
    problem.dtype = view.dtype;
    problem.features_on_device = !in_main_memory;
    problem.coords = coords_.data();
    problem.size = {view.shape[0], view.shape[1], view.shape[2], view.shape[3]};
    problem.device = device;
    problem.stream = reinterpret_cast<void*>(stream);
    Status status;
    {
      py::gil_scoped_release release;
      status = backend.make_hashgrid_fitter(options, problem, &fitter_);
    }
    raise_if_error(status);
  }

  void run(int64_t count, const py::object& samples, int64_t report_every, const py::object& progress) {
    const HashgridRecipe& recipe = fitter_->recipe();
    count = std::min(count, recipe.options.steps - fitter_->step());
    Array<int64_t> keep;
    const int64_t* sample_data = samples_of(samples, count, recipe.options.batch, &keep);
    run_with_progress(progress, [&](const auto& report) {
      return fitter_->run(count, sample_data, std::max<int64_t>(1, report_every), report);
    });
  }

  py::tuple gradients(const Array<int64_t>& samples, bool second_phase) {
    check_shape(samples, "samples", {fitter_->recipe().options.batch});
    const HashgridArrays arrays(fitter_->recipe());
    py::dict grads = arrays.empty();
    const HashgridParameters to = HashgridArrays::pointers(grads);
    const int64_t* sample_data = samples.data();
    Losses losses;
    Status status;
    {
      py::gil_scoped_release release;
      status = fitter_->gradients(sample_data, second_phase, to, &losses);
    }
    raise_if_error(status);
    return py::make_tuple(losses_dict(losses), grads);
  }

  py::dict parameters() {
    py::dict arrays = HashgridArrays(fitter_->recipe()).empty();
    const HashgridParameters to = HashgridArrays::pointers(arrays);
    Status status;
    {
      py::gil_scoped_release release;
      status = fitter_->parameters(to);
    }
    raise_if_error(status);
    return arrays;
  }

  void set_parameters(const py::dict& arrays) {
    std::vector<Array<float>> keep;
    raise_if_error(fitter_->set_parameters(HashgridArrays(fitter_->recipe()).given(arrays, &keep)));
  }

  // In main memory as NumPy arrays, or on the device.
  py::tuple decomposition(bool on_device) {
    const HashgridSize& size = fitter_->recipe().size;
    const std::vector<int64_t> shape{size.height, size.width, size.channels};
    std::vector<DeviceArray> there;
    std::vector<Array<float>> here;
    float* to[3];
    for (float*& data : to) {
      if (on_device) {
        there.push_back(new_device_array(shape, Dtype::float32, features_.device));
        data = static_cast<float*>(there.back().view.data);
      } else {
        here.push_back(new_array<float>({shape[0], shape[1], shape[2]}));
        data = here.back().mutable_data();
      }
    }
    Status status;
    {
      py::gil_scoped_release release;
      status = fitter_->decomposition(to[0], to[1], to[2], on_device);
    }
    raise_if_error(status);
    if (on_device) return py::make_tuple(there[0], there[1], there[2]);
    return py::make_tuple(here[0], here[1], here[2]);
  }

  Array<float> query(const Array<float>& coords) {
    check_shape(coords, "coords", {-1, 2});
    auto out = new_array<float>({coords.shape(0), fitter_->recipe().size.channels});
    const float* at = coords.data();
    float* to = out.mutable_data();
    Status status;
    {
      py::gil_scoped_release release;
      status = fitter_->query(at, coords.shape(0), to, false);
    }
    raise_if_error(status);
    return out;
  }

  cuda::HashgridFitterCuda& operator*() { return *fitter_; }

 private:
  // float32 or float16, contiguous, in main memory.
  static DeviceArray host_array(const py::object& object, int device) {
    DeviceArray out;
    const py::array array = object.cast<py::array>();
    const bool half = array.itemsize() == 2;
    if (array.dtype().kind() != 'f' || (!half && array.itemsize() != 4) || !(array.flags() & py::array::c_style))
      raise_if_error(invalid_argument("features must be contiguous float32 or float16"));
    out.view.dtype = half ? Dtype::float16 : Dtype::float32;
    out.view.rank = static_cast<int>(std::min<py::ssize_t>(array.ndim(), kMaxRank));
    for (int i = 0; i < out.view.rank; ++i) out.view.shape[i] = array.shape(i);
    out.view.data = const_cast<void*>(array.data());
    out.device = device;
    out.owner = array;
    return out;
  }

  DeviceArray features_;
  Array<float> coords_;
  std::unique_ptr<cuda::HashgridFitterCuda> fitter_;
};

// Several fits of one device together; progress as of one, of all of them.
void run_together(const std::vector<Fitter*>& fitters, int64_t count, int64_t report_every,
                  const py::object& progress) {
  std::vector<cuda::HashgridFitterCuda*> all;
  for (Fitter* fitter : fitters) all.push_back(&**fitter);
  std::vector<int64_t> done(all.size());
  run_with_progress(progress, [&](const auto& report) {
    return cuda_backend().run_hashgrid_fitters(
        all, count, std::max<int64_t>(1, report_every), [&](int64_t fitter, int64_t step, int64_t steps, double loss) {
          done[static_cast<size_t>(fitter)] = step;
          int64_t together = 0;
          for (const int64_t steps_done : done) together += steps_done;
          return report(together, steps * static_cast<int64_t>(done.size()), loss);
        });
  });
}

}  // namespace

void bind_cuda_hashgrid(py::module_& m) {
  m.def("cuda_run_together", &run_together, py::arg("fitters"), py::arg("count"), py::arg("report_every") = 10,
        py::arg("progress") = py::none());
  py::class_<Fitter>(m, "CudaHashgridFitter")
      .def(py::init<const py::object&, const Array<float>&, const HashgridOptions&, const std::string&, bool, int64_t,
                    int, uintptr_t>(),
           py::arg("features"), py::arg("coords"), py::arg("options"), py::arg("compute") = "tf32",
           py::arg("deterministic") = false, py::arg("graph_steps") = 20, py::arg("device") = 0, py::arg("stream") = 0)
      .def("run", &Fitter::run, py::arg("count"), py::arg("samples") = py::none(), py::arg("report_every") = 10,
           py::arg("progress") = py::none())
      .def("gradients", &Fitter::gradients, py::arg("samples"), py::arg("second_phase"))
      .def("parameters", &Fitter::parameters)
      .def("set_parameters", &Fitter::set_parameters, py::arg("parameters"))
      .def("decomposition", &Fitter::decomposition, py::arg("on_device") = false)
      .def("query", &Fitter::query, py::arg("coords"))
      .def_property_readonly("step", [](Fitter& f) { return (*f).step(); })
      .def_property_readonly("field_widths",
                             [](Fitter& f) {
                               const MlpShape& s = (*f).recipe().field_mlp;
                               return std::vector<int64_t>(s.widths, s.widths + s.n_layers + 1);
                             })
      .def_property_readonly("device_bytes", [](Fitter& f) { return (*f).device_bytes(); })
      .def_property_readonly("losses", [](Fitter& f) { return losses_dict((*f).losses()); })
      .def_property_readonly("loss_history", [](Fitter& f) {
        const auto& history = (*f).loss_history();
        return Array<float>(static_cast<py::ssize_t>(history.size()), history.data());
      });
}

}  // namespace dvt::bindings
