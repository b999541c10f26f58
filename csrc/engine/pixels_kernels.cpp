// The two passes of a separable resize. Along rows, the lanes of a vector are rows, so that neighbours in a row are
// summed lane by lane; along columns they are columns.
//
// Integers are summed exactly, and the one multiplication and addition of floats at the end is kept from being fused,
// so that uint8 pixels give the same bits on every processor.
#include "engine/pixels_kernels.h"

#include "core/simd.h"

namespace dvt {
namespace DVT_ISA {
namespace {

typedef uint32_t vuint __attribute__((vector_size(kLanes * 4)));
typedef uint32_t vuint_unaligned __attribute__((vector_size(kLanes * 4), aligned(1), may_alias));

DVT_INLINE vuint load_bits(const void* p) { return *static_cast<const vuint_unaligned*>(p); }
DVT_INLINE void store_bits(void* p, vuint v) { *static_cast<vuint_unaligned*>(p) = v; }
DVT_INLINE vuint broadcast_bits(uint32_t x) { return x - vuint{}; }

constexpr int kChannels = 3;
constexpr int kRows = kLanes;

// a.low * b.low + a.high * b.high, of the int16 halves of each lane.
DVT_INLINE vuint multiply_pairs(vuint a, vuint b) {
#if defined(__AVX512BW__)
  return reinterpret_cast<vuint>(_mm512_madd_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<vuint>(_mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__SSE2__)
  return reinterpret_cast<vuint>(_mm_madd_epi16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#elif defined(__aarch64__)
  const int16x8_t x = reinterpret_cast<int16x8_t>(a), y = reinterpret_cast<int16x8_t>(b);
  return reinterpret_cast<vuint>(vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y)));
#else
  const vint x = reinterpret_cast<vint>(a), y = reinterpret_cast<vint>(b);
  return reinterpret_cast<vuint>(((x << 16) >> 16) * ((y << 16) >> 16) + (x >> 16) * (y >> 16));
#endif
}

// Sums of products with the two parts of the weights, and the pixels, 0 to 255, that they make.
struct Sums {
  vuint hi = {}, lo = {};

  DVT_INLINE_MEMBER void add(vuint pairs, vuint hi_weights, vuint lo_weights) {
    hi += multiply_pairs(pairs, hi_weights);
    lo += multiply_pairs(pairs, lo_weights);
  }
  DVT_INLINE_MEMBER vuint pixels() const {
    const vuint rounded = (hi << kLowBits) + lo + (1u << (kFractionBits - 1));
    const vint value = reinterpret_cast<vint>(rounded) >> kFractionBits;
    const vint zero = {}, most = zero + 255;
    const vint positive = value > zero ? value : zero;
    return reinterpret_cast<vuint>(positive > most ? most : positive);
  }
};

// Byte `byte` of each element of a and of b, as pairs.
DVT_INLINE vuint pair_bytes(vuint a, vuint b, int byte) {
  const vuint low = (byte == 0 ? a : a >> (8 * byte)) & 0xffu;
  const vuint high = (byte == 2 ? b : byte < 2 ? b << (16 - 8 * byte) : b >> (8 * byte - 16)) & 0xff0000u;
  return low | high;
}

#if defined(__AVX2__)
#if defined(__AVX512BW__)
typedef __m512i vraw;
DVT_INLINE vraw load_rows(const uint8_t* const* rows, int64_t offset) {
  const auto row = [&](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[i] + offset)); };
  const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(row(0)), row(4), 1);
  const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(row(8)), row(12), 1);
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
#define DVT_WIDE(name) _mm512_##name
#else
typedef __m256i vraw;
DVT_INLINE vraw load_rows(const uint8_t* const* rows, int64_t offset) {
  const auto row = [&](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[i] + offset)); };
  return _mm256_inserti128_si256(_mm256_castsi128_si256(row(0)), row(4), 1);
}
#define DVT_WIDE(name) _mm256_##name
#endif

