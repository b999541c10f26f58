// Device and pinned memory: allocations of the host, each with its own guards, and copies between them.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "device.h"
#include "fiber.h"
#include "settings.h"
#include "streams.h"

namespace emulator {
namespace {

constexpr size_t kGuard = EMULATOR_ASAN ? 0 : 256;  // bytes behind an allocation, watched; AddressSanitizer has its own
constexpr unsigned char kGuardByte = 0xa5;

struct Allocation {
  size_t bytes = 0;
  cudaMemoryType type = cudaMemoryTypeDevice;
  int device = 0;
  bool registered = false;  // by cudaHostRegister
};

std::map<const char*, Allocation>& allocations() {
  static auto& all = *new std::map<const char*, Allocation>;
  return all;
}

// The allocation that `p` points into.
const std::pair<const char* const, Allocation>* find(const void* p) {
  auto it = allocations().upper_bound(static_cast<const char*>(p));
  if (it == allocations().begin()) return nullptr;
  --it;
  return static_cast<const char*>(p) < it->first + std::max<size_t>(it->second.bytes, 1) ? &*it : nullptr;
}

size_t total_bytes() { return static_cast<size_t>(setting("DVT_EMULATOR_MEMORY", 139e9)); }

cudaError_t allocate(void** p, size_t bytes, cudaMemoryType type) {
  if (const cudaError_t error = usable()) return error;
  if (!p) return cudaErrorInvalidValue;
  *p = nullptr;
  if (bytes == 0) return cudaSuccess;
  if (type == cudaMemoryTypeDevice) {
    ++counts().allocations;
    if (counts().allocations == static_cast<long long>(setting("DVT_EMULATOR_FAIL_MALLOC", 0)))
      return cudaErrorMemoryAllocation;
    const size_t free = total_bytes() - std::min(total_bytes(), static_cast<size_t>(counts().bytes));
    if (bytes > free) return cudaErrorMemoryAllocation;
  }
  if (bytes > SIZE_MAX / 2 || posix_memalign(p, 256, bytes + kGuard)) {
    *p = nullptr;
    return cudaErrorMemoryAllocation;
  }
  std::memset(*p, 0xff, bytes);
  std::memset(static_cast<char*>(*p) + bytes, kGuardByte, kGuard);
  allocations()[static_cast<char*>(*p)] = {bytes, type, current_device(), false};
  if (type == cudaMemoryTypeDevice) counts().bytes += static_cast<long long>(bytes);
  return cudaSuccess;
}

// Returns what is wrong with `p`; a write behind its end is an error of some kernel.
cudaError_t release(void* p, bool device) {
  const auto it = allocations().find(static_cast<char*>(p));
  if (it == allocations().end() || (it->second.type == cudaMemoryTypeDevice) != device || it->second.registered)
    return cudaErrorInvalidValue;
  const auto* guard = static_cast<const unsigned char*>(p) + it->second.bytes;
  for (size_t i = 0; i < kGuard; ++i)
    if (guard[i] != kGuardByte) {
      std::fprintf(stderr, "emulator: a kernel wrote byte %zu behind an allocation of %zu bytes\n", i,
                   it->second.bytes);
      make_sticky(cudaErrorIllegalAddress);
      break;
    }
  if (device) counts().bytes -= static_cast<long long>(it->second.bytes);
  allocations().erase(it);
  std::free(p);
  return cudaSuccess;
}

// Whether [p, p + bytes) lies within the allocation that `p` points into, where it points into one.
bool within(const void* p, size_t bytes) {
  const auto* allocation = find(p);
  return !allocation || static_cast<const char*>(p) + bytes <= allocation->first + allocation->second.bytes;
}

cudaError_t copy_rows(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height,
                      cudaMemcpyKind kind, cudaStream_t stream) {
  if (const cudaError_t error = usable()) return error;
  if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault) return cudaErrorInvalidMemcpyDirection;
  if (width == 0 || height == 0) return cudaSuccess;
  if (!to || !from || to_pitch < width || from_pitch < width) return cudaErrorInvalidValue;
  const size_t last = height - 1;
  if (!within(to, last * to_pitch + width) || !within(from, last * from_pitch + width)) return cudaErrorInvalidValue;
  // A pointer to pinned memory may be used for either; one that nobody allocated is taken for what the call says.
  const auto is = [](const void* p, cudaMemoryType type) {
    const auto* allocation = find(p);
    return allocation && allocation->second.type == type;
  };
  if ((kind == cudaMemcpyHostToHost || kind == cudaMemcpyHostToDevice) && is(from, cudaMemoryTypeDevice))
    return cudaErrorInvalidValue;
  if ((kind == cudaMemcpyHostToHost || kind == cudaMemcpyDeviceToHost) && is(to, cudaMemoryTypeDevice))
    return cudaErrorInvalidValue;
  ++counts().copies;
  return enqueue(stream, [=] {
    for (size_t row = 0; row < height; ++row)
      std::memmove(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch, width);
    return cudaSuccess;
  });
}

cudaError_t finished(cudaError_t error) {
  if (error) return error;
  synchronize_all();
  return usable();
}

}  // namespace
}  // namespace emulator

