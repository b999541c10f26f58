// The maximal information coefficient, bound for the evaluation.
#include "bindings/convert.h"
#include "mic/mic.h"

namespace dvt::bindings {
namespace {

Array<double> mic_binding(const Array<double>& values, const Array<double>& target, double alpha, int64_t clumps) {
  check_environment();
  check_shape(values, "values", {-1, -1});
  const int64_t channels = values.shape(0), n = values.shape(1);
  check_shape(target, "target", {n});
  auto result = new_array<double>({channels});
  const double *v = values.data(), *t = target.data();
  double* out = result.mutable_data();
  Status status;
  {
    py::gil_scoped_release release;
    status = mic(channels, n, v, t, {alpha, clumps}, out);
  }
  raise_if_error(status);
  return result;
}

}  // namespace

void bind_mic(py::module_& m) {
  m.def("mic", &mic_binding, py::arg("values"), py::arg("target"), py::arg("alpha"), py::arg("clumps"));
}

}  // namespace dvt::bindings