// Four pixels of each row at a time, row i + 4 j in 16 bytes j of vector i: brought into pairs within each row, then
// transposed within each 16 bytes.
void pair_pixels(const uint8_t* const* rows, int64_t pixel_bytes, int64_t count, PixelPair* pairs) {
  // Elements of red and green of pixels 0 and 1 (r0 g0 r1 g1), blue of them (b0 0 b1 0), and the same of 2 and 3.
  uint8_t order[kLanes * 4];
  for (int i = 0; i < kLanes * 4; ++i) {
    const int pixel = i % 16 / 8 * 2 + i % 4 / 2, channel = i % 8 / 4 * 2 + i % 2;
    order[i] = channel < kChannels ? static_cast<uint8_t>(pixel * pixel_bytes + channel) : 255;  // 255 gives 0
  }
  const vraw mask = reinterpret_cast<vraw>(load_bits(order));
  for (int64_t x = 0; x < count; x += 4, pairs += 2 * kChannels * kRows) {
    vraw v[4];
    for (int i = 0; i < 4; ++i) v[i] = DVT_WIDE(shuffle_epi8)(load_rows(rows + i, x * pixel_bytes), mask);
    const vraw low01 = DVT_WIDE(unpacklo_epi32)(v[0], v[1]), low23 = DVT_WIDE(unpacklo_epi32)(v[2], v[3]);
    const vraw high01 = DVT_WIDE(unpackhi_epi32)(v[0], v[1]), high23 = DVT_WIDE(unpackhi_epi32)(v[2], v[3]);
    const vuint red_green[2] = {reinterpret_cast<vuint>(DVT_WIDE(unpacklo_epi64)(low01, low23)),
                                reinterpret_cast<vuint>(DVT_WIDE(unpacklo_epi64)(high01, high23))};
    const vuint blue[2] = {reinterpret_cast<vuint>(DVT_WIDE(unpackhi_epi64)(low01, low23)),
                           reinterpret_cast<vuint>(DVT_WIDE(unpackhi_epi64)(high01, high23))};
    for (int i = 0; i < 2; ++i) {
      PixelPair* to = pairs + i * kChannels * kRows;
      store_bits(to, red_green[i] & 0xff00ffu);
      store_bits(to + kRows, (red_green[i] >> 8) & 0xff00ffu);
      store_bits(to + 2 * kRows, blue[i]);
    }
  }
}
#undef DVT_WIDE
#else
void pair_pixels(const uint8_t* const* rows, int64_t pixel_bytes, int64_t count, PixelPair* pairs) {
  for (int64_t x = 0; x < count; x += 2, pairs += kChannels * kRows) {
    uint32_t pixels[2][kRows];
    for (int i = 0; i < 2; ++i)
      for (int row = 0; row < kRows; ++row)
        std::memcpy(&pixels[i][row], rows[row] + (x + i) * pixel_bytes, sizeof(uint32_t));
    const vuint a = load_bits(pixels[0]), b = load_bits(pixels[1]);
    for (int c = 0; c < kChannels; ++c) store_bits(pairs + c * kRows, pair_bytes(a, b, c));
  }
}
#endif

void resize_rows(const PixelPair* pairs, int64_t start, const ResizeAxis& axis, int64_t begin, int64_t end,
                 PixelPair* const* out, int64_t stride) {
  typedef uint64_t vwide __attribute__((vector_size(kLanes * 4)));
  for (int64_t i = begin; i < end; ++i) {
    const int32_t* fixed = axis.fixed + i * axis.stride;
    const PixelPair* from = pairs + (axis.first[i] - start) / 2 * kChannels * kRows;
    Sums sums[kChannels];
    for (int32_t tap = 0; tap < axis.taps[i]; tap += 2, from += kChannels * kRows) {
      const vuint hi = broadcast_bits(static_cast<uint32_t>(fixed[tap]));
      const vuint lo = broadcast_bits(static_cast<uint32_t>(fixed[tap + 1]));
      for (int c = 0; c < kChannels; ++c) sums[c].add(load_bits(from + c * kRows), hi, lo);
    }
    for (int c = 0; c < kChannels; ++c) {
      // Two rows are the low and the high half of a wide element: the second comes next to the first.
      const vwide rows = reinterpret_cast<vwide>(sums[c].pixels());
      const vuint row_pairs = reinterpret_cast<vuint>(rows | rows >> 16);
      for (int row = 0; row < kRows; row += 2) out[row / 2][c * stride + i] = row_pairs[row];
    }
  }
}

// Keeps a product from being fused with the addition that follows it.
DVT_INLINE vfloat rounded(vfloat x) {
#if defined(__AVX512F__)
  __asm__("" : "+v"(x));
#elif defined(__SSE2__)
  __asm__("" : "+x"(x));
#elif defined(__aarch64__)
  __asm__("" : "+w"(x));
#endif
  return x;
}

