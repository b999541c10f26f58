// Threads of Adam, and the order in which lazy entries are replayed; the arithmetic is in adam_kernels.cpp.
#include "field/adam/adam.h"

#include <algorithm>
#include <cmath>

#include "core/threads.h"

namespace dvt {
namespace {

constexpr int64_t kFloatsPerTask = 8192;
constexpr int64_t kEntriesPerTask = 2048;
// Blocks are dealt to this many hands in turn, not in runs: sorted blocks cost from one step to hundreds.
constexpr int64_t kHands = 64;

}  // namespace

AdamStep adam_step_factors(const AdamOptions& options, double lr, int64_t t) {
  const double exponent = static_cast<double>(t);
  return {static_cast<float>(lr / (1 - std::pow(options.beta1, exponent))),
          static_cast<float>(std::sqrt(1 - std::pow(options.beta2, exponent)))};
}

void adam_update(const AdamOptions& options, AdamStep step, int64_t n, const float* grads, float* params,
                 float* exp_avg, float* exp_avg_sq) {
  const AdamConstants constants(options);
  parallel_for(n, kFloatsPerTask, [&](int64_t begin, int64_t end) {
    adam_kernels().update(constants, step, end - begin, grads + begin, params + begin, exp_avg + begin,
                          exp_avg_sq + begin);
  });
}

LazyAdam::LazyAdam(const AdamOptions& options, std::vector<AdamStep> steps, AdamTable table, int64_t max_count)
    : constants_(options),
      steps_(std::move(steps)),
      table_(table),
      max_count_(max_count),
      histogram_(steps_.size() + 2) {
  order_.at_least(max_count);
  missed_.at_least(max_count);
}

void LazyAdam::catch_up(const uint32_t* entries, int64_t count, int64_t step) {
  parallel_for(count, kEntriesPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) missed_[i] = static_cast<int32_t>(step) - table_.last_step[entries[i]];
  });
  // Counting sort by missed steps, most first; entries that missed none are left out.
  int32_t most = 0;
  for (int64_t i = 0; i < count; ++i) {
    most = std::max(most, missed_[i]);
    ++histogram_[static_cast<size_t>(missed_[i])];
  }
  int32_t late = 0;
  for (int32_t missed = most; missed > 0; --missed) {
    const int32_t entries_here = histogram_[static_cast<size_t>(missed)];
    histogram_[static_cast<size_t>(missed)] = late;  // where this bucket starts
    late += entries_here;
  }
  for (int64_t i = 0; i < count; ++i)
    if (missed_[i] > 0) order_[histogram_[static_cast<size_t>(missed_[i])]++] = entries[i];
  std::fill_n(histogram_.begin(), most + 1, 0);

  const AdamKernels& kernels = adam_kernels();
  const int64_t per_block = kernels.block_floats / table_.width, blocks = (late + per_block - 1) / per_block;
  const auto block_size = [&](int64_t b) {
    return b < blocks ? static_cast<int>(std::min<int64_t>(per_block, late - b * per_block)) : 0;
  };
  parallel_for(std::min(blocks, kHands), 1, [&](int64_t begin, int64_t end) {
    for (int64_t hand = begin; hand < end; ++hand)
      for (int64_t b = hand; b < blocks; b += kHands)
        kernels.replay(constants_, steps_.data(), table_, order_.data() + b * per_block, block_size(b), nullptr,
                       static_cast<int32_t>(step), order_.data() + (b + kHands) * per_block, block_size(b + kHands));
  });
}

void LazyAdam::update(const uint32_t* entries, int64_t count, const float* grads, int64_t step) {
  const AdamKernels& kernels = adam_kernels();
  const int64_t per_block = kernels.block_floats / table_.width, blocks = (count + per_block - 1) / per_block;
  const auto block_size = [&](int64_t b) {
    return b < blocks ? static_cast<int>(std::min(per_block, count - b * per_block)) : 0;
  };
  parallel_for(blocks, kFloatsPerTask / kernels.block_floats, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      kernels.replay(constants_, steps_.data(), table_, entries + b * per_block, block_size(b),
                     grads + b * per_block * table_.width, static_cast<int32_t>(step), entries + (b + 1) * per_block,
                     block_size(b + 1));
  });
}

void LazyAdam::flush(int64_t step) {
  Buffer<uint32_t> entries(max_count_);
  for (int64_t first = 0; first < table_.entries; first += max_count_) {
    const int64_t count = std::min(max_count_, table_.entries - first);
    for (int64_t i = 0; i < count; ++i) entries[i] = static_cast<uint32_t>(first + i);
    catch_up(entries.data(), count, step);
  }
}

}  // namespace dvt
