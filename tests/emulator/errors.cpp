// Errors as the CUDA runtime keeps them: the last one of each host thread, and the sticky one of the process.
#include <cstring>

#include "device.h"
#include "settings.h"
#include "streams.h"

namespace emulator {
namespace {
cudaError_t sticky = cudaSuccess;
thread_local cudaError_t last = cudaSuccess;
}  // namespace

std::recursive_mutex& runtime_mutex() {
  static auto& mutex = *new std::recursive_mutex;
  return mutex;
}

Counts& counts() {
  static Counts all;
  return all;
}

cudaError_t usable() {
  std::lock_guard lock(runtime_mutex());
  if (const cudaError_t error = devices_usable()) return error;
  return sticky;
}

cudaError_t noted(cudaError_t error) {
  if (error != cudaSuccess && error != cudaErrorNotReady) last = error;
  return error;
}

void make_sticky(cudaError_t error) {
  std::lock_guard lock(runtime_mutex());
  if (!sticky) sticky = error;
}

}  // namespace emulator

using namespace emulator;

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
#define EMULATOR_NAME(name, code, text) \
  case name: return #name;
    EMULATOR_ERRORS(EMULATOR_NAME)
  }
  return "unrecognized error code";
}
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
#define EMULATOR_TEXT(name, code, text) \
  case name: return text;
    EMULATOR_ERRORS(EMULATOR_TEXT)
  }
  return "unrecognized error code";
}
cudaError_t cudaPeekAtLastError() {
  std::lock_guard lock(runtime_mutex());
  return sticky ? sticky : last;
}
cudaError_t cudaGetLastError() {
  const cudaError_t error = cudaPeekAtLastError();
  last = cudaSuccess;
  return error;
}

long long dvt_emulator_count(const char* what) {
  std::lock_guard lock(runtime_mutex());
  if (!std::strcmp(what, "launches")) return counts().launches;
  if (!std::strcmp(what, "allocations")) return counts().allocations;
  if (!std::strcmp(what, "bytes")) return counts().bytes;
  if (!std::strcmp(what, "copies")) return counts().copies;
  return -1;
}
void dvt_emulator_synchronize() {
  std::lock_guard lock(runtime_mutex());
  synchronize_all();
}
void dvt_emulator_reset() {
  std::lock_guard lock(runtime_mutex());
  const long long bytes = counts().bytes;
  counts() = {};
  counts().bytes = bytes;
  sticky = last = cudaSuccess;
}
