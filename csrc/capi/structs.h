// Structs that grow: a caller compiled with another version of dvt_fast.h has fewer fields or more than the library.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "capi/errors.h"

// Bytes of `type` up to and with `field`.
#define DVT_SIZE_UP_TO(type, field) (offsetof(type, field) + sizeof(type::field))

namespace dvt::capi {

// Of each struct, the size in the first version that had it: what every caller must bring.
template <class T>
constexpr size_t kFirstSize = 0;
template <>
inline constexpr size_t kFirstSize<dvt_model_options> = DVT_SIZE_UP_TO(dvt_model_options, reserved);
template <>
inline constexpr size_t kFirstSize<dvt_model_info> = DVT_SIZE_UP_TO(dvt_model_info, source);
template <>
inline constexpr size_t kFirstSize<dvt_session_options> = DVT_SIZE_UP_TO(dvt_session_options, max_source_width);
template <>
inline constexpr size_t kFirstSize<dvt_session_info> = DVT_SIZE_UP_TO(dvt_session_info, workspace_alignment);
template <>
inline constexpr size_t kFirstSize<dvt_run_args> = DVT_SIZE_UP_TO(dvt_run_args, workspace_bytes);

// A larger struct_size is a field that was never set, not a version to come.
constexpr size_t kLargestSize = 4096;

template <class T>
dvt_status check_struct(const T* given, const char* name) {
  static_assert(kFirstSize<T> > 0 && sizeof(T) <= kLargestSize);
  if (!given) return fail(DVT_INVALID_ARGUMENT, "%s must not be null", name);
  if (given->struct_size < kFirstSize<T> || given->struct_size > kLargestSize)
    return fail(DVT_INVALID_ARGUMENT, "%s->struct_size must be set to sizeof the struct, %zu, got %zu", name, sizeof(T),
                given->struct_size);
  return DVT_OK;
}

// The caller's struct in this version: what it lacks is zero; what it has beyond must be zero, that is, not be used.
template <class T>
dvt_status read_struct(const T* given, const char* name, T* out) {
  DVT_CAPI_TRY(check_struct(given, name));
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  for (size_t i = sizeof(T); i < given->struct_size; ++i)
    if (bytes[i])
      return fail(DVT_UNSUPPORTED, "%s sets a field that this library, version %s, does not have", name, DVT_VERSION);
  *out = T{};
  std::memcpy(out, given, std::min(sizeof(T), given->struct_size));
  return DVT_OK;
}

// As much of `info` as the caller's struct has room for; its struct_size stays, what it has beyond becomes zero.
template <class T>
dvt_status write_struct(const T& info, const char* name, T* out) {
  DVT_CAPI_TRY(check_struct(out, name));
  const size_t size = out->struct_size;
  std::memset(static_cast<void*>(out), 0, size);
  std::memcpy(static_cast<void*>(out), &info, std::min(sizeof(T), size));
  out->struct_size = size;
  return DVT_OK;
}

}  // namespace dvt::capi
