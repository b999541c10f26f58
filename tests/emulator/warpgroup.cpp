// wgmma. Threads keep their products, in groups; a warp that waits for a group does its 16 rows of it.
#include "emulator/warpgroup.h"

#include <deque>
#include <string>
#include <vector>

#include "core/half.h"
#include "emulator/execution.h"
#include "emulator/intrinsics.h"

namespace emulator {
namespace {

struct ThreadProducts {
  struct Entry {
    uint64_t group;
    WarpgroupProduct product;
  };
  std::deque<Entry> entries;
  uint64_t committed = 0;
  bool fenced = false;
};

struct BlockProducts {
  std::vector<ThreadProducts> threads = std::vector<ThreadProducts>(1024);
  // The descriptors of all products of each warpgroup, and how many of them each warp has done: the four have to agree.
  struct Asked {
    uint64_t a, b;
    int n;
  };
  std::vector<std::vector<Asked>> asked = std::vector<std::vector<Asked>>(8);
  std::vector<size_t> done = std::vector<size_t>(32);
};

ThreadProducts& own() { return block_state<BlockProducts>().threads[thread_in_block()]; }

// A tile in shared memory as its descriptor tells; element (i, k): i an output, k an index of the sum.
class Operand {
 public:
  Operand(uint64_t descriptor, WarpgroupType type, bool mn_major) : type_(type), mn_major_(mn_major) {
    start_ = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
    leading_ = static_cast<uint32_t>(descriptor >> 16 & 0x3fff) << 4;
    stride_ = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4;
    if (descriptor >> 62 != 1) fail(cudaErrorIllegalInstruction, "wgmma: only the 128-byte swizzle is emulated");
    if (descriptor >> 49 & 7) fail(cudaErrorIllegalInstruction, "wgmma: only tiles at multiples of 1024 are emulated");
  }
  float at(uint32_t i, uint32_t k) const {
    const uint32_t size = type_ == WarpgroupType::tf32 ? 4 : 2;
    // K-major: ((8, m), 32 bytes) : ((128, stride), 1). MN-major: ((64, m), (8, 2)) : ((2, leading), (128, stride)).
    const uint32_t linear = mn_major_ ? i % 64 * 2 + i / 64 * leading_ + k % 8 * 128 + k / 8 * stride_
                                      : i % 8 * 128 + i / 8 * stride_ + k * size;
    const uint32_t address = start_ + linear, place = address ^ (address >> 7 & 7) << 4;
    if (place + size > shared_bytes())
      fail(cudaErrorIllegalAddress, "wgmma: a tile ends behind shared memory, at " + std::to_string(place));
    const char* p = shared_memory() + place;
    if (type_ == WarpgroupType::tf32) {
      uint32_t bits;
      __builtin_memcpy(&bits, p, 4);
      return __uint_as_float(bits & 0xffffe000u);
    }
    uint16_t bits;
    __builtin_memcpy(&bits, p, 2);
    return type_ == WarpgroupType::bf16 ? __uint_as_float(static_cast<uint32_t>(bits) << 16) : dvt::half_to_float(bits);
  }

