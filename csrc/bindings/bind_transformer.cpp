// The ops of a transformer, bound for tests and benchmarks only.
#include <algorithm>
#include <cmath>

#include "bindings/convert.h"
#include "transformer/activation/activation.h"
#include "transformer/attention/attention.h"
#include "transformer/layer_norm/layer_norm.h"
#include "transformer/linear/linear.h"

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

// y = activation(x weight^T + bias): a PackedLinear for one call, with rows `x_stride` apart.
py::array linear_binding(const Array<float>& weight, const py::object& bias, const Array<float>& x,
                         const std::string& dtype, const py::object& activation, int64_t k_chunk, bool reference) {
  check_environment();
  check_shape(weight, "weight", {-1, -1});
  check_shape(x, "x", {-1, weight.shape(1)});
  LinearWeights weights;
  weights.out = weight.shape(0);
  weights.in = weight.shape(1);
  weights.weight.assign(weight.data(), weight.data() + weight.size());
  if (!bias.is_none()) {
    const auto values = py::cast<Array<float>>(bias);
    check_shape(values, "bias", {weights.out});
    weights.bias.assign(values.data(), values.data() + values.size());
  }
  const int64_t rows = x.shape(0);
  if (reference) {
    auto y = new_array<double>({rows, weights.out});
    linear_reference(weights, rows, x.data(), y.mutable_data());
    return y;
  }
  const auto type = named<Dtype>(
      "dtype", dtype, {{"float32", Dtype::float32}, {"float16", Dtype::float16}, {"bfloat16", Dtype::bfloat16}});
  Slabs memory;
  const PackedLinear packed = pack_linear(weights, type, memory);
  const int64_t stride = row_stride(weights.out);
  Buffer<float> wide(rows * stride);
  if (k_chunk == 0) k_chunk = weights.in;
  for (int64_t k = 0; k < weights.in; k += k_chunk) {
    LinearCall call = whole(packed, rows, x.data() + k, weights.in, wide.data(), stride);
    call.k_begin = k;
    call.k_end = std::min(weights.in, k + k_chunk);
    call.add_bias = call.accumulate = false;
    if (k == 0) call.add_bias = true;
    if (k > 0) call.accumulate = true;
    call.activate = !activation.is_none() && call.k_end == weights.in;
    if (call.activate) call.activation = activation_of(py::cast<std::string>(activation));
    linear(call);
  }
  auto y = new_array<float>({rows, weights.out});
  for (int64_t r = 0; r < rows; ++r)
    std::copy_n(wide.data() + r * stride, weights.out, y.mutable_data() + r * weights.out);
  return y;
}

// softmax(q k^T / sqrt(d)) v of one head; the keys and values arrive `chunk` tokens at a time.
Array<float> attention_binding(const Array<float>& q, const Array<float>& k, const Array<float>& v, int64_t chunk,
                               bool reference) {
  check_environment();
  check_shape(q, "q", {-1, -1});
  check_shape(k, "k", {-1, q.shape(1)});
  check_shape(v, "v", {k.shape(0), k.shape(1)});
  const int64_t rows = q.shape(0), tokens = k.shape(0), head_dim = q.shape(1);
  auto out = new_array<float>({rows, head_dim});
  if (reference) {
    attention_reference(rows, tokens, head_dim, q.data(), k.data(), v.data(), out.mutable_data());
    return out;
  }
  KeyValueShape shape;
  shape.tokens = tokens;
  shape.head_dim = head_dim;
  shape.nr = linear_kernels().nr;
  Buffer<float> keys(shape.key_floats()), values(shape.value_floats()), scaled(rows * head_dim),
      scratch(attention_scratch(head_dim));
  for (int64_t t = 0; t < tokens; t += chunk) {
    const int64_t count = std::min(chunk, tokens - t);
    store_keys(shape, t, count, k.data() + t * head_dim, head_dim, keys.data());
    store_values(shape, t, count, v.data() + t * head_dim, head_dim, values.data());
  }
  const float scale = static_cast<float>(kLog2e / std::sqrt(static_cast<double>(head_dim)));
  for (int64_t i = 0; i < rows * head_dim; ++i) scaled[i] = q.data()[i] * scale;
  AttentionCall call;
  call.shape = shape;
  call.rows = rows;
  call.q = scaled.data();
  call.q_stride = call.out_stride = head_dim;
  call.keys = keys.data();
  call.values = values.data();
  call.out = out.mutable_data();
  call.scratch = scratch.data();
  attention(call);
  return out;
}

Array<float> layer_norm_binding(const Array<float>& x, const std::string& kind, float eps, const Array<float>& weight,
                                const Array<float>& bias, bool reference) {
  check_environment();
  check_shape(x, "x", {-1, -1});
  auto y = new_array<float>({x.shape(0), x.shape(1)});
  NormCall call;
  call.kind = named<NormWeights::Kind>(
      "kind", kind,
      {{"none", NormWeights::Kind::none}, {"layer", NormWeights::Kind::layer}, {"rms", NormWeights::Kind::rms}});
  call.eps = eps;
  if (weight.size() > 0) call.weight = weight.data();
  if (bias.size() > 0) call.bias = bias.data();
  call.rows = x.shape(0);
  call.dim = call.x_stride = call.y_stride = x.shape(1);
  call.x = x.data();
  call.y = y.mutable_data();
  (reference ? layer_norm_reference : layer_norm)(call);
  return y;
}

}  // namespace

void bind_transformer(py::module_& m) {
  m.def("activation", &activation_binding, py::arg("activation"), py::arg("x"), py::arg("reference") = false);
  m.def("linear", &linear_binding, py::arg("weight"), py::arg("bias"), py::arg("x"), py::arg("dtype") = "float32",
        py::arg("activation") = py::none(), py::arg("k_chunk") = 0, py::arg("reference") = false);
  m.def("attention", &attention_binding, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("chunk") = 1 << 20,
        py::arg("reference") = false);
  m.def("layer_norm", &layer_norm_binding, py::arg("x"), py::arg("kind"), py::arg("eps"), py::arg("weight"),
        py::arg("bias"), py::arg("reference") = false);
  m.def("exponential", &exponential_binding, py::arg("exponential"), py::arg("x"));
}

}  // namespace dvt::bindings
