// The twin of csrc/cuda/ptx_sm90.cuh for the CPU: the same functions, by the emulator's scheduler. What they do is told
// there; here is how strictly.
//
// mbarriers keep their state where the hardware has it, in the eight bytes of shared memory: one that was not
// initialised, or at which too many arrive, ends the kernel. A bulk copy poisons its destination at once. Its bytes are
// counted at some random later moment; the data is written when a thread sees that the phase is complete: whoever reads
// without having waited, or is still reading what a copy overwrites, gets NaN. Bulk stores read shared memory when they
// are waited for.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cuda/ptx.cuh"
#include "emulator/execution.h"

#define DVT_HAS_SM90A 1

namespace dvt::ptx {

constexpr bool has_sm90a_code() { return true; }

struct Barrier {
  uint64_t state;
};
struct alignas(128) TensorMap {
  uint64_t words[16];
};
enum class TensorType { f16, bf16, f32 };
enum class Keep : uint64_t { normal, first_out, last_out };

namespace emulated {

// Bits 0..19 arrivals still to come, 20..39 of a phase, 40 parity of the phase, 41..62 bytes to come (signed), 63 zero.
struct BarrierState {
  uint32_t pending, expected, parity;
  int32_t bytes;
};

inline BarrierState read(const Barrier* barrier) {
  emulator::check_aligned(barrier, 8, "mbarrier");
  const uint64_t s = barrier->state;
  if (s >> 63) emulator::fail(cudaErrorIllegalInstruction, "an mbarrier is used that was not initialised");
  return {static_cast<uint32_t>(s & 0xfffff), static_cast<uint32_t>(s >> 20 & 0xfffff),
          static_cast<uint32_t>(s >> 40 & 1), static_cast<int32_t>(static_cast<uint32_t>(s >> 41) << 10) >> 10};
}

inline void write(Barrier* barrier, BarrierState s) {
  if (s.pending == 0 && s.bytes == 0) {
    s.parity ^= 1;
    s.pending = s.expected;
    emulator::wake(barrier);
  }
  if (s.bytes >= 1 << 20 || s.bytes <= -(1 << 20))
    emulator::fail(cudaErrorIllegalInstruction, "an mbarrier counts more than 2^20 - 1 bytes");
  barrier->state = s.pending | static_cast<uint64_t>(s.expected) << 20 | static_cast<uint64_t>(s.parity) << 40 |
                   static_cast<uint64_t>(static_cast<uint32_t>(s.bytes) & 0x3fffff) << 41;
}

inline void arrive(Barrier* barrier, int32_t bytes) {
  BarrierState s = read(barrier);
  if (s.pending == 0) emulator::fail(cudaErrorIllegalInstruction, "more threads arrive at an mbarrier than it expects");
  --s.pending;
  s.bytes += bytes;
  write(barrier, s);
}

// Copies whose bytes are counted, by barrier; written when somebody sees the phase complete. The blocks of a cluster
// run on one thread of the operating system.
inline std::map<const Barrier*, std::vector<std::function<void()>>>& arrivals() {
  static thread_local std::map<const Barrier*, std::vector<std::function<void()>>> all;
  return all;
}

inline bool is_complete(Barrier* barrier, uint32_t parity) {
  if (read(barrier).parity == parity) return false;
  const auto found = arrivals().find(barrier);
  if (found != arrivals().end()) {
    for (const std::function<void()>& copy : found->second) copy();
    arrivals().erase(found);
  }
  return true;
}

// What encode_tensor_map leaves in a TensorMap.
struct Tile {
  const char* base;
  uint32_t rank, size;
  uint64_t extents[3], strides[3];  // strides[0] is the size of an element
  uint32_t box[3];
  uint32_t magic;

  uint32_t bytes() const { return size * box[0] * box[1] * box[2]; }

