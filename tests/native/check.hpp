// What the C++ clients share.
#pragma once

#include <dvt_fast.hpp>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

inline std::atomic<int> failures{0};

#define CHECK(condition)                                                                                  \
  do {                                                                                                    \
    if (!(condition)) {                                                                                   \
      std::fprintf(stderr, "%s:%d: not so: %s (%s)\n", __FILE__, __LINE__, #condition, dvt_last_error()); \
      ++failures;                                                                                         \
    }                                                                                                     \
  } while (0)

// Pixels that differ everywhere.
inline std::vector<std::uint8_t> noise(std::size_t count, std::uint32_t seed = 1) {
  std::vector<std::uint8_t> pixels(count);
  for (auto& pixel : pixels) {
    seed = seed * 1664525u + 1013904223u;
    pixel = static_cast<std::uint8_t>(seed >> 24);
  }
  return pixels;
}
