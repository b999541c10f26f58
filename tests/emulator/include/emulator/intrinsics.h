// Intrinsics that involve other threads or memory: shuffles, votes, barriers, atomics, cached loads.
#pragma once

#include <cstring>
#include <type_traits>

#include "emulator/arithmetic.h"
#include "emulator/execution.h"

namespace emulator {

template <class T>
struct Shuffle {
  T in, out;
  unsigned source;  // lane
};

// What comes from a lane that isn't there is undefined: here, bytes of ones.
template <class T>
void compute_shuffle(void* const* arguments, uint32_t lanes) {
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    auto* own = static_cast<Shuffle<T>*>(arguments[lane]);
    if (lanes >> own->source & 1)
      own->out = static_cast<Shuffle<T>*>(arguments[own->source])->in;
    else
      std::memset(static_cast<void*>(&own->out), 0xff, sizeof(T));
  }
}
template <class T>
T shuffle(uint32_t mask, T value, unsigned source, const char* name) {
  static_assert(std::is_trivially_copyable_v<T>);
  Shuffle<T> own = {value, value, source};
  warp_collective(mask, compute_shuffle<T>, &own, name);
  return own.out;
}
inline void check_width(int width, const char* name) {
  if (width < 1 || width > 32 || (width & (width - 1)))
    fail(cudaErrorIllegalInstruction,
         name + std::string(": width ") + std::to_string(width) + ", expected a power of two up to 32");
}

// As the hardware adds: modulo 2^n.
template <class T>
T wrapped_sum(T a, T b) {
  using Unsigned = std::make_unsigned_t<T>;
  return static_cast<T>(static_cast<Unsigned>(a) + static_cast<Unsigned>(b));
}

enum class Reduction { ballot, add, min, max, bit_and, bit_or, bit_xor };
template <class T>
struct Reduce {
  T value;
};
template <Reduction kind, class T>
void compute_reduction(void* const* arguments, uint32_t lanes) {
  T total = 0;
  bool first = true;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    const T value = static_cast<Reduce<T>*>(arguments[lane])->value;
    if constexpr (kind == Reduction::ballot) total |= static_cast<T>(value != 0) << lane;
    if constexpr (kind == Reduction::add) total = wrapped_sum(total, value);
    if constexpr (kind == Reduction::min) total = first || value < total ? value : total;
    if constexpr (kind == Reduction::max) total = first || value > total ? value : total;
    if constexpr (kind == Reduction::bit_and) total = first ? value : total & value;
    if constexpr (kind == Reduction::bit_or) total |= value;
    if constexpr (kind == Reduction::bit_xor) total ^= value;
    first = false;
  }
  for (unsigned lane = 0; lane < 32; ++lane)
    if (lanes >> lane & 1) static_cast<Reduce<T>*>(arguments[lane])->value = total;
}
template <Reduction kind, class T>
T reduce(uint32_t mask, T value, const char* name) {
  Reduce<T> own = {value};
  warp_collective(mask, compute_reduction<kind, T>, &own, name);
  return own.value;
}

template <class T>
struct Match {
  T value;
  uint32_t same;
};
template <class T>
void compute_match(void* const* arguments, uint32_t lanes) {
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    auto* own = static_cast<Match<T>*>(arguments[lane]);
    own->same = 0;
    for (unsigned other = 0; other < 32; ++other)
      if (lanes >> other & 1 && !std::memcmp(&static_cast<Match<T>*>(arguments[other])->value, &own->value, sizeof(T)))
        own->same |= 1u << other;
  }
}

inline void compute_nothing(void* const*, uint32_t) {}

template <class T>
T atomic_load(const T* p) {
  T value;
  __atomic_load(const_cast<T*>(p), &value, __ATOMIC_SEQ_CST);
  return value;
}
template <class T, class Function>
T atomic_update(T* p, Function update) {
  T old = atomic_load(p), wanted = update(old);
  while (!__atomic_compare_exchange(p, &old, &wanted, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) wanted = update(old);
  return old;
}

}  // namespace emulator

