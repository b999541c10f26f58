// The hash grid, the semantics field and the fit of solver "hashgrid".
#include <pybind11/stl.h>

#include <algorithm>
#include <exception>

#include "bindings/field_arrays.h"
#include "bindings/hashgrid_arguments.h"
#include "core/buffer.h"
#include "field/hashgrid_fitter.h"

namespace dvt::bindings {
namespace {

// The module encodes any number of points in chunks, so that corners and weights never need memory for all of them.
constexpr int64_t kChunk = 8192;

HashGrid make_grid(int n_input_dims, int n_levels, int n_features_per_level, int log2_hashmap_size, int base_resolution,
                   double per_level_scale) {
  HashGrid grid;
  raise_if_error(make_hash_grid({n_input_dims, n_levels, n_features_per_level, log2_hashmap_size, base_resolution,
                                 static_cast<float>(per_level_scale)},
                                &grid));
  return grid;
}

template <class Visit>
void for_each_chunk(const HashGrid& grid, const float* coords, int64_t n, Visit&& visit) {
  const int64_t reads = std::min(n, kChunk) * grid.n_corners() * grid.n_levels;
  Buffer<uint32_t> indices(reads);
  Buffer<float> weights(reads);
  for (int64_t first = 0; first < n; first += kChunk) {
    const int64_t points = std::min(kChunk, n - first);
    hash_grid_corners(grid, coords + first * grid.n_dims, points, indices.data(), weights.data());
    visit(first, points, indices.data(), weights.data());
  }
}

Array<float> forward(const HashGrid& grid, const Array<float>& coords, const Array<float>& params, bool reference) {
  check_environment();
  check_shape(coords, "coords", {-1, grid.n_dims});
  check_shape(params, "params", {grid.n_params()});
  const int64_t n = coords.shape(0);
  auto out = new_array<float>({n, grid.n_outputs()});
  const float *x = coords.data(), *p = params.data();
  float* y = out.mutable_data();
  py::gil_scoped_release release;
  if (reference) {
    hash_grid_forward_reference(grid, p, x, n, y);
  } else {
    for_each_chunk(grid, x, n, [&](int64_t first, int64_t points, const uint32_t* indices, const float* weights) {
      hash_grid_forward(grid, p, indices, weights, points, y + first * grid.n_outputs());
    });
  }
  return out;
}

Array<float> backward_params(const HashGrid& grid, const Array<float>& coords, const Array<float>& d_out) {
  check_environment();
  check_shape(coords, "coords", {-1, grid.n_dims});
  check_shape(d_out, "d_out", {coords.shape(0), grid.n_outputs()});
  auto d_params = new_array<float>({grid.n_params()});
  const float *x = coords.data(), *d = d_out.data();
  float* to = d_params.mutable_data();
  const int64_t n = coords.shape(0);
  py::gil_scoped_release release;
  std::fill_n(to, grid.n_params(), 0.0f);
  for_each_chunk(grid, x, n, [&](int64_t first, int64_t points, const uint32_t* indices, const float* weights) {
    hash_grid_backward_params(grid, d + first * grid.n_outputs(), indices, weights, points, to);
  });
  return d_params;
}

Array<float> backward_coords(const HashGrid& grid, const Array<float>& coords, const Array<float>& params,
                             const Array<float>& d_out) {
  check_environment();
  check_shape(coords, "coords", {-1, grid.n_dims});
  check_shape(params, "params", {grid.n_params()});
  check_shape(d_out, "d_out", {coords.shape(0), grid.n_outputs()});
  auto d_coords = new_array<float>({coords.shape(0), grid.n_dims});
  const float *x = coords.data(), *p = params.data(), *d = d_out.data();
  float* to = d_coords.mutable_data();
  const int64_t n = coords.shape(0);
  py::gil_scoped_release release;
  hash_grid_backward_coords(grid, p, x, d, n, to);
  return d_coords;
}

py::tuple backward_reference(const HashGrid& grid, const Array<float>& coords, const Array<float>& params,
                             const Array<float>& d_out) {
  check_environment();
  check_shape(coords, "coords", {-1, grid.n_dims});
  check_shape(params, "params", {grid.n_params()});
  check_shape(d_out, "d_out", {coords.shape(0), grid.n_outputs()});
  auto d_params = new_array<double>({grid.n_params()});
  auto d_coords = new_array<double>({coords.shape(0), grid.n_dims});
  const float *x = coords.data(), *p = params.data(), *d = d_out.data();
  double *to_params = d_params.mutable_data(), *to_coords = d_coords.mutable_data();
  const int64_t n = coords.shape(0);
  {
    py::gil_scoped_release release;
    std::fill_n(to_params, grid.n_params(), 0.0);
    hash_grid_backward_reference(grid, p, x, d, n, to_params, to_coords);
  }
  return py::make_tuple(d_params, d_coords);
}

Array<float> field_query(const HashGrid& grid, const std::vector<int64_t>& widths, const Array<float>& grid_params,
                         const Array<float>& mlp_params, const Array<float>& coords) {
  check_environment();
  const SemanticsField field{grid, mlp_shape(widths), grid_params.data(), mlp_params.data()};
  check_shape(grid_params, "grid", {grid.n_params()});
  check_shape(mlp_params, "field", {field.mlp.n_params()});
  check_shape(coords, "coords", {-1, grid.n_dims});
  if (field.mlp.inputs() != grid.n_outputs())
    raise_if_error(
        invalid_argument("the field's MLP must take ", grid.n_outputs(), " inputs, got ", field.mlp.inputs()));
  const int64_t n = coords.shape(0);
  auto out = new_array<float>({n, field.mlp.outputs()});
  const float* x = coords.data();
  float* y = out.mutable_data();
  py::gil_scoped_release release;
  field.query(x, n, y);
  return out;
}

// The fitter and the arrays that it reads.
class Fitter {
 public:
  Fitter(py::array features, const Array<float>& coords, const HashgridOptions& options)
      : features_(std::move(features)), coords_(coords) {
    check_environment();
    const bool half = is_half(features_, "features");
    check_shape(features_, "features", {-1, -1, -1, -1});
    check_shape(coords_, "coords", {features_.shape(0), features_.shape(1), features_.shape(2), 2});
    const HashgridProblem problem{
        features_.data(),  half, coords_.data(), features_.shape(0), features_.shape(1), features_.shape(2),
        features_.shape(3)};
    Status status;
    {
      py::gil_scoped_release release;
      status = HashgridFitter::make(options, problem, &fitter_);
    }
    raise_if_error(status);
  }

