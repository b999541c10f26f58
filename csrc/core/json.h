// A strict JSON reader (RFC 8259) for the headers of files that may lie: bounded in depth and in the number of values,
// so that what it takes is bounded by the text. No trailing commas, comments, NaN or keys that come twice; strings must
// be UTF-8.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"

namespace dvt {

// One value. Numbers are kept as they were written, and converted by whoever knows which range is sensible.
struct JsonValue {
  enum class Kind { null, boolean, number, string, array, object };

  Kind kind = Kind::null;
  bool boolean = false;
  std::string_view source;        // the text of this value, within the text that was read, which must outlive it
  std::string text;               // of a string, unescaped; an escaped half of a surrogate pair is U+FFFD
  std::vector<std::string> keys;  // of an object, none twice
  std::vector<JsonValue> items;   // of an array, or of an object beside `keys`

  // The item of a key, or null where there is none; looks at every key.
  const JsonValue* find(std::string_view key) const;
  // Whether this is a whole number in int64's range (2, -3; not 2.0 or 1e3), or a number in double's.
  bool to_integer(int64_t* out) const;
  bool to_double(double* out) const;
};

constexpr int kMaxJsonDepth = 32;
constexpr int64_t kMaxJsonValues = 1 << 18;

// Reads the one value that `text` holds. An error says the byte at which it is, without naming the text.
Status read_json(std::string_view text, JsonValue* out);

// A string from a file as it may stand in a message: quoted, on one line, shortened where long, always UTF-8.
std::string quoted(std::string_view text);

}  // namespace dvt