  // f(offset in the box, address or null outside) for each row of the box, and how many of its bytes are inside,
  // from which byte on.
  template <class F>
  void rows(const int (&c)[3], F f) const {
    const int64_t first = std::clamp<int64_t>(c[0], 0, static_cast<int64_t>(extents[0]));
    const int64_t end = std::clamp<int64_t>(int64_t{c[0]} + box[0], first, static_cast<int64_t>(extents[0]));
    for (uint32_t z = 0; z < box[2]; ++z)
      for (uint32_t y = 0; y < box[1]; ++y) {
        const int64_t row = int64_t{c[1]} + y, plane = int64_t{c[2]} + z;
        const bool inside = row >= 0 && row < static_cast<int64_t>(extents[1]) && plane >= 0 &&
                            plane < static_cast<int64_t>(extents[2]) && end > first;
        const char* from = inside ? base + first * size + row * static_cast<int64_t>(strides[1]) +
                                        plane * static_cast<int64_t>(strides[2])
                                  : nullptr;
        f((z * box[1] + y) * box[0] * size, from, static_cast<uint32_t>(first - c[0]) * size,
          inside ? static_cast<uint32_t>(end - first) * size : 0);
      }
  }
};
static_assert(sizeof(Tile) <= sizeof(TensorMap));

inline Tile tile_of(const TensorMap* map, uint32_t rank) {
  Tile tile;
  std::memcpy(&tile, map, sizeof tile);
  if (tile.magic != 0x7e4507 || tile.rank != rank)
    emulator::fail(cudaErrorIllegalInstruction,
                   "a copy of " + std::to_string(rank) + " dimensions with another tensor map");
  return tile;
}

// Where byte `at` of shared memory (counted from its start, a multiple of 1024) lies with the 128-byte swizzle.
inline uint32_t swizzled(uint32_t at) { return at ^ (at >> 7 & 7) << 4; }

inline void copy(char* shared, uint32_t to, const Tile& tile, const int (&c)[3]) {
  tile.rows(c, [&](uint32_t offset, const char* from, uint32_t first, uint32_t bytes) {
    for (uint32_t b = 0; b < tile.size * tile.box[0]; b += 4) {  // pieces of 16 bytes stay together
      char piece[4] = {};
      for (uint32_t i = 0; i < 4; ++i)
        if (b + i >= first && b + i < first + bytes) piece[i] = from[b + i - first];
      std::memcpy(shared + swizzled(to + offset + b), piece, 4);
    }
  });
}

inline void copy_tile(void* to, const TensorMap* map, uint32_t rank, Barrier* barrier, const int (&c)[3],
                      uint32_t blocks) {
  const Tile tile = tile_of(map, rank);
  const uint32_t offset = emulator::on_shared(to, tile.bytes(), 128, "cp.async.bulk.tensor");
  for (uint32_t block = 0; blocks >> block; ++block) {
    if (!(blocks >> block & 1)) continue;
    const char* name = "cp.async.bulk.tensor";
    char* there = static_cast<char*>(emulator::in_cluster(to, block, tile.bytes(), 128, name));
    Barrier* counts = static_cast<Barrier*>(emulator::in_cluster(barrier, block, 8, 8, name));
    char* shared = there - offset;
    std::memset(there, 0xff, tile.bytes());
    const std::vector<int> place(c, c + 3);
    emulator::defer([=] {
      arrivals()[counts].push_back([=] {
        const int at[3] = {place[0], place[1], place[2]};
        copy(shared, offset, tile, at);
      });
      BarrierState s = read(counts);
      s.bytes -= static_cast<int32_t>(tile.bytes());
      write(counts, s);
    });
  }
}

using Stores = std::map<unsigned, emulator::AsyncGroups>;  // by thread

inline void store_tile(const TensorMap* map, uint32_t rank, const void* from, const int (&c)[3]) {
  const Tile tile = tile_of(map, rank);
  const uint32_t offset = emulator::on_shared(from, tile.bytes(), 128, "cp.async.bulk.tensor");
  const char* shared = emulator::shared_memory();
  const std::vector<int> place(c, c + 3);
  emulator::block_state<Stores>()[emulator::thread_in_block()].add([=] {
    const int at[3] = {place[0], place[1], place[2]};
    tile.rows(at, [&](uint32_t row, const char* to, uint32_t first, uint32_t bytes) {
      for (uint32_t b = 0; b < bytes; ++b) const_cast<char*>(to)[b] = shared[swizzled(offset + row + first + b)];
    });
  });
}

}  // namespace emulated

// ----------------------------------------------------------------------------------------------------- mbarriers --

inline void barrier_init(Barrier* barrier, uint32_t arrivals) {
  emulator::on_shared(barrier, 8, 8, "mbarrier.init");
  emulated::arrivals().erase(barrier);
  barrier->state = arrivals | static_cast<uint64_t>(arrivals) << 20;
}
inline void barrier_init_fence() {}
// Others may go on at once: what they wait for is to be true by now.
inline void barrier_arrive(Barrier* barrier) {
  emulated::arrive(barrier, 0);
  emulator::pause();
}
inline void barrier_arrive(Barrier* barrier, uint32_t rank) {
  emulated::arrive(static_cast<Barrier*>(emulator::in_cluster(barrier, rank, 8, 8, "mbarrier.arrive")), 0);
  emulator::pause();
}
inline void barrier_arrive_expect(Barrier* barrier, uint32_t bytes) {
  emulated::arrive(barrier, static_cast<int32_t>(bytes));
}
inline bool barrier_try_wait(Barrier* barrier, uint32_t parity) {
  if (emulated::is_complete(barrier, parity)) return true;
  emulator::park(barrier, "mbarrier.try_wait");
  return false;
}
inline void barrier_wait(Barrier* barrier, uint32_t parity) {
  while (!barrier_try_wait(barrier, parity)) {
  }
}
inline void fence_async() {}

// ------------------------------------------------------------------------------------------------------ clusters --

inline uint32_t cluster_rank() { return emulator::cluster_rank(); }
inline void cluster_sync() { emulator::cluster_sync(); }
inline float4 load_cluster(const float* p, uint32_t rank) {
  return *static_cast<const float4*>(emulator::in_cluster(p, rank, 16, 16, "ld.shared::cluster"));
}

// --------------------------------------------------------------------------------------------- copies of tensors --

inline bool encode_tensor_map(TensorMap* map, TensorType type, uint32_t rank, const void* base, const uint64_t* extents,
                              const uint64_t* strides, const uint32_t* box) {
  emulated::Tile tile = {};
  tile.base = static_cast<const char*>(base);
  tile.rank = rank;
  tile.size = type == TensorType::f32 ? 4 : 2;
  tile.magic = 0x7e4507;
  if (rank < 2 || rank > 3 || reinterpret_cast<uintptr_t>(base) % 16) return false;
  for (uint32_t i = 0; i < 3; ++i) {
    tile.extents[i] = i < rank ? extents[i] : 1;
    tile.box[i] = i < rank ? box[i] : 1;
    tile.strides[i] = i == 0 ? tile.size : i < rank ? strides[i - 1] : 0;
    if (tile.extents[i] < 1 || tile.extents[i] > uint64_t{1} << 32 || tile.box[i] < 1 || tile.box[i] > 256)
      return false;
    if (i > 0 && (tile.strides[i] % 16 || tile.strides[i] >= uint64_t{1} << 40)) return false;
  }
  if (tile.box[0] * tile.size != 128) return false;  // the driver also takes less; rows then have gaps
  std::memset(map, 0, sizeof *map);
  std::memcpy(map, &tile, sizeof tile);
  return true;
}
inline void prefetch_map(const TensorMap* map) { emulator::check_aligned(map, 64, "prefetch.tensormap"); }

inline void copy_tile(void* to, const TensorMap* map, Barrier* barrier, int c0, int c1, Keep = Keep::normal) {
  emulated::copy_tile(to, map, 2, barrier, {c0, c1, 0}, 1u << emulator::cluster_rank());
}
inline void copy_tile(void* to, const TensorMap* map, Barrier* barrier, int c0, int c1, int c2, Keep = Keep::normal) {
  emulated::copy_tile(to, map, 3, barrier, {c0, c1, c2}, 1u << emulator::cluster_rank());
}
inline void copy_tile_multicast(void* to, const TensorMap* map, Barrier* barrier, int c0, int c1, uint16_t blocks,
                                Keep = Keep::normal) {
  emulated::copy_tile(to, map, 2, barrier, {c0, c1, 0}, blocks);
}
inline void store_tile(const TensorMap* map, const void* from, int c0, int c1) {
  emulated::store_tile(map, 2, from, {c0, c1, 0});
}
inline void store_tile(const TensorMap* map, const void* from, int c0, int c1, int c2) {
  emulated::store_tile(map, 3, from, {c0, c1, c2});
}
inline void store_commit() { emulator::block_state<emulated::Stores>()[emulator::thread_in_block()].commit(); }
template <int kPending>
void store_wait_read() {
  emulator::block_state<emulated::Stores>()[emulator::thread_in_block()].wait(kPending);
}

// -------------------------------------------------------------------------------------------- warps and registers --

inline bool elect_one() {
  __syncwarp();
  return lane_id() == 0;
}
template <int kRegisters>
void registers_increase() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
}
template <int kRegisters>
void registers_decrease() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
}
inline void named_barrier_arrive(int id, int threads) { emulator::barrier_arrive(id, threads); }

}  // namespace dvt::ptx
