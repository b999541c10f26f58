#include "capi/tensor.h"

#include <cinttypes>
#include <cstddef>
#include <cstdlib>

namespace dvt::capi {
namespace {

#if UINTPTR_MAX == UINT64_MAX
// DLPack's DLTensor.
static_assert(offsetof(dvt_tensor, data) == 0 && offsetof(dvt_tensor, device) == 8 &&
              offsetof(dvt_tensor, ndim) == 16 && offsetof(dvt_tensor, dtype) == 20 &&
              offsetof(dvt_tensor, shape) == 24 && offsetof(dvt_tensor, strides) == 32 &&
              offsetof(dvt_tensor, byte_offset) == 40 && sizeof(dvt_tensor) == 48);
#endif

// Processors of 64 bits give a process at most so many addresses; above them a pointer may carry a tag.
constexpr int64_t kAddresses = int64_t{1} << 56;

constexpr int32_t kManaged = 13;  // CUDA memory that a device and the CPU reach

const char* device_name(int32_t type) {
  switch (type) {
    case DVT_CPU: return "the CPU";
    case DVT_CUDA: return "CUDA";
    case DVT_CUDA_HOST: return "pinned CUDA host memory";
    case 4: return "OpenCL";
    case 7: return "Vulkan";
    case 8: return "Metal";
    case 10: return "ROCm";
    case kManaged: return "managed CUDA memory";
    case 14: return "oneAPI";
    default: return "an unknown device";
  }
}

dvt_status check_device(const dvt_tensor& tensor, const char* name, int cuda_device, bool* on_device) {
  const dvt_device given = tensor.device;
  *on_device = false;
  if (given.type == DVT_CPU || given.type == DVT_CUDA_HOST) return DVT_OK;
  if (cuda_device == kNoDevice)
    return fail(DVT_INVALID_ARGUMENT, "%s must be in memory of the CPU (device type 1), got type %d, %s", name,
                int{given.type}, device_name(given.type));
  *on_device = given.type == kManaged || (given.type == DVT_CUDA && given.id == cuda_device);
  if (*on_device) return DVT_OK;
  return fail(DVT_INVALID_ARGUMENT,
              "%s must be in memory of the session's device (type 2, id %d) or of the CPU (type 1), got type %d, %s, "
              "id %d",
              name, cuda_device, int{given.type}, device_name(given.type), int{given.id});
}

dvt_status find_dtype(const dvt_tensor& tensor, const char* name, Dtype* dtype) {
  const dvt_data_type given = tensor.dtype;
  const struct {
    int code, bits;
    Dtype dtype;
  } known[] = {{DVT_FLOAT, 32, Dtype::float32},
               {DVT_FLOAT, 16, Dtype::float16},
               {DVT_BFLOAT, 16, Dtype::bfloat16},
               {DVT_UINT, 8, Dtype::uint8}};
  for (const auto& k : known)
    if (given.lanes == 1 && given.code == k.code && given.bits == k.bits) {
      *dtype = k.dtype;
      return DVT_OK;
    }
  return fail(DVT_INVALID_ARGUMENT,
              "%s must be float32, float16, bfloat16 or uint8 (code 2, 2, 4 or 1 with 32, 16, 16 or 8 bits, 1 lane), "
              "got code %d with %d bits, %d lanes",
              name, given.code, given.bits, given.lanes);
}

// Fills in the strides, and finds how far the elements lie from the first one: [*low, *high] in bytes, the last byte of
// the last element included.
dvt_status find_layout(const dvt_tensor& tensor, const char* name, TensorView* view, int64_t* low, int64_t* high) {
  const int64_t item = size_of(view->dtype);
  int64_t contiguous = 1, first = 0, last = 0;
  bool overflow = false;
  for (int axis = view->rank - 1; axis >= 0; --axis) {
    const int64_t size = tensor.shape[axis];
    if (size < 1)
      return fail(DVT_INVALID_ARGUMENT, "%s's shape must be positive, got %" PRId64 " in dimension %d", name, size,
                  axis);
    // The stride of an axis of one element is never used: made what contiguity asks for, so that it is recognised.
    int64_t stride = tensor.strides && size > 1 ? tensor.strides[axis] : contiguous, reach = 0;
    overflow |= __builtin_mul_overflow(size - 1, stride, &reach);
    overflow |= __builtin_add_overflow(stride < 0 ? first : last, reach, stride < 0 ? &first : &last);
    view->shape[axis] = size;
    view->strides[axis] = stride;
    overflow |= __builtin_mul_overflow(contiguous, size, &contiguous);
  }
  overflow |= __builtin_mul_overflow(first, item, low) || __builtin_mul_overflow(last, item, high) ||
              __builtin_add_overflow(*high, item - 1, high);
  if (overflow || *low < -kAddresses || *high > kAddresses)
    return fail(DVT_INVALID_ARGUMENT, "%s's shape and strides reach further than any memory", name);
  return DVT_OK;
}

// Sorted by stride, each axis must step over all that the ones before it cover.
bool elements_may_overlap(const TensorView& view) {
  bool done[kMaxRank] = {};
  int64_t covered = 0;  // the largest offset of an element so far
  for (int i = 0; i < view.rank; ++i) {
    int next = -1;
    int64_t step = 0;
    for (int axis = 0; axis < view.rank; ++axis) {
      const int64_t stride = std::abs(view.strides[axis]);
      if (done[axis] || (next >= 0 && stride >= step)) continue;
      next = axis;
      step = stride;
    }
    done[next] = true;
    if (view.shape[next] == 1) continue;
    if (step <= covered) return true;
    covered += step * (view.shape[next] - 1);
  }
  return false;
}

}  // namespace

dvt_status view_tensor(const dvt_tensor* tensor, const char* name, bool written, int cuda_device, TensorView* view,
                       bool* on_device) noexcept {
  if (!tensor) return fail(DVT_INVALID_ARGUMENT, "%s must not be null", name);
  if (tensor->ndim < 1 || tensor->ndim > kMaxRank)
    return fail(DVT_INVALID_ARGUMENT, "%s must have 1 to %d dimensions, got %d", name, kMaxRank, int{tensor->ndim});
  DVT_CAPI_TRY(check_device(*tensor, name, cuda_device, on_device));
  DVT_CAPI_TRY(find_dtype(*tensor, name, &view->dtype));
  if (!tensor->shape) return fail(DVT_INVALID_ARGUMENT, "%s's shape must not be null", name);
  if (!tensor->data) return fail(DVT_INVALID_ARGUMENT, "%s's data must not be null", name);
  view->rank = tensor->ndim;
  int64_t low = 0, high = 0;
  DVT_CAPI_TRY(find_layout(*tensor, name, view, &low, &high));
  uint64_t address = 0, end = 0;
  if (tensor->byte_offset > uint64_t{kAddresses} ||
      __builtin_add_overflow(reinterpret_cast<uintptr_t>(tensor->data), tensor->byte_offset, &address) ||
      static_cast<uint64_t>(-low) > address || __builtin_add_overflow(address, static_cast<uint64_t>(high), &end) ||
      end > UINTPTR_MAX)
    return fail(DVT_INVALID_ARGUMENT, "%s's byte_offset and strides reach further than any memory", name);
  if (address % static_cast<uint64_t>(size_of(view->dtype)))
    return fail(DVT_INVALID_ARGUMENT, "%s's first element must be aligned to its %d bytes, got address %#" PRIx64, name,
                static_cast<int>(size_of(view->dtype)), address);
  view->data = reinterpret_cast<void*>(static_cast<uintptr_t>(address));
  if (written && elements_may_overlap(*view))
    return fail(DVT_INVALID_ARGUMENT, "%s's strides put several elements in one place", name);
  return DVT_OK;
}

}  // namespace dvt::capi
