// A small stream of random numbers that is the same on every machine, and on the CPU and the GPU: SplitMix64 (Steele,
// Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014). Streams of one seed are independent, and the
// n-th number of a stream can be had without those before it: a GPU's threads each take their own.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/host_device.h"

namespace dvt {

class Random {
 public:
  DVT_HOST_DEVICE_MEMBER Random(uint64_t seed, uint64_t stream) : state_(mix(seed) ^ mix(~stream)) {}

  // Leaves out the next n numbers.
  DVT_HOST_DEVICE_MEMBER void skip(uint64_t n) { state_ += n * kStride; }

  DVT_HOST_DEVICE_MEMBER uint64_t bits() { return mix(state_ += kStride); }
  // In [0, n).
  DVT_HOST_DEVICE_MEMBER int64_t index(int64_t n) {
    return static_cast<int64_t>(static_cast<unsigned __int128>(bits()) * static_cast<uint64_t>(n) >> 64);
  }
  // In [0, 1).
  DVT_HOST_DEVICE_MEMBER float uniform() { return static_cast<float>(bits() >> 40) * 0x1p-24f; }
  float uniform(float low, float high) { return low + (high - low) * uniform(); }
  // Box and Muller, in double and rounded once.
  float normal() {
    const double u = 1.0 - static_cast<double>(bits() >> 11) * 0x1p-53;
    const double angle = static_cast<double>(bits() >> 11) * 0x1p-53;
    return static_cast<float>(std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * 3.14159265358979323846 * angle));
  }

 private:
  static constexpr uint64_t kStride = 0x9e3779b97f4a7c15u;
  DVT_HOST_DEVICE_MEMBER static uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  uint64_t state_;
};

}  // namespace dvt