  void run(int64_t count, const py::object& samples, int64_t report_every, const py::object& progress) {
    count = std::min(count, fitter_->steps() - fitter_->step());
    Array<int64_t> keep;
    const int64_t* sample_data = samples_of(samples, count, fitter_->batch(), &keep);
    run_with_progress(progress, [&](const auto& report) {
      return fitter_->run(count, sample_data, std::max<int64_t>(1, report_every), report);
    });
  }

  py::tuple gradients(const Array<int64_t>& samples, bool second_phase) {
    check_shape(samples, "samples", {fitter_->batch()});
    py::dict arrays = HashgridArrays(fitter_->recipe()).empty();
    const HashgridParameters grads = HashgridArrays::pointers(arrays);
    const int64_t* sample_data = samples.data();
    Losses losses;
    Status status;
    {
      py::gil_scoped_release release;
      status = fitter_->gradients(sample_data, second_phase, grads, &losses);
    }
    raise_if_error(status);
    return py::make_tuple(losses_dict(losses), arrays);
  }

  py::dict parameters() {
    const HashgridArrays layout(fitter_->recipe());
    py::dict arrays = layout.empty();
    const HashgridParameters from = current(), to = HashgridArrays::pointers(arrays);
    py::gil_scoped_release release;
    copy(layout, from, to);
    return arrays;
  }

  void set_parameters(const py::dict& arrays) {
    if (fitter_->step() != 0) raise_if_error(invalid_argument("parameters can be set before the first step only"));
    const HashgridArrays layout(fitter_->recipe());
    std::vector<Array<float>> keep;
    const HashgridParameters from = layout.given(arrays, &keep);
    copy(layout, from, current());
  }

  py::tuple decomposition() {
    const int64_t h = features_.shape(1), w = features_.shape(2), c = features_.shape(3);
    auto semantics = new_array<float>({h, w, c}), artifacts = new_array<float>({h, w, c}),
         residual = new_array<float>({h, w, c});
    float *s = semantics.mutable_data(), *a = artifacts.mutable_data(), *r = residual.mutable_data();
    Status status;
    {
      py::gil_scoped_release release;
      status = fitter_->decomposition(s, a, r);
    }
    raise_if_error(status);
    return py::make_tuple(semantics, artifacts, residual);
  }

  HashgridFitter& operator*() { return *fitter_; }
  py::dict losses() const { return losses_dict(fitter_->losses()); }
  Array<float> loss_history() const {
    const auto& history = fitter_->loss_history();
    return Array<float>(static_cast<py::ssize_t>(history.size()), history.data());
  }