 private:
  WarpgroupType type_;
  bool mn_major_;
  uint32_t start_, leading_, stride_;
};

// Of one warp; `lanes`: each one's product.
void multiply(const WarpgroupProduct* const* lanes, uint32_t warp) {
  const WarpgroupProduct& first = *lanes[0];
  const uint32_t n = static_cast<uint32_t>(first.n), count = first.type == WarpgroupType::tf32 ? 8 : 16;
  float a[16][16];
  if (first.registers) {
    // Register r of lane 4 g + q: row g + 8 (r & 1), columns 2 q + 8 (r >> 1), + 1.
    for (uint32_t lane = 0; lane < 32; ++lane)
      for (uint32_t r = 0; r < 4; ++r)
        for (uint32_t half = 0; half < 2; ++half) {
          const auto bits = static_cast<uint16_t>(lanes[lane]->registers[r] >> 16 * half);
          a[lane / 4 + 8 * (r & 1)][2 * (lane % 4) + 8 * (r >> 1) + half] =
              first.type == WarpgroupType::bf16 ? __uint_as_float(static_cast<uint32_t>(bits) << 16)
                                                : dvt::half_to_float(bits);
        }
  } else {
    const Operand operand(first.a, first.type, false);
    for (uint32_t row = 0; row < 16; ++row)
      for (uint32_t k = 0; k < count; ++k) a[row][k] = operand.at(16 * (warp % 4) + row, k);
  }
  const Operand operand(first.b, first.type, first.mn_major);
  for (uint32_t column = 0; column < n; ++column) {
    float b[16];
    for (uint32_t k = 0; k < count; ++k) b[k] = operand.at(column, k);
    for (uint32_t row = 0; row < 16; ++row) {
      float sum = 0.0f;
      for (uint32_t k = 0; k < count; ++k) sum += a[row][k] * b[k];
      // Element (row, column) lies in lane 4 (row % 8) + (column % 8) / 2.
      float& d = lanes[row % 8 * 4 + column % 8 / 2]->d[column / 8 * 4 + row / 8 * 2 + column % 2];
      d = first.accumulate ? d + sum : sum;
    }
  }
}

struct Wait {
  unsigned thread;
  uint64_t pending;
};

void wait(void* const* arguments, uint32_t lanes) {
  if (lanes != ~0u) fail(cudaErrorIllegalInstruction, "wgmma.wait_group: lanes of the warp have exited");
  BlockProducts& block = block_state<BlockProducts>();
  ThreadProducts* threads[32];
  const Wait& first = *static_cast<const Wait*>(arguments[0]);
  for (unsigned lane = 0; lane < 32; ++lane) {
    const Wait& own = *static_cast<const Wait*>(arguments[lane]);
    threads[lane] = &block.threads[own.thread];
    if (own.pending != first.pending || threads[lane]->entries.size() != threads[0]->entries.size() ||
        threads[lane]->committed != threads[0]->committed)
      fail(cudaErrorIllegalInstruction, "wgmma: the lanes of a warp asked for different products");
  }
  const uint32_t warp = first.thread / 32;
  std::vector<BlockProducts::Asked>& asked = block.asked[warp / 4];
  while (!threads[0]->entries.empty() && threads[0]->entries[0].group + first.pending < threads[0]->committed) {
    const WarpgroupProduct* products[32];
    for (unsigned lane = 0; lane < 32; ++lane) {
      products[lane] = &threads[lane]->entries[0].product;
      if (products[lane]->a != products[0]->a || products[lane]->b != products[0]->b ||
          products[lane]->n != products[0]->n || products[lane]->accumulate != products[0]->accumulate)
        fail(cudaErrorIllegalInstruction, "wgmma: the lanes of a warp asked for different products");
    }
    const size_t index = block.done[warp]++;
    if (index == asked.size()) asked.push_back({products[0]->a, products[0]->b, products[0]->n});
    if (asked[index].a != products[0]->a || asked[index].b != products[0]->b || asked[index].n != products[0]->n)
      fail(cudaErrorIllegalInstruction, "wgmma: the warps of a warpgroup asked for different products");
    multiply(products, warp);
    for (ThreadProducts* thread : threads) thread->entries.pop_front();
  }
}

}  // namespace

void warpgroup_fence() { own().fenced = true; }

void warpgroup_product(const WarpgroupProduct& product) {
  ThreadProducts& products = own();
  if (!products.fenced) fail(cudaErrorIllegalInstruction, "wgmma.mma_async without wgmma.fence before it");
  products.entries.push_back({products.committed, product});
}

void warpgroup_commit() { ++own().committed; }

void warpgroup_wait(uint64_t pending) {
  Wait argument = {thread_in_block(), pending};
  warp_collective(~0u, wait, &argument, "wgmma.wait_group");
  own().fenced = false;  // the sums may be touched now, so that the next products need a fence
}

}  // namespace emulator
