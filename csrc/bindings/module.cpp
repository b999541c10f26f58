#include "bindings/convert.h"
#include "bindings/device_array.h"

PYBIND11_MODULE(_native, m) {
  m.doc() = "Native core of dvt_fast. Not a public interface: use the functions of the package.";
  dvt::bindings::translate_exceptions();
  dvt::bindings::bind_core(m);
  dvt::bindings::bind_linalg(m);
  dvt::bindings::bind_mic(m);
  dvt::bindings::bind_field(m);
  dvt::bindings::bind_hashgrid(m);
  dvt::bindings::bind_direct(m);
  dvt::bindings::bind_transformer(m);
  dvt::bindings::bind_engine(m);
  dvt::bindings::bind_engine_parts(m);
  dvt::bindings::bind_pixels(m);
  dvt::bindings::bind_cuda(m);
  dvt::bindings::bind_cuda_direct(m);
  dvt::bindings::bind_cuda_engine(m);
  dvt::bindings::bind_cuda_hash_grid(m);
  dvt::bindings::bind_cuda_hashgrid(m);
  dvt::bindings::bind_cuda_views(m);
}
