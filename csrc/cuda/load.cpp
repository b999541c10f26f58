#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "cuda/backend.h"

namespace dvt::cuda {
namespace {

constexpr char kLibrary[] = "libdvt_fast_cuda.so";

// The folder of the library or module that this code is in.
std::string own_folder() {
  Dl_info info;
  if (!dladdr(reinterpret_cast<const void*>(&own_folder), &info) || !info.dli_fname) return "";
  const std::string path = info.dli_fname;
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash);
}

struct Loaded {
  const Backend* backend = nullptr;
  Status status;
};

Loaded load_from(const std::string& path) {
  // Not closed again: the CUDA runtime registers what must outlive every object.
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle)
    return {nullptr, Status(StatusCode::unsupported, format("the CUDA library cannot be loaded: ", dlerror()))};
  const auto entry = reinterpret_cast<BackendEntry>(dlsym(handle, "dvt_cuda_backend"));
  const Backend* backend = entry ? entry(DVT_BACKEND_ABI) : nullptr;
  if (!entry) return {nullptr, Status(StatusCode::unsupported, format(path, " is no CUDA library of dvt_fast"))};
  if (!backend)
    return {nullptr,
            Status(StatusCode::unsupported,
                   format(path, " is of another build of dvt_fast than the rest: build both again, or delete it"))};
  return {backend, Status()};
}

Loaded load() {
  const char* named = std::getenv("DVT_FAST_CUDA_LIBRARY");
  if (named && *named) return load_from(named);
  // Beside the C library, or in the package's lib beside the Python module.
  for (const char* part : {"/", "/lib/"}) {
    const std::string path = own_folder() + part + kLibrary;
    if (access(path.c_str(), R_OK) == 0) return load_from(path);
  }
  return {nullptr,
          Status(StatusCode::unsupported,
                 "this build computes on the CPU only: build it again where nvcc is found (CUDA_HOME or PATH)")};
}

}  // namespace

Status load_backend(const Backend** out) {
  static const Loaded loaded = load();
  *out = loaded.backend;
  return loaded.status;
}

}  // namespace dvt::cuda
