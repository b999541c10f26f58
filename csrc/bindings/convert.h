// What every binding needs: arrays in, arrays out, statuses to exceptions.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "core/isa.h"
#include "core/status.h"

namespace dvt::bindings {

namespace py = pybind11;

// Arrays arrive C-contiguous in the right dtype (the Python side sees to it, and copies only where it must);
// anything else is refused by pybind11 rather than converted behind the caller's back.
template <class T>
using Array = py::array_t<T, py::array::c_style>;

// Raises the Python exception of a status: InputError, NonFiniteError, Cancelled, or DvtError.
void raise_if_error(const Status& status);
// Refuses to run when DVT_FAST_ISA names a set that this machine cannot run.
void check_isa();

std::string shape_text(const py::array& array);
// Checks the rank and every extent that is not -1.
void check_shape(const py::array& array, const char* name, const std::vector<int64_t>& expected);

template <class T>
Array<T> new_array(std::vector<py::ssize_t> shape) {
  return Array<T>(shape);
}

void bind_core(py::module_& m);
void bind_linalg(py::module_& m);
void bind_field(py::module_& m);
void bind_hashgrid(py::module_& m);
void bind_direct(py::module_& m);

}  // namespace dvt::bindings
