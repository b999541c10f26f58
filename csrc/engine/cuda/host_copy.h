// Tensors of main memory that are not contiguous, for copies to and from a device.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "core/tensor.h"

namespace dvt::cuda {

inline int64_t bytes_of(const TensorView& view) {
  int64_t bytes = size_of(view.dtype);
  for (int axis = 0; axis < view.rank; ++axis) bytes *= view.shape[axis];
  return bytes;
}

// A view of the same type and shape without gaps, and without data.
inline TensorView contiguous_like(const TensorView& view) {
  TensorView like = view;
  like.data = nullptr;
  int64_t stride = 1;
  for (int axis = view.rank - 1; axis >= 0; --axis) {
    like.strides[axis] = stride;
    stride *= view.shape[axis];
  }
  return like;
}

inline bool is_contiguous(const TensorView& view) {
  const TensorView like = contiguous_like(view);
  for (int axis = 0; axis < view.rank; ++axis)
    if (view.shape[axis] > 1 && view.strides[axis] != like.strides[axis]) return false;
  return true;
}

// visit(element, bytes from the first one) of each element, in order.
template <class Visit>
void for_elements(const TensorView& view, const Visit& visit) {
  int64_t shape[kMaxRank], strides[kMaxRank];
  for (int axis = 0; axis < kMaxRank; ++axis) {  // with axes of one before the first
    const int from = axis - (kMaxRank - view.rank);
    shape[axis] = from < 0 ? 1 : view.shape[from];
    strides[axis] = from < 0 ? 0 : view.strides[from] * size_of(view.dtype);
  }
  int64_t element = 0;
  for (int64_t a = 0; a < shape[0]; ++a)
    for (int64_t b = 0; b < shape[1]; ++b)
      for (int64_t c = 0; c < shape[2]; ++c)
        for (int64_t d = 0; d < shape[3]; ++d)
          visit(element++, a * strides[0] + b * strides[1] + c * strides[2] + d * strides[3]);
}

// The elements without gaps: where they are, if there are none, else in `memory`.
inline const void* pack(const TensorView& view, std::vector<char>* memory) {
  if (is_contiguous(view)) return view.data;
  const size_t size = static_cast<size_t>(size_of(view.dtype));
  memory->resize(static_cast<size_t>(bytes_of(view)));
  for_elements(view, [&](int64_t element, int64_t offset) {
    std::memcpy(memory->data() + static_cast<size_t>(element) * size, static_cast<const char*>(view.data) + offset,
                size);
  });
  return memory->data();
}

// And back.
inline void unpack(const char* from, const TensorView& view) {
  const size_t size = static_cast<size_t>(size_of(view.dtype));
  for_elements(view, [&](int64_t element, int64_t offset) {
    std::memcpy(static_cast<char*>(view.data) + offset, from + static_cast<size_t>(element) * size, size);
  });
}

}  // namespace dvt::cuda
