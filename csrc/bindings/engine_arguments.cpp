#include "bindings/engine_arguments.h"

namespace dvt::bindings {

TensorView view_of(const py::array& array, const char* name, bool writable) {
  TensorView view;
  const char kind = array.dtype().kind();
  const auto size = array.itemsize();
  if (kind == 'f' && size == 4)
    view.dtype = Dtype::float32;
  else if (kind == 'f' && size == 2)
    view.dtype = Dtype::float16;
  else if (kind == 'u' && size == 1)
    view.dtype = Dtype::uint8;
  else
    raise_if_error(invalid_argument(name, " must be float32, float16 or uint8, got ",
                                    py::str(static_cast<py::object>(array.dtype())).cast<std::string>()));
  if (array.ndim() < 1 || array.ndim() > kMaxRank)
    raise_if_error(invalid_argument(name, " must have 3 or 4 dimensions, got ", array.ndim()));
  if (writable && !array.writeable()) raise_if_error(invalid_argument(name, " cannot be written to"));
  if (size > 1 && array.dtype().attr("byteorder").cast<std::string>() == ">")
    raise_if_error(invalid_argument(name, " must be in this machine's byte order"));
  view.rank = static_cast<int>(array.ndim());
  for (int i = 0; i < view.rank; ++i) {
    view.shape[i] = array.shape(i);
    if (array.strides(i) % size != 0 || reinterpret_cast<uintptr_t>(array.data()) % static_cast<size_t>(size) != 0)
      raise_if_error(invalid_argument(name, " lies across the bounds of its numbers: give a copy"));
    view.strides[i] = array.strides(i) / size;
  }
  view.data = const_cast<void*>(array.data());
  return view;
}

SessionOptions session_options(const std::string& input, std::pair<int64_t, int64_t> size,
                               std::pair<int64_t, int64_t> grid, int64_t batch, int64_t threads,
                               std::pair<int64_t, int64_t> max_source) {
  SessionOptions options;
  options.input = input == "image"        ? InputKind::image
                  : input == "normalized" ? InputKind::normalized
                                          : InputKind::features;
  std::tie(options.image_height, options.image_width) = size;
  std::tie(options.grid_height, options.grid_width) = grid;
  std::tie(options.max_source_height, options.max_source_width) = max_source;
  options.batch = batch;
  options.threads = threads;
  return options;
}

}  // namespace dvt::bindings