// ----------------------------------------------------------------------------------------------------- shuffles --

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  emulator::check_width(width, "__shfl_sync");
  const unsigned lane = emulator::lane_in_warp(), w = static_cast<unsigned>(width);
  return emulator::shuffle(mask, value, lane / w * w + static_cast<unsigned>(source) % w, "__shfl_sync");
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  emulator::check_width(width, "__shfl_up_sync");
  const unsigned lane = emulator::lane_in_warp(), first = lane / static_cast<unsigned>(width) * width;
  return emulator::shuffle(mask, value, lane - first >= delta ? lane - delta : lane, "__shfl_up_sync");
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  emulator::check_width(width, "__shfl_down_sync");
  const unsigned lane = emulator::lane_in_warp(), w = static_cast<unsigned>(width);
  return emulator::shuffle(mask, value, lane % w + delta < w ? lane + delta : lane, "__shfl_down_sync");
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32) {
  emulator::check_width(width, "__shfl_xor_sync");
  const unsigned lane = emulator::lane_in_warp(), w = static_cast<unsigned>(width);
  const unsigned source = lane ^ static_cast<unsigned>(flip);
  // A lane may read from its own segment and those before it.
  return emulator::shuffle(mask, value, source < (lane / w + 1) * w ? source : lane, "__shfl_xor_sync");
}

// -------------------------------------------------------------------------------------------- votes, reductions --

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return emulator::reduce<emulator::Reduction::ballot>(mask, static_cast<unsigned>(predicate != 0), "__ballot_sync");
}
inline int __any_sync(unsigned mask, int predicate) {
  return emulator::reduce<emulator::Reduction::bit_or>(mask, static_cast<unsigned>(predicate != 0), "__any_sync") != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  return emulator::reduce<emulator::Reduction::bit_and>(mask, static_cast<unsigned>(predicate != 0), "__all_sync") != 0;
}
#define EMULATOR_REDUCE(name, kind, type)                                                       \
  inline type __reduce_##name##_sync(unsigned mask, type value) {                               \
    return emulator::reduce<emulator::Reduction::kind>(mask, value, "__reduce_" #name "_sync"); \
  }
EMULATOR_REDUCE(add, add, unsigned)
EMULATOR_REDUCE(add, add, int)
EMULATOR_REDUCE(min, min, unsigned)
EMULATOR_REDUCE(min, min, int)
EMULATOR_REDUCE(max, max, unsigned)
EMULATOR_REDUCE(max, max, int)
EMULATOR_REDUCE(and, bit_and, unsigned)
EMULATOR_REDUCE(or, bit_or, unsigned)
EMULATOR_REDUCE(xor, bit_xor, unsigned)
#undef EMULATOR_REDUCE

template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  emulator::Match<T> own = {value, 0};
  emulator::warp_collective(mask, emulator::compute_match<T>, &own, "__match_any_sync");
  return own.same;
}
template <class T>
unsigned __match_all_sync(unsigned mask, T value, int* all) {
  emulator::Match<T> own = {value, 0};
  emulator::warp_collective(mask, emulator::compute_match<T>, &own, "__match_all_sync");
  *all = own.same == (mask & emulator::alive_lanes());
  return *all ? own.same : 0;
}
// Any set of lanes that has the one that asks is right; this one is the hardest.
inline unsigned __activemask() { return 1u << emulator::lane_in_warp(); }

// ------------------------------------------------------------------------------------------------------ barriers --

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  emulator::warp_collective(mask, emulator::compute_nothing, nullptr, "__syncwarp");
}
inline void __syncthreads() { emulator::barrier_sync(0, 0, "__syncthreads"); }
inline int __syncthreads_count(int predicate) {
  return emulator::barrier_vote(emulator::BlockVote::count, predicate != 0);
}
inline int __syncthreads_and(int predicate) { return emulator::barrier_vote(emulator::BlockVote::all, predicate != 0); }
inline int __syncthreads_or(int predicate) { return emulator::barrier_vote(emulator::BlockVote::any, predicate != 0); }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __nanosleep(unsigned) { emulator::pause(); }
[[noreturn]] inline void __trap() { emulator::fail(cudaErrorLaunchFailure, "__trap()"); }

