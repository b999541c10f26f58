// softmax(q k^T) v for the rows of one head, in one pass over blocks of keys: the scores of a few rows against a block
// of keys are all that ever exists (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018; Rabe and
// Staats, "Self-attention does not need O(n^2) memory", 2021).
//
// Keys and values are kept in panels like packed weights (linear.h), so that both products run on the same tile: keys
// as [panel of nr keys][head_dim][nr], values as [panel of nr channels][keys][nr]. Queries come scaled by
// log2(e) / sqrt(head_dim), so that the exponential is a power of two.
#pragma once

#include <cstdint>

#include "core/isa.h"

namespace dvt {

constexpr double kLog2e = 1.4426950408889634;

// Where one head of one image keeps its keys and values.
struct KeyValueShape {
  int64_t tokens = 0, head_dim = 0;
  int64_t nr = 0;  // of linear_kernels()

  int64_t key_panels() const { return (tokens + nr - 1) / nr; }
  int64_t value_panels() const { return (head_dim + nr - 1) / nr; }
  int64_t key_floats() const { return key_panels() * head_dim * nr; }
  int64_t value_floats() const { return value_panels() * tokens * nr; }
};

// Rows of keys and values, [rows, head_dim] with the given strides, of tokens first, first + 1, ... into the panels.
// Whoever stores the last token also fills the rest of the last panel of keys with zeros.
void store_keys(const KeyValueShape& shape, int64_t first, int64_t rows, const float* k, int64_t stride, float* keys);
void store_values(const KeyValueShape& shape, int64_t first, int64_t rows, const float* v, int64_t stride,
                  float* values);

struct AttentionCall {
  KeyValueShape shape;
  int64_t rows = 0;
  const float* q = nullptr;  // [rows, head_dim], scaled
  int64_t q_stride = 0;
  const float* keys = nullptr;
  const float* values = nullptr;
  float* out = nullptr;  // [rows, head_dim]
  int64_t out_stride = 0;
  float* scratch = nullptr;  // attention_scratch(head_dim) floats, 64-byte aligned
};

int64_t attention_scratch(int64_t head_dim);
void attention(const AttentionCall& call);

// From plain queries, keys and values [rows or tokens, head_dim], q not scaled; in double.
void attention_reference(int64_t rows, int64_t tokens, int64_t head_dim, const float* q, const float* k, const float* v,
                         float* out);

struct AttentionKernels {
  const char* isa;
  int mr, nr;
  int64_t (*scratch)(int64_t head_dim);
  void (*store_keys)(const KeyValueShape& shape, int64_t first, int64_t rows, const float* k, int64_t stride,
                     float* keys);
  void (*store_values)(const KeyValueShape& shape, int64_t first, int64_t rows, const float* v, int64_t stride,
                       float* values);
  void (*run)(const AttentionCall& call);
};
DVT_DECLARE_KERNELS(AttentionKernels, attention_kernels)

}  // namespace dvt
