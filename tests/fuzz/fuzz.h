// What the fuzz targets share.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "core/status.h"

// Stops the process, which is how a target tells of a finding.
#define FUZZ_REQUIRE(condition)                                                    \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                \
    }                                                                              \
  } while (0)

// Whether a text is UTF-8 without control characters: it can be printed on one line, and Python can read it.
inline bool is_printable(const std::string& text) {
  int following = 0;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if ((byte & 0xc0) == 0x80) {
      if (--following < 0) return false;
      continue;
    }
    if (following > 0 || byte < ' ' || byte == 0x7f || byte >= 0xf8) return false;
    following = byte >= 0xf0 ? 3 : byte >= 0xe0 ? 2 : byte >= 0xc0 ? 1 : 0;
  }
  return following == 0;
}

// An error is a sentence.
inline void require_sentence(const dvt::Status& status) {
  FUZZ_REQUIRE(!status.message().empty() && status.message().size() < 600);
  FUZZ_REQUIRE(is_printable(status.message()));
}
