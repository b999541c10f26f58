// What devices there are and what they can do: by default one that looks like an H200.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>

#include "device.h"
#include "settings.h"
#include "streams.h"

namespace emulator {
namespace {

constexpr int kRuntimeVersion = CUDART_VERSION;
thread_local int device_of_thread = 0;

int driver_version() { return static_cast<int>(setting("DVT_EMULATOR_DRIVER", kRuntimeVersion)); }
int device_count() { return static_cast<int>(setting("DVT_EMULATOR_DEVICES", 1)); }

struct Limits {
  int arch, sms;
  size_t shared_optin, shared_per_sm;
};
Limits limits() {
  Limits l;
  l.arch = static_cast<int>(setting("DVT_EMULATOR_ARCH", 90));
  l.sms = static_cast<int>(setting("DVT_EMULATOR_SMS", 132));
  // CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
  const bool small = l.arch == 86 || l.arch == 89 || l.arch >= 120;
  l.shared_per_sm = (l.arch == 80 || l.arch == 87 ? 164 : small ? 100 : 228) * 1024;
  l.shared_optin = l.shared_per_sm - 1024;
  return l;
}

std::map<const void*, int>& shared_limits() {  // cudaFuncSetAttribute
  static auto& all = *new std::map<const void*, int>;
  return all;
}

cudaError_t valid_device(int device) {
  if (const cudaError_t error = devices_usable()) return error;
  return device >= 0 && device < device_count() ? cudaSuccess : cudaErrorInvalidDevice;
}

}  // namespace

cudaError_t devices_usable() {
  if (driver_version() < kRuntimeVersion) return cudaErrorInsufficientDriver;
  return device_count() > 0 ? cudaSuccess : cudaErrorNoDevice;
}

int current_device() { return device_of_thread; }
size_t shared_limit(const void* kernel) {
  const auto it = shared_limits().find(kernel);
  return it == shared_limits().end() ? 48 * 1024 : static_cast<size_t>(it->second);
}
int multiprocessors() { return limits().sms; }
int blocks_per_multiprocessor(int threads, size_t shared) {
  const int by_threads = 2048 / ((threads + 31) / 32 * 32);
  const int by_shared = static_cast<int>(limits().shared_per_sm / (shared + 1024));
  return std::min({by_threads, by_shared, 32});
}

}  // namespace emulator

using namespace emulator;

cudaError_t cudaDriverGetVersion(int* version) {
  *version = driver_version();
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = kRuntimeVersion;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 0;
  if (const cudaError_t error = devices_usable()) return noted(error);
  *count = device_count();
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  if (const cudaError_t error = devices_usable()) return noted(error);
  *device = device_of_thread;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (const cudaError_t error = valid_device(device)) return noted(error);
  device_of_thread = device;
  return noted(usable());
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  *can = device != peer;
  return noted(valid_device(device) ? valid_device(device) : valid_device(peer));
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0, *greatest = -5;
  return noted(usable());
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (const cudaError_t error = valid_device(device)) return noted(error);
  const Limits l = limits();
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 48 * 1024; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrClockRate: *value = 1980000; break;
    case cudaDevAttrMultiProcessorCount: *value = l.sms; break;
    case cudaDevAttrMemoryClockRate: *value = 3201000; break;
    case cudaDevAttrGlobalMemoryBusWidth: *value = 6144; break;
    case cudaDevAttrL2CacheSize: *value = 60 << 20; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrComputeCapabilityMajor: *value = l.arch / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = l.arch % 10; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = static_cast<int>(l.shared_per_sm); break;
    case cudaDevAttrMaxRegistersPerMultiprocessor: *value = 65536; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = static_cast<int>(l.shared_optin); break;
    case cudaDevAttrReservedSharedMemoryPerBlock: *value = 1024; break;
    default: *value = 1;
  }
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  if (const cudaError_t error = valid_device(device)) return noted(error);
  const Limits l = limits();
  *p = {};
  std::snprintf(p->name, sizeof p->name, "Emulated sm_%d", l.arch);
  p->uuid.bytes[0] = static_cast<char>(device);
  p->totalGlobalMem = static_cast<size_t>(setting("DVT_EMULATOR_MEMORY", 139e9));
  p->sharedMemPerBlock = 48 * 1024;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->warpSize = 32;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->totalConstMem = 65536;
  p->major = l.arch / 10, p->minor = l.arch % 10;
  p->multiProcessorCount = l.sms;
  p->canMapHostMemory = p->concurrentKernels = p->ECCEnabled = p->unifiedAddressing = p->cooperativeLaunch = 1;
  p->asyncEngineCount = 3;
  p->memoryBusWidth = 6144;
  p->l2CacheSize = 60 << 20;
  p->maxThreadsPerMultiProcessor = 2048;
  p->maxBlocksPerMultiProcessor = 32;
  p->sharedMemPerMultiprocessor = l.shared_per_sm;
  p->sharedMemPerBlockOptin = l.shared_optin;
  p->reservedSharedMemPerBlock = 1024;
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  std::lock_guard lock(runtime_mutex());
  if (const cudaError_t error = usable()) return noted(error);
  if (!kernel) return noted(cudaErrorInvalidDeviceFunction);
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value < 0 || static_cast<size_t>(value) > limits().shared_optin) return noted(cudaErrorInvalidValue);
    shared_limits()[kernel] = value;
  }
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  std::lock_guard lock(runtime_mutex());
  if (const cudaError_t error = usable()) return noted(error);
  if (!kernel) return noted(cudaErrorInvalidDeviceFunction);
  *attributes = {};
  attributes->maxThreadsPerBlock = 1024;
  attributes->numRegs = 64;
  attributes->ptxVersion = attributes->binaryVersion = limits().arch;
  attributes->maxDynamicSharedSizeBytes = static_cast<int>(shared_limit(kernel));
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel, int threads, size_t shared) {
  std::lock_guard lock(runtime_mutex());
  if (const cudaError_t error = usable()) return noted(error);
  if (!kernel) return noted(cudaErrorInvalidDeviceFunction);
  if (threads < 1 || threads > 1024) return noted(cudaErrorInvalidValue);
  *blocks = shared > shared_limit(kernel) ? 0 : blocks_per_multiprocessor(threads, shared);
  return cudaSuccess;
}
