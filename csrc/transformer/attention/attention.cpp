#include "transformer/attention/attention.h"

namespace dvt {

void store_keys(const KeyValueShape& shape, int64_t first, int64_t rows, const float* k, int64_t stride, float* keys) {
  attention_kernels().store_keys(shape, first, rows, k, stride, keys);
}

void store_values(const KeyValueShape& shape, int64_t first, int64_t rows, const float* v, int64_t stride,
                  float* values) {
  attention_kernels().store_values(shape, first, rows, v, stride, values);
}

int64_t attention_scratch(int64_t head_dim) { return attention_kernels().scratch(head_dim); }

void attention(const AttentionCall& call) { attention_kernels().run(call); }

}  // namespace dvt
