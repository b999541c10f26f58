#include "bindings/convert.h"

#include <new>
#include <system_error>

#include "core/buffer.h"
#include "core/threads.h"

namespace dvt::bindings {
namespace {

void set_error(const char* type, const char* message) {
  const py::object exception = py::module_::import("dvt_fast.errors").attr(type);
  PyErr_SetString(exception.ptr(), message);
}

}  // namespace

void raise_if_error(const Status& status) {
  if (status.ok()) return;
  const char* type = "DvtError";
  switch (status.code()) {
    case StatusCode::invalid_argument: type = "InputError"; break;
    case StatusCode::non_finite: type = "NonFiniteError"; break;
    case StatusCode::cancelled: type = "Cancelled"; break;
    case StatusCode::unsupported: type = "UnsupportedError"; break;
    case StatusCode::out_of_memory: type = "OutOfMemoryError"; break;
    case StatusCode::device_failed: type = "DeviceError"; break;
    default: break;
  }
  set_error(type, status.message().c_str());
  throw py::error_already_set();
}

void translate_exceptions() {
  py::register_local_exception_translator([](std::exception_ptr exception) {
    try {
      if (exception) std::rethrow_exception(exception);
    } catch (const OutOfMemory& error) {
      set_error("DvtError", error.what());
    } catch (const std::bad_alloc&) {
      set_error("DvtError", "not enough memory");
    } catch (const std::system_error& error) {
      set_error("DvtError", error.what());
    }
  });
}

void check_environment() {
  raise_if_error(isa_status());
  raise_if_error(threads_status());
}

std::string shape_text(const py::array& array) {
  std::string text = "(";
  for (py::ssize_t i = 0; i < array.ndim(); ++i) text += (i ? ", " : "") + std::to_string(array.shape(i));
  return text + (array.ndim() == 1 ? ",)" : ")");
}

void check_shape(const py::array& array, const char* name, const std::vector<int64_t>& expected) {
  bool fits = array.ndim() == static_cast<py::ssize_t>(expected.size());
  for (size_t i = 0; fits && i < expected.size(); ++i)
    fits = expected[i] < 0 || array.shape(static_cast<py::ssize_t>(i)) == expected[i];
  if (fits) return;
  std::string text = "(";
  for (size_t i = 0; i < expected.size(); ++i)
    text += (i ? ", " : "") + (expected[i] < 0 ? std::string("*") : std::to_string(expected[i]));
  raise_if_error(invalid_argument(name, " must have shape ", text, "), got ", shape_text(array)));
}

}  // namespace dvt::bindings
