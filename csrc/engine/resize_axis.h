// Resizing along one axis: which source pixels make a target pixel, and with which weights.
#pragma once

#include <cstdint>

namespace dvt {

constexpr int64_t kMaxLanes = 16;  // the widest vector of 4-byte elements: what strides are multiples of
constexpr int kFractionBits = 22, kLowBits = 11;

// The filter of one axis. Target pixel i is the sum over `taps[i]` source pixels from `first[i]` on.
//
// Weights of uint8 pixels have 22 fractional bits, as Pillow's have, and are split into hi * 2^11 + lo, both int16, so
// that one multiply-add of pairs of int16 takes two taps: their products and sums stay integers, exact in any order.
// For each pair of taps there are two int32 in `fixed`: the two hi, then the two lo, the first tap's in the low half;
// `first` and `taps` are even. Every row of `fixed` and `weights` has `stride` entries, 0 after the last tap.
struct ResizeAxis {
  int64_t source, target, stride;
  int32_t *first, *taps;  // [target]
  int32_t* fixed;         // [target, stride]
  float* weights;         // [target, stride], in place of `fixed`: for float pixels
};

// The stride of an axis of at most `max_source` pixels.
int64_t resize_stride(int64_t max_source, int64_t target);

// Fills the tables of an axis whose target, stride and pointers are set: bicubic with antialias, Pillow's weights.
// fixed: for uint8 pixels. scratch: [stride].
void fill_axis(int64_t source, bool fixed, double* scratch, ResizeAxis* axis);

}  // namespace dvt
