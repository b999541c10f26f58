// What concerns the library as a whole: its version, its instruction set, the environment.
#include <string_view>

#include "capi/handles.h"
#include "core/isa.h"
#include "core/threads.h"

static_assert(std::string_view(DVT_VERSION) == DVT_FAST_VERSION,
              "csrc/include/dvt_fast.h names another version than dvt_fast/__init__.py");

namespace dvt::capi {

dvt_status check_environment() {
  DVT_CAPI_TRY(from_status(isa_status()));
  return from_status(threads_status());
}

}  // namespace dvt::capi

using namespace dvt::capi;

const char* dvt_version(void) { return DVT_VERSION; }

dvt_status dvt_isa_get(const char** name) {
  return guarded([&]() -> dvt_status {
    if (!name) return fail(DVT_INVALID_ARGUMENT, "name, where the answer is put, must not be null");
    *name = nullptr;
    DVT_CAPI_TRY(from_status(dvt::isa_status()));
    *name = dvt::isa_name(dvt::active_isa());
    return DVT_OK;
  });
}

dvt_status dvt_isa_check(const char* name) {
  return guarded([&]() -> dvt_status {
    if (!name) return fail(DVT_INVALID_ARGUMENT, "name must not be null");
    return from_status(dvt::check_isa(name));
  });
}

dvt_status dvt_isa_set(const char* name) {
  return guarded([&]() -> dvt_status {
    if (!name) return fail(DVT_INVALID_ARGUMENT, "name must not be null");
    if (const int live = live_handles.load())
      return fail(DVT_BUSY, "the instruction set cannot change while models and sessions exist, and %d do", live);
    return from_status(dvt::set_isa(name));
  });
}
