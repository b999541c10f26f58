// A status is a code and one sentence: what was expected, what came. Nothing in the core aborts or prints, and
// arguments and data that cannot be used are statuses. Two things are thrown, because they can happen anywhere:
// std::bad_alloc (buffer.h) and std::system_error (threads that cannot be started); threads.h carries them from a task
// to its caller. The bindings turn all of it into Python exceptions, a C API turns it into error codes.
#pragma once

#include <string>
#include <utility>

namespace dvt {

enum class StatusCode {
  ok = 0,
  invalid_argument,
  non_finite,
  unsupported,
  cancelled,
  busy,
  out_of_memory,
  device_failed,
  internal
};

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == StatusCode::ok; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  StatusCode code_ = StatusCode::ok;
  std::string message_;
};

// Joins its arguments into one string: format("got ", n, " rows").
std::string format_number(double value);
inline std::string to_text(const char* text) { return text; }
inline std::string to_text(char* text) { return text; }
inline std::string to_text(const std::string& text) { return text; }
inline std::string to_text(double value) { return format_number(value); }
inline std::string to_text(float value) { return format_number(value); }
template <class Integer>
std::string to_text(Integer value) {
  return std::to_string(value);
}
template <class... Args>
std::string format(const Args&... args) {
  std::string text;
  ((text += to_text(args)), ...);
  return text;
}

template <class... Args>
Status invalid_argument(const Args&... args) {
  return Status(StatusCode::invalid_argument, format(args...));
}
template <class... Args>
Status non_finite(const Args&... args) {
  return Status(StatusCode::non_finite, format(args...));
}

}  // namespace dvt

#define DVT_RETURN_IF_ERROR(expression)        \
  do {                                         \
    ::dvt::Status dvt_status_ = (expression);  \
    if (!dvt_status_.ok()) return dvt_status_; \
  } while (0)
