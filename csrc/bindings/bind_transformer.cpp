// The ops of a transformer, bound for tests and benchmarks only.
#include "bindings/convert.h"
#include "transformer/activation/activation.h"

namespace dvt::bindings {
namespace {

template <class T>
T named(const char* argument, const std::string& name, const std::vector<std::pair<const char*, T>>& choices) {
  std::string names;
  for (const auto& [choice, value] : choices) {
    if (name == choice) return value;
    names += (names.empty() ? "" : ", ") + std::string(choice);
  }
  raise_if_error(invalid_argument(argument, " must be one of ", names, "; got '", name, "'"));
  return choices[0].second;
}

Activation activation_of(const std::string& name) {
  return named<Activation>("activation", name,
                           {{"gelu", Activation::gelu},
                            {"gelu_tanh", Activation::gelu_tanh},
                            {"quick_gelu", Activation::quick_gelu},
                            {"silu", Activation::silu},
                            {"relu", Activation::relu}});
}

py::array activation_binding(const std::string& name, const Array<float>& x, bool reference) {
  check_environment();
  const Activation activation = activation_of(name);
  const std::vector<py::ssize_t> shape(x.shape(), x.shape() + x.ndim());
  if (reference) {
    auto y = new_array<double>(shape);
    activation_reference(activation, x.data(), x.size(), y.mutable_data());
    return y;
  }
  auto y = new_array<float>(shape);
  activation_forward(activation, x.data(), x.size(), y.mutable_data());
  return y;
}

Array<float> exponential_binding(const std::string& name, const Array<float>& x) {
  check_environment();
  const auto exponential = named<Exponential>(
      "exponential", name,
      {{"exp", Exponential::exp}, {"exp2", Exponential::exp2}, {"exp_nonpositive", Exponential::exp_nonpositive}});
  auto y = new_array<float>(std::vector<py::ssize_t>(x.shape(), x.shape() + x.ndim()));
  exponential_forward(exponential, x.data(), x.size(), y.mutable_data());
  return y;
}

}  // namespace

void bind_transformer(py::module_& m) {
  m.def("activation", &activation_binding, py::arg("activation"), py::arg("x"), py::arg("reference") = false);
  m.def("exponential", &exponential_binding, py::arg("exponential"), py::arg("x"));
}

}  // namespace dvt::bindings