 private:
  static void copy(const HashgridArrays& layout, const HashgridParameters& from, const HashgridParameters& to) {
    const float* const sources[] = {from.grid, from.field, from.artifacts, from.residual};
    float* const targets[] = {to.grid, to.field, to.artifacts, to.residual};
    for (size_t i = 0; i < layout.sizes.size(); ++i) std::copy_n(sources[i], layout.sizes[i].second, targets[i]);
  }
  HashgridParameters current() {
    py::gil_scoped_release release;
    return fitter_->parameters();
  }
  py::array features_;
  Array<float> coords_;
  std::unique_ptr<HashgridFitter> fitter_;
};

HashgridOptions options_of(int64_t steps, int64_t batch, uint64_t seed, int n_levels, int n_features_per_level,
                           int log2_hashmap_size, int base_resolution, double per_level_scale, int64_t hidden_dim,
                           int64_t residual_dim, double lr, double lr_final, double warmup,
                           std::pair<double, double> betas, double eps, double weight_decay, double residual_mse,
                           double residual_l1, double loss_scale) {
  HashgridOptions o;
  o.steps = steps;
  o.batch = batch;
  o.seed = seed;
  o.grid = {2, n_levels, n_features_per_level, log2_hashmap_size, base_resolution, static_cast<float>(per_level_scale)};
  o.hidden_dim = hidden_dim;
  o.residual_dim = residual_dim;
  o.lr = lr;
  o.lr_final = lr_final;
  o.warmup = warmup;
  o.adam = {betas.first, betas.second, eps, weight_decay};
  o.loss = {static_cast<float>(residual_mse), static_cast<float>(residual_l1), static_cast<float>(loss_scale)};
  return o;
}

}  // namespace

void bind_hashgrid(py::module_& m) {
  py::class_<HashGrid>(m, "HashGrid")
      .def(py::init(&make_grid), py::kw_only(), py::arg("n_input_dims"), py::arg("n_levels"),
           py::arg("n_features_per_level"), py::arg("log2_hashmap_size"), py::arg("base_resolution"),
           py::arg("per_level_scale"))
      .def_property_readonly("n_params", &HashGrid::n_params)
      .def_property_readonly("n_output_dims", &HashGrid::n_outputs)
      .def_property_readonly(
          "levels",
          [](const HashGrid& grid) {
            py::list levels;
            for (int l = 0; l < grid.n_levels; ++l) {
              const HashGridLevel& level = grid.levels[l];
              levels.append(py::make_tuple(level.scale, level.resolution, level.entries, level.offset));
            }
            return levels;
          })
      .def("forward", &forward, py::arg("coords"), py::arg("params"), py::arg("reference") = false)
      .def("backward_params", &backward_params, py::arg("coords"), py::arg("d_out"))
      .def("backward_coords", &backward_coords, py::arg("coords"), py::arg("params"), py::arg("d_out"))
      .def("backward_reference", &backward_reference, py::arg("coords"), py::arg("params"), py::arg("d_out"));

  m.def("field_query", &field_query, py::arg("grid"), py::arg("widths"), py::arg("grid_params"), py::arg("mlp_params"),
        py::arg("coords"));

  py::class_<HashgridOptions>(m, "HashgridOptions")
      .def(py::init(&options_of), py::kw_only(), py::arg("steps"), py::arg("batch"), py::arg("seed"),
           py::arg("n_levels"), py::arg("n_features_per_level"), py::arg("log2_hashmap_size"),
           py::arg("base_resolution"), py::arg("per_level_scale"), py::arg("hidden_dim"), py::arg("residual_dim"),
           py::arg("lr"), py::arg("lr_final"), py::arg("warmup"), py::arg("betas"), py::arg("eps"),
           py::arg("weight_decay"), py::arg("residual_mse"), py::arg("residual_l1"), py::arg("loss_scale"))
      .def("learning_rate", &hashgrid_learning_rate, py::arg("step"));

  py::class_<Fitter>(m, "HashgridFitter")
      .def(py::init<py::array, const Array<float>&, const HashgridOptions&>(), py::arg("features"), py::arg("coords"),
           py::arg("options"))
      .def("run", &Fitter::run, py::arg("count"), py::arg("samples") = py::none(), py::arg("report_every") = 10,
           py::arg("progress") = py::none())
      .def("gradients", &Fitter::gradients, py::arg("samples"), py::arg("second_phase"))
      .def("parameters", &Fitter::parameters)
      .def("set_parameters", &Fitter::set_parameters, py::arg("parameters"))
      .def("decomposition", &Fitter::decomposition)
      .def_property_readonly("step", [](Fitter& f) { return (*f).step(); })
      .def_property_readonly("field_widths",
                             [](Fitter& f) {
                               const MlpShape& s = (*f).field_mlp();
                               return std::vector<int64_t>(s.widths, s.widths + s.n_layers + 1);
                             })
      .def_property_readonly("losses", &Fitter::losses)
      .def_property_readonly("loss_history", &Fitter::loss_history);
}

}  // namespace dvt::bindings
