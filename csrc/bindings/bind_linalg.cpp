// Linear algebra, bound for tests and benchmarks only.
#include "bindings/convert.h"
#include "linalg/banded/banded_cholesky.h"
#include "linalg/cholesky/cholesky.h"
#include "linalg/gemm/gemm.h"

namespace dvt::bindings {
namespace {

Array<float> gemm_binding(const Array<float>& a, const Array<float>& b, bool trans_a, bool trans_b, float alpha,
                          float beta, py::object c_in, py::object bias, bool relu, py::object relu_mask,
                          bool reference) {
  check_environment();
  check_shape(a, "a", {-1, -1});
  check_shape(b, "b", {-1, -1});
  const GemmShape shape{a.shape(trans_a ? 1 : 0), b.shape(trans_b ? 0 : 1), a.shape(trans_a ? 0 : 1)};
  check_shape(b, "b", {trans_b ? shape.n : shape.k, trans_b ? shape.k : shape.n});
  auto c = new_array<float>({shape.m, shape.n});
  if (!c_in.is_none()) {
    auto given = c_in.cast<Array<float>>();
    check_shape(given, "c", {shape.m, shape.n});
    std::memcpy(c.mutable_data(), given.data(), sizeof(float) * static_cast<size_t>(given.size()));
  }
  GemmEpilogue epilogue;
  epilogue.relu = relu;
  Array<float> bias_array, mask_array;
  if (!bias.is_none()) {
    bias_array = bias.cast<Array<float>>();
    check_shape(bias_array, "bias", {shape.n});
    epilogue.bias = bias_array.data();
  }
  if (!relu_mask.is_none()) {
    mask_array = relu_mask.cast<Array<float>>();
    check_shape(mask_array, "relu_mask", {shape.m, shape.n});
    epilogue.relu_mask = mask_array.data();
    epilogue.relu_mask_stride = shape.n;
  }
  const float *pa = a.data(), *pb = b.data();
  float* pc = c.mutable_data();
  const int64_t lda = a.shape(1), ldb = b.shape(1);
  {
    py::gil_scoped_release release;
    (reference ? gemm_reference : gemm)(trans_a ? Transpose::yes : Transpose::no,
                                        trans_b ? Transpose::yes : Transpose::no, shape, alpha, pa, lda, pb, ldb, beta,
                                        pc, shape.n, epilogue);
  }
  return c;
}

Array<float> cholesky_solve_binding(const Array<float>& a, const Array<float>& b) {
  check_environment();
  check_shape(a, "a", {-1, -1});
  const int64_t n = a.shape(0);
  check_shape(a, "a", {n, n});
  check_shape(b, "b", {n, -1});
  auto factor = copy_of(a), x = copy_of(b);
  const int64_t columns = b.shape(1);
  float *l = factor.mutable_data(), *solution = x.mutable_data();
  Status status;
  {
    py::gil_scoped_release release;
    status = cholesky_factor(n, l, n);
    if (status.ok()) cholesky_solve(n, l, n, columns, solution, columns);
  }
  raise_if_error(status);
  return x;
}

Array<float> banded_solve_binding(const Array<double>& band_rows, const Array<float>& b) {
  check_environment();
  check_shape(band_rows, "band_rows", {-1, -1});
  const int64_t n = band_rows.shape(0), band = band_rows.shape(1) - 1;
  if (band < 0) raise_if_error(invalid_argument("band_rows must have at least one column, got 0"));
  check_shape(b, "b", {n, -1});
  auto x = copy_of(b);
  const int64_t columns = b.shape(1);
  const double* rows = band_rows.data();
  float* solution = x.mutable_data();
  Status status;
  {
    py::gil_scoped_release release;
    BandedCholesky cholesky;
    status = cholesky.factor(n, band, rows);
    if (status.ok()) {
      cholesky.solve_forward(columns, solution, columns);
      cholesky.solve_backward(columns, solution, columns);
    }
  }
  raise_if_error(status);
  return x;
}

}  // namespace

void bind_linalg(py::module_& m) {
  m.def("gemm", &gemm_binding, py::arg("a"), py::arg("b"), py::arg("trans_a") = false, py::arg("trans_b") = false,
        py::arg("alpha") = 1.0f, py::arg("beta") = 0.0f, py::arg("c") = py::none(), py::arg("bias") = py::none(),
        py::arg("relu") = false, py::arg("relu_mask") = py::none(), py::arg("reference") = false);
  m.def("gemm_isa", [] {
    check_environment();
    return gemm_kernels().isa;
  });
  m.def("cholesky_solve", &cholesky_solve_binding, py::arg("a"), py::arg("b"));
  m.def("banded_solve", &banded_solve_binding, py::arg("band_rows"), py::arg("b"));
}

}  // namespace dvt::bindings
