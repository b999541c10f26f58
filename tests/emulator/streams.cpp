// Streams, events and launches. An operation runs when it is enqueued, or with DVT_EMULATOR_ASYNC=1 as late as it may:
// when somebody waits for it. Then what is read too early, or freed too early, shows.
#include "streams.h"

#include <algorithm>
#include <chrono>
#include <map>

#include "device.h"
#include "scheduler.h"
#include "settings.h"

namespace emulator {
namespace {

std::set<CUstream_st*>& streams() {
  static auto& all = *new std::set<CUstream_st*>;
  return all;
}
std::set<CUevent_st*>& events() {
  static auto& all = *new std::set<CUevent_st*>;
  return all;
}

CUstream_st* default_stream() {
  static auto& all = *new std::map<int, CUstream_st*>;
  CUstream_st*& stream = all[current_device()];
  if (!stream) {
    stream = new CUstream_st;
    stream->device = current_device();
    streams().insert(stream);
  }
  return stream;
}

bool is_default(const CUstream_st* stream) { return stream == default_stream(); }

}  // namespace

CUstream_st* resolve(cudaStream_t stream) {
  if (!stream || stream == cudaStreamLegacy || stream == cudaStreamPerThread) return default_stream();
  return streams().count(stream) ? stream : nullptr;
}

void run_until(CUstream_st& stream, uint64_t position) {
  while (stream.done < position && !stream.queue.empty()) {
    const Pending operation = std::move(stream.queue.front());
    stream.queue.pop_front();
    ++stream.done;
    for (const auto& [other, their_position] : operation.after)
      if (streams().count(other)) run_until(*other, their_position);
    if (usable() != cudaSuccess) continue;
    if (const cudaError_t error = operation.run()) make_sticky(error);
  }
}

void synchronize_all() {
  for (CUstream_st* stream : std::set<CUstream_st*>(streams())) run_until(*stream, stream->enqueued);
}

cudaError_t enqueue(cudaStream_t handle, Operation operation) {
  if (const cudaError_t error = usable()) return error;
  CUstream_st* stream = resolve(handle);
  if (!stream) return cudaErrorInvalidResourceHandle;
  if (stream->capture) {
    if (stream->capture->invalidated) return cudaErrorStreamCaptureInvalidated;
    stream->capture->operations.push_back(std::move(operation));
    ++stream->captured;
    return cudaSuccess;
  }
  Pending pending = {std::move(operation), {}};
  if (is_default(stream)) {
    for (CUstream_st* other : streams()) {
      if (other->flags & cudaStreamNonBlocking || other == stream) continue;
      if (other->capture) return invalidate(*other->capture, cudaErrorStreamCaptureImplicit);
      pending.after.emplace_back(other, other->enqueued);
    }
  } else if (!(stream->flags & cudaStreamNonBlocking)) {
    pending.after.emplace_back(default_stream(), default_stream()->enqueued);
  }
  stream->queue.push_back(std::move(pending));
  ++stream->enqueued;
  if (setting("DVT_EMULATOR_ASYNC", 0) == 0) run_until(*stream, stream->enqueued);
  return cudaSuccess;
}

cudaError_t launch_kernel(const cudaLaunchConfig_t& config, const void* function, std::function<void()> body) {
  std::lock_guard lock(runtime_mutex());
  if (const cudaError_t error = usable()) return noted(error);
  if (!function) return noted(cudaErrorInvalidDeviceFunction);
  const dim3 &grid = config.gridDim, &block = config.blockDim;
  const uint64_t threads = static_cast<uint64_t>(block.x) * block.y * block.z;
  if (grid.x - 1u > 2147483646u || grid.y - 1u > 65534u || grid.z - 1u > 65534u || threads < 1 || threads > 1024 ||
      block.x > 1024 || block.y > 1024 || block.z > 64)
    return noted(cudaErrorInvalidConfiguration);
  if (config.dynamicSmemBytes > shared_limit(function)) return noted(cudaErrorInvalidValue);
  auto kernel = std::make_shared<Kernel>();
  kernel->function = function;
  kernel->body = std::move(body);
  kernel->grid = grid;
  kernel->block = block;
  kernel->shared_bytes = config.dynamicSmemBytes;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    const auto& cluster = attribute.val.clusterDim;
    if (attribute.id == cudaLaunchAttributeCooperative) kernel->cooperative = attribute.val.cooperative != 0;
    if (attribute.id == cudaLaunchAttributeClusterDimension) {
      if (cluster.x < 1 || cluster.x > 8 || cluster.y != 1 || cluster.z != 1 || grid.x % cluster.x)
        return noted(cudaErrorInvalidClusterSize);
      kernel->cluster = cluster.x;
    }
  }
  const uint64_t blocks = static_cast<uint64_t>(grid.x) * grid.y * grid.z;
  const int at_once = blocks_per_multiprocessor(static_cast<int>(threads), config.dynamicSmemBytes) * multiprocessors();
  if (kernel->cooperative && blocks > static_cast<uint64_t>(at_once)) return noted(cudaErrorCooperativeLaunchTooLarge);
  return noted(enqueue(config.stream, [kernel]() -> cudaError_t {
    if (++counts().launches == static_cast<long long>(setting("DVT_EMULATOR_FAIL_LAUNCH", 0)))
      return static_cast<cudaError_t>(static_cast<int>(setting("DVT_EMULATOR_FAIL_CODE", cudaErrorIllegalAddress)));
    return run_kernel(*kernel);
  }));
}

}  // namespace emulator

