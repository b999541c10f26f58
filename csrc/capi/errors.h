// Statuses and exceptions of the core to the codes of the C API, with their sentence kept for the calling thread.
#pragma once

#include "core/buffer.h"
#include "core/status.h"
#include "include/dvt_fast.h"

#include <exception>
#include <new>

namespace dvt::capi {

// Keeps a sentence, cut to what fits a fixed buffer: failing allocates nothing either. Returns `code`.
__attribute__((format(printf, 2, 3))) dvt_status fail(dvt_status code, const char* format, ...) noexcept;

dvt_status from_status(const Status& status) noexcept;

// Runs `body`, which returns a dvt_status; nothing that it throws gets out.
template <class Body>
dvt_status guarded(Body&& body) noexcept {
  try {
    return body();
  } catch (const std::bad_alloc& error) {
    return fail(DVT_OUT_OF_MEMORY, "%s", dynamic_cast<const OutOfMemory*>(&error) ? error.what() : "not enough memory");
  } catch (const std::exception& error) {
    return fail(DVT_INTERNAL, "%s", error.what());
  } catch (...) {
    return fail(DVT_INTERNAL, "an exception of an unknown type");
  }
}

}  // namespace dvt::capi

#define DVT_CAPI_TRY(expression)               \
  do {                                         \
    const dvt_status dvt_code_ = (expression); \
    if (dvt_code_ != DVT_OK) return dvt_code_; \
  } while (0)
