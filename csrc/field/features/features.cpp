#include "field/features/features.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "core/threads.h"

namespace dvt {

void gather_features(const Features& features, const int64_t* index, int64_t n, float* out) {
  const int64_t channels = features.channels;
  parallel_for(n, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = index[i] * channels;
      float* to = out + i * channels;
      if (features.half)
        features_kernels().widen(static_cast<const uint16_t*>(features.data) + at, channels, to);
      else
        std::memcpy(to, static_cast<const float*>(features.data) + at, static_cast<size_t>(channels) * sizeof(float));
    }
  });
}

int64_t first_non_finite(const Features& features) {
  constexpr int64_t kChunk = 16384;
  const int64_t total = features.rows * features.channels;
  const auto finite = [&](int64_t at, int64_t n) {
    return features.half ? features_kernels().finite_half(static_cast<const uint16_t*>(features.data) + at, n)
                         : features_kernels().finite(static_cast<const float*>(features.data) + at, n);
  };
  std::atomic<int64_t> first_chunk{total};  // the least start of a chunk with something in it
  parallel_for((total + kChunk - 1) / kChunk, 16, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin * kChunk; at < std::min(total, end * kChunk); at += kChunk) {
      if (finite(at, std::min(kChunk, total - at))) continue;
      int64_t seen = first_chunk.load();
      while (at < seen && !first_chunk.compare_exchange_weak(seen, at)) {
      }
      return;
    }
  });
  for (int64_t at = first_chunk.load(); at < total; ++at)
    if (!finite(at, 1)) return at;
  return -1;
}

}  // namespace dvt