using namespace emulator;

#define EMULATOR_CALL                    \
  std::lock_guard lock(runtime_mutex()); \
  if (const cudaError_t error = usable()) return noted(error)

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
  EMULATOR_CALL;
  if (!stream || flags > cudaStreamNonBlocking) return noted(cudaErrorInvalidValue);
  *stream = new CUstream_st;
  (*stream)->device = current_device();
  (*stream)->flags = flags;
  (*stream)->priority = priority;
  streams().insert(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return cudaStreamCreateWithPriority(stream, flags, 0);
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  std::lock_guard lock(runtime_mutex());
  CUstream_st* stream = handle ? resolve(handle) : nullptr;
  if (!stream || is_default(stream)) return noted(cudaErrorInvalidResourceHandle);
  run_until(*stream, stream->enqueued);
  if (stream->capture) {
    invalidate(*stream->capture, cudaErrorStreamCaptureInvalidated);
    stream->capture->streams.erase(stream);
  }
  streams().erase(stream);
  for (CUevent_st* event : events())
    if (event->stream == stream) event->stream = nullptr;
  delete stream;
  return noted(usable());
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  EMULATOR_CALL;
  CUstream_st* stream = resolve(handle);
  if (!stream) return noted(cudaErrorInvalidResourceHandle);
  if (stream->capture) return noted(invalidate(*stream->capture, cudaErrorStreamCaptureUnsupported));
  run_until(*stream, stream->enqueued);
  return noted(usable());
}
cudaError_t cudaStreamQuery(cudaStream_t handle) {
  EMULATOR_CALL;
  CUstream_st* stream = resolve(handle);
  if (!stream) return noted(cudaErrorInvalidResourceHandle);
  if (stream->capture) return noted(invalidate(*stream->capture, cudaErrorStreamCaptureUnsupported));
  if (stream->done == stream->enqueued) return cudaSuccess;
  run_until(*stream, stream->done + 1);
  return noted(usable() ? usable() : cudaErrorNotReady);
}
cudaError_t cudaStreamGetDevice(cudaStream_t handle, int* device) {
  EMULATOR_CALL;
  CUstream_st* stream = resolve(handle);
  if (!stream) return noted(cudaErrorInvalidResourceHandle);
  *device = stream->device;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  EMULATOR_CALL;
  if (const cudaError_t refused = refuse_in_capture()) return noted(refused);
  synchronize_all();
  return noted(usable());
}
cudaError_t cudaDeviceReset() {
  std::lock_guard lock(runtime_mutex());
  synchronize_all();
  return noted(usable());
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* argument) {
  EMULATOR_CALL;
  if (!function) return noted(cudaErrorInvalidValue);
  return noted(enqueue(stream, [=] {
    function(argument);
    return cudaSuccess;
  }));
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  EMULATOR_CALL;
  if (!event) return noted(cudaErrorInvalidValue);
  *event = new CUevent_st;
  (*event)->flags = flags;
  events().insert(*event);
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  std::lock_guard lock(runtime_mutex());
  if (!events().count(event)) return noted(cudaErrorInvalidResourceHandle);
  if (event->stream && !event->capture) run_until(*event->stream, event->position);
  events().erase(event);
  delete event;
  return noted(usable());
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
  EMULATOR_CALL;
  CUstream_st* stream = resolve(handle);
  if (!stream || !events().count(event)) return noted(cudaErrorInvalidResourceHandle);
  if (stream->capture) {
    if (stream->capture->invalidated) return noted(cudaErrorStreamCaptureInvalidated);
    event->capture = stream->capture;
    event->stream = stream;
    event->position = stream->captured;
    return cudaSuccess;
  }
  const cudaError_t error = enqueue(handle, [event] {
    event->seconds = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    return cudaSuccess;
  });
  if (error) return noted(error);
  event->capture.reset();
  event->stream = stream;
  event->position = stream->enqueued;
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned) {
  EMULATOR_CALL;
  CUstream_st* stream = resolve(handle);
  if (!stream || !events().count(event)) return noted(cudaErrorInvalidResourceHandle);
  if (!event->stream) return cudaSuccess;
  if (stream->capture && stream->capture != event->capture)
    return noted(
        invalidate(*stream->capture, event->capture ? cudaErrorStreamCaptureMerge : cudaErrorStreamCaptureIsolation));
  if (event->capture) {
    CUstream_st* other = event->stream;
    if (other->capture != event->capture) return noted(cudaErrorCapturedEvent);  // of a capture that has ended
    if (!stream->capture) {
      stream->capture = event->capture;
      stream->capture->streams.insert(stream);
      stream->captured = stream->joined = 0;
    }
    if (other != stream && event->position > other->joined) {
      other->joined = event->position;
      ++stream->captured;  // to be waited for in its turn
    }
    return cudaSuccess;
  }
  if (event->stream == stream) return cudaSuccess;
  const auto after = std::make_pair(event->stream, event->position);
  return noted(enqueue(handle, [after] {
    if (streams().count(after.first)) run_until(*after.first, after.second);
    return cudaSuccess;
  }));
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  EMULATOR_CALL;
  if (!events().count(event)) return noted(cudaErrorInvalidResourceHandle);
  if (event->capture) return noted(cudaErrorCapturedEvent);
  if (event->stream) run_until(*event->stream, event->position);
  return noted(usable());
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  EMULATOR_CALL;
  if (!events().count(event)) return noted(cudaErrorInvalidResourceHandle);
  if (event->capture) return noted(cudaErrorCapturedEvent);
  if (!event->stream || event->stream->done >= event->position) return cudaSuccess;
  run_until(*event->stream, event->stream->done + 1);
  return noted(usable() ? usable() : cudaErrorNotReady);
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  EMULATOR_CALL;
  if (!events().count(start) || !events().count(end)) return noted(cudaErrorInvalidResourceHandle);
  for (cudaEvent_t event : {start, end}) {
    if (event->flags & cudaEventDisableTiming || !event->stream || event->capture)
      return noted(cudaErrorInvalidResourceHandle);
    if (event->stream->done < event->position) return noted(cudaErrorNotReady);
  }
  *milliseconds = static_cast<float>(1e3 * (end->seconds - start->seconds));
  return cudaSuccess;
}
