#include <pybind11/stl.h>

#include "bindings/convert.h"
#include "core/buffer.h"
#include "core/threads.h"

#include <atomic>
#include <chrono>
#include <thread>

namespace dvt::bindings {
namespace {

// For tests. All threads of the pool meet in a task; then on the caller or on a worker the allocation of more memory
// than there is throws, while the others still work. Returns how many threads met, at most what num_threads says.
int throw_in_task(const std::string& who) {
  check_environment();
  const auto caller = std::this_thread::get_id();
  const int threads = num_threads();
  std::atomic<int> met{0};
  py::gil_scoped_release release;
  parallel_for(threads, 1, [&](int64_t, int64_t) {
    // Bounded, so that a pool that fails to come together fails the test and does not hang it.
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(2);
    ++met;
    while (met < threads && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    const bool on_caller = std::this_thread::get_id() == caller;
    if (who == (on_caller ? "caller" : "worker")) Buffer<float> too_large(int64_t{1} << 60);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  });
  return met;
}

int64_t to_int64(const py::int_& number) {
  int overflow = 0;
  const long long value = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
  return overflow > 0 ? INT64_MAX : overflow < 0 ? INT64_MIN : value;
}

}  // namespace

void bind_core(py::module_& m) {
  m.def("built_isas", [] {
    std::vector<std::string> names;
    for (Isa isa : built_isas()) names.push_back(isa_name(isa));
    return names;
  });
  m.def("isa_problem", [](const std::string& name) -> py::object {
    for (Isa isa : built_isas())
      if (name == isa_name(isa)) {
        std::string why;
        return isa_runs(isa, &why) ? py::object(py::none()) : py::object(py::str(why));
      }
    return py::str("this build does not contain it");
  });
  m.def("active_isa", [] {
    check_environment();
    return std::string(isa_name(active_isa()));
  });
  m.def("set_isa", [](const std::string& name) { raise_if_error(set_isa(name)); });
  m.def("num_threads", [] {
    raise_if_error(threads_status());
    return num_threads();
  });
  m.def("set_num_threads", [](const py::int_& n) { raise_if_error(set_num_threads(to_int64(n))); });
  m.def("throw_in_task", &throw_in_task, py::arg("who"));
}

}  // namespace dvt::bindings