using namespace emulator;

#define EMULATOR_CALL std::lock_guard lock(runtime_mutex())
#define EMULATOR_NOT_IN_CAPTURE \
  if (const cudaError_t refused = refuse_in_capture()) return noted(refused)

cudaError_t cudaMalloc(void** p, size_t bytes) {
  EMULATOR_CALL;
  EMULATOR_NOT_IN_CAPTURE;
  return noted(allocate(p, bytes, cudaMemoryTypeDevice));
}
cudaError_t cudaMallocAsync(void** p, size_t bytes, cudaStream_t) {
  EMULATOR_CALL;
  EMULATOR_NOT_IN_CAPTURE;
  return noted(allocate(p, bytes, cudaMemoryTypeDevice));
}
cudaError_t cudaFree(void* p) {
  EMULATOR_CALL;
  EMULATOR_NOT_IN_CAPTURE;
  synchronize_all();
  if (p && usable() == cudaSuccess) return noted(release(p, true));
  if (p) release(p, true);  // a process that has failed gives its memory back all the same
  return noted(usable());
}
cudaError_t cudaFreeAsync(void* p, cudaStream_t stream) {
  EMULATOR_CALL;
  if (const cudaError_t error = usable()) return noted(error);
  if (!allocations().count(static_cast<char*>(p))) return noted(cudaErrorInvalidValue);
  return noted(enqueue(stream, [p] { return release(p, true); }));
}
cudaError_t cudaMallocHost(void** p, size_t bytes) {
  EMULATOR_CALL;
  EMULATOR_NOT_IN_CAPTURE;
  return noted(allocate(p, bytes, cudaMemoryTypeHost));
}
cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned) { return cudaMallocHost(p, bytes); }
cudaError_t cudaFreeHost(void* p) {
  EMULATOR_CALL;
  EMULATOR_NOT_IN_CAPTURE;
  synchronize_all();
  return noted(p ? release(p, false) : cudaSuccess);
}
cudaError_t cudaHostRegister(void* p, size_t bytes, unsigned) {
  EMULATOR_CALL;
  if (const cudaError_t error = usable()) return noted(error);
  if (!p || !bytes || find(p)) return noted(cudaErrorInvalidValue);
  allocations()[static_cast<char*>(p)] = {bytes, cudaMemoryTypeHost, current_device(), true};
  return cudaSuccess;
}
cudaError_t cudaHostUnregister(void* p) {
  EMULATOR_CALL;
  const auto it = allocations().find(static_cast<char*>(p));
  if (it == allocations().end() || !it->second.registered) return noted(cudaErrorInvalidValue);
  allocations().erase(it);
  return noted(usable());
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  EMULATOR_CALL;
  if (const cudaError_t error = usable()) return noted(error);
  *total = total_bytes();
  *free = *total - std::min(*total, static_cast<size_t>(counts().bytes));
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* p) {
  EMULATOR_CALL;
  if (const cudaError_t error = usable()) return noted(error);
  *attributes = {};
  attributes->device = -2;
  if (const auto* allocation = find(p)) {
    attributes->type = allocation->second.type;
    attributes->device = allocation->second.device;
    attributes->devicePointer = const_cast<void*>(p);
    if (allocation->second.type == cudaMemoryTypeHost) attributes->hostPointer = const_cast<void*>(p);
  } else {
    attributes->hostPointer = const_cast<void*>(p);
  }
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  EMULATOR_CALL;
  return noted(copy_rows(to, bytes, from, bytes, bytes, 1, kind, stream));
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  EMULATOR_CALL;
  EMULATOR_NOT_IN_CAPTURE;
  return noted(finished(copy_rows(to, bytes, from, bytes, bytes, 1, kind, nullptr)));
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  EMULATOR_CALL;
  return noted(copy_rows(to, to_pitch, from, from_pitch, width, height, kind, stream));
}
cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height,
                         cudaMemcpyKind kind) {
  EMULATOR_CALL;
  EMULATOR_NOT_IN_CAPTURE;
  return noted(finished(copy_rows(to, to_pitch, from, from_pitch, width, height, kind, nullptr)));
}
cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t stream) {
  EMULATOR_CALL;
  if (const cudaError_t error = usable()) return noted(error);
  if (bytes == 0) return cudaSuccess;
  if (!p || !within(p, bytes)) return noted(cudaErrorInvalidValue);
  return noted(enqueue(stream, [=] {
    std::memset(p, value, bytes);
    return cudaSuccess;
  }));
}
cudaError_t cudaMemset(void* p, int value, size_t bytes) {
  EMULATOR_CALL;
  EMULATOR_NOT_IN_CAPTURE;
  return noted(finished(cudaMemsetAsync(p, value, bytes, nullptr)));
}
