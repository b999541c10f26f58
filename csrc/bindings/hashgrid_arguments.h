// What the bindings of the two "hashgrid" fitters, on the CPU and on a device, share.
#pragma once

#include <exception>
#include <utility>
#include <vector>

#include "bindings/convert.h"
#include "field/hashgrid_recipe.h"

namespace dvt::bindings {

// The parameters of a fitter, or their gradients, as a dictionary of arrays.
struct HashgridArrays {
  using Size = std::pair<const char*, int64_t>;

  explicit HashgridArrays(const HashgridRecipe& recipe)
      : sizes{{"grid", recipe.grid.n_params()},
              {"field", recipe.field_mlp.n_params()},
              {"artifacts", recipe.size.patches() * recipe.size.channels},
              {"residual", recipe.residual_mlp.n_params()}} {}

  py::dict empty() const {
    py::dict arrays;
    for (const auto& [name, size] : sizes) arrays[name] = new_array<float>({size});
    return arrays;
  }
  // Of arrays that `empty` made.
  static HashgridParameters pointers(const py::dict& arrays) {
    const auto data = [&](const char* name) { return arrays[name].cast<Array<float>>().mutable_data(); };
    return {data("grid"), data("field"), data("artifacts"), data("residual")};
  }
  // Of arrays of the caller's; `keep` holds what a conversion made.
  HashgridParameters given(const py::dict& arrays, std::vector<Array<float>>* keep) const {
    float* data[4];
    for (size_t i = 0; i < sizes.size(); ++i) {
      keep->push_back(arrays[sizes[i].first].cast<Array<float>>());
      check_shape(keep->back(), sizes[i].first, {sizes[i].second});
      data[i] = const_cast<float*>(keep->back().data());
    }
    return {data[0], data[1], data[2], data[3]};
  }

  std::vector<Size> sizes;  // in the order of HashgridParameters
};

inline py::dict losses_dict(const Losses& losses) {
  py::dict d;
  d["mse"] = losses.mse;
  d["cosine"] = losses.cosine;
  d["residual_mse"] = losses.residual_mse;
  d["residual_l1"] = losses.residual_l1;
  return d;
}

// Samples [count, batch] as a pointer, or null for None; `keep` holds them.
inline const int64_t* samples_of(const py::object& samples, int64_t count, int64_t batch, Array<int64_t>* keep) {
  if (samples.is_none()) return nullptr;
  *keep = samples.cast<Array<int64_t>>();
  check_shape(*keep, "samples", {count, batch});
  return keep->data();
}

// Calls `run(report)` without the GIL, where report(step, steps, loss) asks the callback and looks for Ctrl-C. What
// either raises travels past the core, not through it.
template <class Run>
void run_with_progress(const py::object& progress, Run&& run) {
  std::exception_ptr raised;
  const auto report = [&](int64_t step, int64_t steps, double loss) {
    py::gil_scoped_acquire acquire;
    try {
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
      return progress.is_none() || !progress(step, steps, loss).is(py::bool_(false));
    } catch (...) {
      raised = std::current_exception();
      return false;
    }
  };
  Status status;
  {
    py::gil_scoped_release release;
    status = run(report);
  }
  if (raised) std::rethrow_exception(raised);
  raise_if_error(status);
}

}  // namespace dvt::bindings
