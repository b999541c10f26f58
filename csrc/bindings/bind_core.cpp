#include <pybind11/stl.h>

#include "bindings/convert.h"
#include "core/threads.h"

namespace dvt::bindings {

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
    check_isa();
    return std::string(isa_name(active_isa()));
  });
  m.def("set_isa", [](const std::string& name) { raise_if_error(set_isa(name)); });
  m.def("num_threads", &num_threads);
  m.def("set_num_threads", &set_num_threads);
}

}  // namespace dvt::bindings
