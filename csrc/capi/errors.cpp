#include "capi/errors.h"

#include <cstdarg>
#include <cstdio>

namespace dvt::capi {
namespace {

thread_local char last_error[1024] = "";

dvt_status code_of(StatusCode code) {
  switch (code) {
    case StatusCode::ok: return DVT_OK;
    case StatusCode::invalid_argument: return DVT_INVALID_ARGUMENT;
    case StatusCode::non_finite: return DVT_NON_FINITE;
    case StatusCode::unsupported: return DVT_UNSUPPORTED;
    case StatusCode::busy: return DVT_BUSY;
    case StatusCode::out_of_memory: return DVT_OUT_OF_MEMORY;
    case StatusCode::device_failed: return DVT_DEVICE_FAILED;
    case StatusCode::cancelled:
    case StatusCode::internal: break;
  }
  return DVT_INTERNAL;
}

}  // namespace

dvt_status fail(dvt_status code, const char* format, ...) noexcept {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(last_error, sizeof last_error, format, arguments);
  va_end(arguments);
  return code;
}

dvt_status from_status(const Status& status) noexcept {
  if (status.ok()) return DVT_OK;
  return fail(code_of(status.code()), "%s", status.message().c_str());
}

}  // namespace dvt::capi

const char* dvt_last_error(void) { return dvt::capi::last_error; }

const char* dvt_status_name(dvt_status status) {
  switch (status) {
    case DVT_OK: return "DVT_OK";
    case DVT_INVALID_ARGUMENT: return "DVT_INVALID_ARGUMENT";
    case DVT_NON_FINITE: return "DVT_NON_FINITE";
    case DVT_UNSUPPORTED: return "DVT_UNSUPPORTED";
    case DVT_BUSY: return "DVT_BUSY";
    case DVT_OUT_OF_MEMORY: return "DVT_OUT_OF_MEMORY";
    case DVT_INTERNAL: return "DVT_INTERNAL";
    case DVT_DEVICE_FAILED: return "DVT_DEVICE_FAILED";
    default: return "unknown";
  }
}