DVT_INLINE void store_scaled(vfloat value, float scale, float shift, int64_t count, float* out) {
  const vfloat result = rounded(value * broadcast(scale)) + broadcast(shift);
  if (count >= kLanes) {
    store(out, result);
  } else {
    store_partial(out, result, static_cast<int>(count));
  }
}

void resize_columns(const PixelPair* const* rows, const ResizeAxis& axis, int64_t i, int64_t width, float scale,
                    float shift, float* out) {
  const int32_t* fixed = axis.fixed + i * axis.stride;
  for (int64_t x = 0; x < width; x += kLanes) {
    Sums sums;
    for (int32_t tap = 0; tap < axis.taps[i]; tap += 2)
      sums.add(load_bits(rows[tap / 2] + x), broadcast_bits(static_cast<uint32_t>(fixed[tap])),
               broadcast_bits(static_cast<uint32_t>(fixed[tap + 1])));
    const vint pixels = reinterpret_cast<vint>(sums.pixels());
    store_scaled(__builtin_convertvector(pixels, vfloat), scale, shift, width - x, out + x);
  }
}

void mix_rows(const uint8_t* const* rows, const ResizeAxis& axis, int64_t i, int64_t bytes, uint8_t* out) {
  constexpr int64_t kBytes = kLanes * 4;
  const int32_t* fixed = axis.fixed + i * axis.stride;
  for (int64_t at = 0; at < bytes; at += kBytes) {
    const int64_t count = bytes - at < kBytes ? bytes - at : kBytes;
    const auto load_some = [&](const uint8_t* row) {
      if (count == kBytes) return load_bits(row + at);
      vuint some = {};
      std::memcpy(&some, row + at, static_cast<size_t>(count));
      return some;
    };
    Sums sums[4];
    for (int32_t tap = 0; tap < axis.taps[i]; tap += 2) {
      const vuint a = load_some(rows[tap]), b = load_some(rows[tap + 1]);
      const vuint hi = broadcast_bits(static_cast<uint32_t>(fixed[tap]));
      const vuint lo = broadcast_bits(static_cast<uint32_t>(fixed[tap + 1]));
      for (int byte = 0; byte < 4; ++byte) sums[byte].add(pair_bytes(a, b, byte), hi, lo);
    }
    vuint mixed = {};
    for (int byte = 0; byte < 4; ++byte) mixed |= sums[byte].pixels() << (8 * byte);
    std::memcpy(out + at, &mixed, static_cast<size_t>(count));
  }
}

void mix_rows_float(const float* const* rows, const ResizeAxis& axis, int64_t i, int64_t width, float* out) {
  const float* weights = axis.weights + i * axis.stride;
  for (int64_t x = 0; x < width; x += kLanes) {
    const int count = width - x < kLanes ? static_cast<int>(width - x) : kLanes;
    vfloat total = {};
    for (int32_t tap = 0; tap < axis.taps[i]; ++tap)
      total += (count == kLanes ? load(rows[tap] + x) : load_partial(rows[tap] + x, count)) * broadcast(weights[tap]);
    if (count == kLanes) {
      store(out + x, total);
    } else {
      store_partial(out + x, total, count);
    }
  }
}

// Four taps at a time whatever the instruction set: windows are short, and a sum over more lanes takes longer.
void resize_row_float(const float* row, const ResizeAxis& axis, float scale, float shift, float* out) {
  typedef float vquad __attribute__((vector_size(16)));
  typedef float vquad_unaligned __attribute__((vector_size(16), aligned(4), may_alias));
  const auto load_quad = [](const float* p) -> vquad { return *reinterpret_cast<const vquad_unaligned*>(p); };
  for (int64_t begin = 0; begin < axis.target; begin += kLanes) {
    const int64_t count = axis.target - begin < kLanes ? axis.target - begin : kLanes;
    float sums[kLanes] = {};
    for (int64_t i = 0; i < count; ++i) {
      const float* weights = axis.weights + (begin + i) * axis.stride;
      const float* from = row + axis.first[begin + i];
      vquad total = {};
      for (int32_t tap = 0; tap < axis.taps[begin + i]; tap += 4)
        total += load_quad(from + tap) * load_quad(weights + tap);
      sums[i] = (total[0] + total[2]) + (total[1] + total[3]);
    }
    store_scaled(load(sums), scale, shift, count, out + begin);
  }
}

}  // namespace

const PixelsKernels pixels_kernels = {kRows,    pair_pixels,    resize_rows,     resize_columns,
                                      mix_rows, mix_rows_float, resize_row_float};

}  // namespace DVT_ISA
}  // namespace dvt
