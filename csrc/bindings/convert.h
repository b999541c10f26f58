// What every binding needs: arrays in, arrays out, statuses to exceptions.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "core/isa.h"
#include "core/status.h"

namespace dvt::bindings {

namespace py = pybind11;

// A C-contiguous array of the right dtype is read where it lies, and the Python side sees to it that arrays arrive so.
// Of others pybind11 makes a copy where NumPy calls the cast safe (a strided array, float16 for float32) and refuses
// the rest with TypeError (float64 for float32). A copy lives only as long as the Array that holds it.
template <class T>
using Array = py::array_t<T, py::array::c_style>;

// Raises the Python exception of a status: InputError, NonFiniteError, Cancelled, or DvtError.
void raise_if_error(const Status& status);
// Turns what the core throws (status.h) into DvtError, for this module.
void translate_exceptions();
// Refuses to run when DVT_FAST_ISA or DVT_FAST_NUM_THREADS cannot be honoured.
void check_environment();

std::string shape_text(const py::array& array);
// Checks the rank and every extent that is not -1.
void check_shape(const py::array& array, const char* name, const std::vector<int64_t>& expected);

template <class T>
Array<T> new_array(std::vector<py::ssize_t> shape) {
  return Array<T>(shape);
}

inline Array<float> copy_of(const Array<float>& array) {
  auto copy = new_array<float>(std::vector<py::ssize_t>(array.shape(), array.shape() + array.ndim()));
  if (array.size() > 0)
    std::memcpy(copy.mutable_data(), array.data(), sizeof(float) * static_cast<size_t>(array.size()));
  return copy;
}

void bind_core(py::module_& m);
void bind_linalg(py::module_& m);
void bind_mic(py::module_& m);
void bind_field(py::module_& m);
void bind_hashgrid(py::module_& m);
void bind_direct(py::module_& m);
void bind_transformer(py::module_& m);
void bind_engine(py::module_& m);
void bind_engine_parts(py::module_& m);
void bind_pixels(py::module_& m);

}  // namespace dvt::bindings