// ------------------------------------------------------------------------------------------------------- atomics --

#define EMULATOR_ATOMIC(name, type, next)                                      \
  inline type name(type* p, type v) {                                          \
    emulator::check_aligned(p, sizeof(type), #name);                           \
    return emulator::atomic_update(p, [v](type old) -> type { return next; }); \
  }
#define EMULATOR_INTEGER_ATOMICS(type)                            \
  EMULATOR_ATOMIC(atomicAdd, type, emulator::wrapped_sum(old, v)) \
  EMULATOR_ATOMIC(atomicMin, type, v < old ? v : old)             \
  EMULATOR_ATOMIC(atomicMax, type, v > old ? v : old)             \
  EMULATOR_ATOMIC(atomicAnd, type, old& v)                        \
  EMULATOR_ATOMIC(atomicOr, type, old | v)                        \
  EMULATOR_ATOMIC(atomicXor, type, old ^ v)                       \
  EMULATOR_ATOMIC(atomicExch, type, ((void)old, v))
EMULATOR_INTEGER_ATOMICS(int)
EMULATOR_INTEGER_ATOMICS(unsigned)
EMULATOR_INTEGER_ATOMICS(unsigned long long)
EMULATOR_ATOMIC(atomicSub, int, static_cast<int>(static_cast<unsigned>(old) - static_cast<unsigned>(v)))
EMULATOR_ATOMIC(atomicSub, unsigned, old - v)
EMULATOR_ATOMIC(atomicInc, unsigned, old >= v ? 0u : old + 1u)
EMULATOR_ATOMIC(atomicDec, unsigned, old == 0 || old > v ? v : old - 1u)
EMULATOR_ATOMIC(atomicMin, long long, v < old ? v : old)
EMULATOR_ATOMIC(atomicMax, long long, v > old ? v : old)
EMULATOR_ATOMIC(atomicAdd, float, old + v)
EMULATOR_ATOMIC(atomicAdd, double, old + v)
EMULATOR_ATOMIC(atomicExch, float, ((void)old, v))
#undef EMULATOR_INTEGER_ATOMICS
#undef EMULATOR_ATOMIC
template <class T>
T atomicCAS(T* p, T compare, T value) {
  static_assert(std::is_integral_v<T>);
  emulator::check_aligned(p, sizeof(T), "atomicCAS");
  __atomic_compare_exchange(p, &compare, &value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
  return compare;
}

// ------------------------------------------------------------------------------------------------ loads and stores --

#define EMULATOR_LOAD(name)                       \
  template <class T>                              \
  T name(const T* p) {                            \
    emulator::check_aligned(p, sizeof(T), #name); \
    return *p;                                    \
  }
EMULATOR_LOAD(__ldg)
EMULATOR_LOAD(__ldca)
EMULATOR_LOAD(__ldcg)
EMULATOR_LOAD(__ldcs)
EMULATOR_LOAD(__ldlu)
EMULATOR_LOAD(__ldcv)
#undef EMULATOR_LOAD
#define EMULATOR_STORE(name)                      \
  template <class T>                              \
  void name(T* p, T value) {                      \
    emulator::check_aligned(p, sizeof(T), #name); \
    *p = value;                                   \
  }
EMULATOR_STORE(__stwb)
EMULATOR_STORE(__stcg)
EMULATOR_STORE(__stcs)
EMULATOR_STORE(__stwt)
#undef EMULATOR_STORE
inline uint32_t __cvta_generic_to_shared(const void* p) {
  return static_cast<uint32_t>(static_cast<const char*>(p) - emulator::shared_memory());
}
