// Adam's arithmetic, one instruction set a compilation. Every multiplication that feeds an addition is an explicit fma
// (or feeds a division), so the compiler has nothing left to contract in its own way.
#include "core/simd.h"
#include "field/adam/adam.h"

namespace dvt {
namespace DVT_ISA {
namespace {

constexpr int kBlockVectors = 4;  // four chains in flight: the divider, not the latency of the chain, is the limit
constexpr int kBlockFloats = kBlockVectors * kLanes;

// a * b + c in one rounding where the processor has it, as torch's kernels do; two roundings elsewhere.
DVT_INLINE vfloat fma(vfloat a, vfloat b, vfloat c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

// The last steps' bias correction is 1 in float32; dividing by it changes no bit, so it may be left out.
template <bool kCorrect>
DVT_INLINE void one_step(const AdamConstants& k, AdamStep step, vfloat grad, vfloat& p, vfloat& m, vfloat& v) {
  const vfloat g = fma(p, broadcast(k.weight_decay), grad);
  m = fma(broadcast(k.one_minus_beta1), g - m, m);
  v = fma(broadcast(k.one_minus_beta2) * g, g, v * k.beta2);
  vfloat root = vsqrt(v);
  if (kCorrect) root = root / broadcast(step.bias_correction2_sqrt);
  p = p + broadcast(-step.step_size) * m / (root + k.eps);
}

void update(const AdamConstants& constants, AdamStep step, int64_t n, const float* grads, float* params, float* exp_avg,
            float* exp_avg_sq) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int lanes = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    if (lanes == kLanes) {
      vfloat p = load(params + i), m = load(exp_avg + i), v = load(exp_avg_sq + i);
      one_step<true>(constants, step, load(grads + i), p, m, v);
      store(params + i, p);
      store(exp_avg + i, m);
      store(exp_avg_sq + i, v);
    } else {
      vfloat p = load_partial(params + i, lanes), m = load_partial(exp_avg + i, lanes),
             v = load_partial(exp_avg_sq + i, lanes);
      one_step<true>(constants, step, load_partial(grads + i, lanes), p, m, v);
      store_partial(params + i, p, lanes);
      store_partial(exp_avg + i, m, lanes);
      store_partial(exp_avg_sq + i, v, lanes);
    }
  }
}

struct Block {
  alignas(64) float p[kBlockFloats], m[kBlockFloats], v[kBlockFloats], grad[kBlockFloats];
  alignas(64) int32_t last[kBlockFloats];  // the step that the entry of each lane is at
};

// Steps first + 1 ... last without gradients. kMasked: a lane joins when its own last step has come.
template <bool kMasked, bool kCorrect>
__attribute__((noinline)) void replay_zero(const AdamConstants& constants, const AdamStep* steps, Block& block,
                                           int32_t first, int32_t last) {
  if (first >= last) return;
  // Constants in registers of their own: through the reference they would be loaded again every step.
  const AdamConstants k = constants;
  vfloat p[kBlockVectors], m[kBlockVectors], v[kBlockVectors];
  vint at[kBlockVectors];
  for (int i = 0; i < kBlockVectors; ++i) {
    p[i] = load(block.p + i * kLanes);
    m[i] = load(block.m + i * kLanes);
    v[i] = load(block.v + i * kLanes);
    std::memcpy(&at[i], block.last + i * kLanes, sizeof(vint));
  }
  for (int32_t t = first; t < last; ++t) {
    const AdamStep step = steps[t];
#pragma GCC unroll 4
    for (int i = 0; i < kBlockVectors; ++i) {
      if (kMasked) {
        vfloat p1 = p[i], m1 = m[i], v1 = v[i];
        one_step<kCorrect>(k, step, vfloat{}, p1, m1, v1);
        const vint joined = at[i] <= t;
        p[i] = joined ? p1 : p[i];
        m[i] = joined ? m1 : m[i];
        v[i] = joined ? v1 : v[i];
      } else {
        one_step<kCorrect>(k, step, vfloat{}, p[i], m[i], v[i]);
      }
    }
  }
  for (int i = 0; i < kBlockVectors; ++i) {
    store(block.p + i * kLanes, p[i]);
    store(block.m + i * kLanes, m[i]);
    store(block.v + i * kLanes, v[i]);
  }
}

template <bool kMasked>
void replay_zero(const AdamConstants& constants, const AdamStep* steps, Block& block, int32_t first, int32_t last) {
  // The correction grows towards 1 and then stays.
  if (first < last && steps[first].bias_correction2_sqrt == 1.0f)
    replay_zero<kMasked, false>(constants, steps, block, first, last);
  else
    replay_zero<kMasked, true>(constants, steps, block, first, last);
}

template <int W>
DVT_INLINE void copy_entry(float* to, const float* from) {
  for (int f = 0; f < W; ++f) to[f] = from[f];
}

template <int W>
void replay_of(const AdamConstants& constants, const AdamStep* steps, const AdamTable& table, const uint32_t* entries,
               int count, const float* grads, int32_t step, const uint32_t* next, int next_count) {
  Block block;
  int32_t earliest = step, latest = 0;
  for (int e = 0; e < count; ++e) {
    const int64_t at = int64_t{entries[e]} * W;
    const int32_t last = table.last_step[entries[e]];
    copy_entry<W>(block.p + e * W, table.params + at);
    copy_entry<W>(block.m + e * W, table.exp_avg + at);
    copy_entry<W>(block.v + e * W, table.exp_avg_sq + at);
    for (int f = 0; f < W; ++f) block.last[e * W + f] = last;
    if (last < earliest) earliest = last;
    if (last > latest) latest = last;
  }
  for (int i = count * W; i < kBlockFloats; ++i) {
    block.p[i] = block.m[i] = 0.0f;
    block.v[i] = 1.0f;
    block.last[i] = step;
  }
  for (int e = 0; e < next_count; ++e) {
    const int64_t at = int64_t{next[e]} * W;
    __builtin_prefetch(table.params + at, 1);
    __builtin_prefetch(table.exp_avg + at, 1);
    __builtin_prefetch(table.exp_avg_sq + at, 1);
    __builtin_prefetch(table.last_step + next[e], 1);
  }
  const int32_t zero_until = grads ? step - 1 : step;
  if (latest > zero_until) latest = zero_until;
  replay_zero<true>(constants, steps, block, earliest, latest);
  replay_zero<false>(constants, steps, block, latest, zero_until);
  if (grads) {
    for (int i = 0; i < count * W; ++i) block.grad[i] = grads[i];
    for (int i = count * W; i < kBlockFloats; ++i) block.grad[i] = 0.0f;
    update(constants, steps[step - 1], kBlockFloats, block.grad, block.p, block.m, block.v);
  }
  for (int e = 0; e < count; ++e) {
    const int64_t at = int64_t{entries[e]} * W;
    copy_entry<W>(table.params + at, block.p + e * W);
    copy_entry<W>(table.exp_avg + at, block.m + e * W);
    copy_entry<W>(table.exp_avg_sq + at, block.v + e * W);
    table.last_step[entries[e]] = step;
  }
}

void replay(const AdamConstants& constants, const AdamStep* steps, const AdamTable& table, const uint32_t* entries,
            int count, const float* grads, int32_t step, const uint32_t* next, int next_count) {
  switch (table.width) {
    case 1: return replay_of<1>(constants, steps, table, entries, count, grads, step, next, next_count);
    case 2: return replay_of<2>(constants, steps, table, entries, count, grads, step, next, next_count);
    case 4: return replay_of<4>(constants, steps, table, entries, count, grads, step, next, next_count);
    default: return replay_of<8>(constants, steps, table, entries, count, grads, step, next, next_count);
  }
}

}  // namespace

const AdamKernels adam_kernels = {kBlockFloats, update, replay};

}  // namespace DVT_ISA
}  // namespace dvt
