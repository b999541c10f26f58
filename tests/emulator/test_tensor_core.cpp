// mma and ldmatrix against plain products, and a whole GEMM as kernels write it.
#include <cmath>

#include "check.h"
#include "core/half.h"

namespace {

using dvt::ptx::shared_memory;

float number(unsigned i) { return static_cast<float>(static_cast<int>(i * 2654435761u >> 20) - 2048) / 1024.0f; }
uint16_t bits_of(float x, bool bf16) { return bf16 ? dvt::float_to_bfloat16(x) : dvt::float_to_half(x); }
float value_of(uint16_t x, bool bf16) { return bf16 ? dvt::bfloat16_to_float(x) : dvt::half_to_float(x); }

// One product, the fragments loaded element by element as the PTX ISA tells.
__global__ void mma_kernel(const uint16_t* a, const uint16_t* b, float* c, bool bf16) {
  const unsigned lane = threadIdx.x, group = lane / 4, quad = lane % 4;
  const auto pair = [](const uint16_t* p, unsigned stride) { return p[0] | static_cast<uint32_t>(p[stride]) << 16; };
  uint32_t fa[4], fb[2];
  for (unsigned i = 0; i < 4; ++i) fa[i] = pair(a + (group + i % 2 * 8) * 16 + quad * 2 + i / 2 * 8, 1);
  for (unsigned i = 0; i < 2; ++i) fb[i] = pair(b + (quad * 2 + i * 8) * 8 + group, 8);
  float fc[4] = {1.0f, 2.0f, 3.0f, 4.0f};
  if (bf16)
    dvt::ptx::mma_m16n8k16_bf16(fc, fa, fb);
  else
    dvt::ptx::mma_m16n8k16_f16(fc, fa, fb);
  for (unsigned i = 0; i < 4; ++i) c[(group + i / 2 * 8) * 8 + quad * 2 + i % 2] = fc[i];
}

void test_mma(bool bf16) {
  std::vector<uint16_t> a(16 * 16), b(16 * 8);
  for (unsigned i = 0; i < a.size(); ++i) a[i] = bits_of(number(i), bf16);
  for (unsigned i = 0; i < b.size(); ++i) b[i] = bits_of(number(i + 1000), bf16);
  check::Device<uint16_t> da(a), db(b);
  check::Device<float> c(16 * 8);
  EXPECT_EQ(check::run(mma_kernel, 1, 32, 0, da.data, db.data, c.data, bf16), cudaSuccess);
  for (size_t row = 0; row < 16; ++row)
    for (size_t column = 0; column < 8; ++column) {
      double sum = 1.0 + static_cast<double>(row / 8 * 2 + column % 2);
      for (size_t k = 0; k < 16; ++k)
        sum += static_cast<double>(value_of(a[row * 16 + k], bf16)) * value_of(b[k * 8 + column], bf16);
      EXPECT(std::fabs(sum - c[row * 8 + column]) < 1e-5);
    }
}
TEST(mma_bf16) { test_mma(true); }
TEST(mma_f16) { test_mma(false); }

__global__ void mma_tf32_kernel(const float* a, const float* b, float* c) {
  const unsigned lane = threadIdx.x, group = lane / 4, quad = lane % 4;
  uint32_t fa[4], fb[2];
  for (unsigned i = 0; i < 4; ++i) fa[i] = __float_as_uint(a[(group + i % 2 * 8) * 8 + quad + i / 2 * 4]);
  for (unsigned i = 0; i < 2; ++i) fb[i] = __float_as_uint(b[(quad + i * 4) * 8 + group]);
  float fc[4] = {};
  dvt::ptx::mma_m16n8k8_tf32(fc, fa, fb);
  for (unsigned i = 0; i < 4; ++i) c[(group + i / 2 * 8) * 8 + quad * 2 + i % 2] = fc[i];
}
TEST(mma_tf32) {
  std::vector<float> a(16 * 8), b(8 * 8);
  for (unsigned i = 0; i < a.size(); ++i) a[i] = number(i) * 1.0001f;
  for (unsigned i = 0; i < b.size(); ++i) b[i] = number(i + 99) * 1.0001f;
  check::Device<float> da(a), db(b), c(16 * 8);
  EXPECT_EQ(check::run(mma_tf32_kernel, 1, 32, 0, da.data, db.data, c.data), cudaSuccess);
  const auto cut = [](float x) { return __uint_as_float(__float_as_uint(x) & 0xffffe000u); };
  for (size_t row = 0; row < 16; ++row)
    for (size_t column = 0; column < 8; ++column) {
      double sum = 0;
      for (size_t k = 0; k < 8; ++k) sum += static_cast<double>(cut(a[row * 8 + k])) * cut(b[k * 8 + column]);
      EXPECT(std::fabs(sum - c[row * 8 + column]) < 1e-5);
    }
}

__global__ void ldmatrix_kernel(uint32_t* out) {
  auto* matrix = reinterpret_cast<uint16_t*>(shared_memory());
  const unsigned lane = threadIdx.x;
  for (unsigned i = lane; i < 256; i += 32) matrix[i] = static_cast<uint16_t>(i);
  __syncwarp();
  uint32_t four[4], two[2];
  dvt::ptx::ldmatrix_x4(four, matrix + lane * 8);
  for (unsigned i = 0; i < 4; ++i) out[lane * 12 + i] = four[i];
  dvt::ptx::ldmatrix_x4_trans(four, matrix + lane * 8);
  for (unsigned i = 0; i < 4; ++i) out[lane * 12 + 4 + i] = four[i];
  dvt::ptx::ldmatrix_x2(two, matrix + lane % 16 * 8);
  for (unsigned i = 0; i < 2; ++i) out[lane * 12 + 8 + i] = two[i];
  dvt::ptx::ldmatrix_x2_trans(two, matrix + lane % 16 * 8);
  for (unsigned i = 0; i < 2; ++i) out[lane * 12 + 10 + i] = two[i];
}
TEST(ldmatrix) {
  check::Device<uint32_t> out(32 * 12);
  EXPECT_EQ(check::run(ldmatrix_kernel, 1, 32, 512, out.data), cudaSuccess);
  for (unsigned lane = 0; lane < 32; ++lane)
    for (unsigned m = 0; m < 4; ++m) {
      const unsigned group = lane / 4, quad = lane % 4;
      const unsigned straight = m * 64 + group * 8 + 2 * quad, turned = m * 64 + 2 * quad * 8 + group;
      EXPECT_EQ(out[lane * 12 + m], straight | (straight + 1) << 16);
      EXPECT_EQ(out[lane * 12 + 4 + m], turned | (turned + 8) << 16);
      if (m < 2) {
        EXPECT_EQ(out[lane * 12 + 8 + m], straight | (straight + 1) << 16);
        EXPECT_EQ(out[lane * 12 + 10 + m], turned | (turned + 8) << 16);
      }
    }
}

// c [rows x columns] = a [rows x depth] b^T, b [columns x depth], in tiles of 64 x 64 x 32, two stages of cp.async.
constexpr unsigned kTile = 64, kDepth = 32, kPitch = kDepth + 8;
struct GemmShared {
  uint16_t a[2][kTile][kPitch], b[2][kTile][kPitch];
};
__global__ void gemm_kernel(const uint16_t* a, const uint16_t* b, float* c, unsigned columns, unsigned depth) {
  auto& shared = dvt::ptx::shared<GemmShared>();
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const unsigned row0 = blockIdx.y * kTile, column0 = blockIdx.x * kTile;
  const auto load = [&](unsigned stage, unsigned k0) {
    for (unsigned i = threadIdx.x; i < kTile * kDepth / 8; i += blockDim.x) {
      const unsigned row = i / (kDepth / 8), k = i % (kDepth / 8) * 8;
      dvt::ptx::copy_async_16(&shared.a[stage][row][k], a + (row0 + row) * depth + k0 + k);
      dvt::ptx::copy_async_16(&shared.b[stage][row][k], b + (column0 + row) * depth + k0 + k);
    }
    dvt::ptx::copy_async_commit();
  };
  float sum[8][4] = {};
  load(0, 0);
  for (unsigned k0 = 0, stage = 0; k0 < depth; k0 += kDepth, stage ^= 1) {
    if (k0 + kDepth < depth)
      load(stage ^ 1, k0 + kDepth);
    else
      dvt::ptx::copy_async_commit();
    dvt::ptx::copy_async_wait<1>();
    __syncthreads();
    for (unsigned k = 0; k < kDepth; k += 16) {
      uint32_t fa[4], fb[4];
      dvt::ptx::ldmatrix_x4(fa, &shared.a[stage][warp * 16 + lane % 16][k + lane / 16 * 8]);
      for (unsigned n = 0; n < 8; n += 2) {
        dvt::ptx::ldmatrix_x4(fb, &shared.b[stage][n * 8 + lane % 8 + lane / 16 * 8][k + lane / 8 % 2 * 8]);
        dvt::ptx::mma_m16n8k16_bf16(sum[n], fa, {fb[0], fb[1]});
        dvt::ptx::mma_m16n8k16_bf16(sum[n + 1], fa, {fb[2], fb[3]});
      }
    }
    __syncthreads();
  }
  for (unsigned n = 0; n < 8; ++n)
    for (unsigned i = 0; i < 4; ++i)
      c[(row0 + warp * 16 + lane / 4 + i / 2 * 8) * columns + column0 + n * 8 + lane % 4 * 2 + i % 2] = sum[n][i];
}
void test_gemm(unsigned rows, unsigned columns, unsigned depth) {
  std::vector<uint16_t> a(rows * depth), b(columns * depth);
  for (unsigned i = 0; i < a.size(); ++i) a[i] = bits_of(number(i), true);
  for (unsigned i = 0; i < b.size(); ++i) b[i] = bits_of(number(i * 3 + 7), true);
  check::Device<uint16_t> da(a), db(b);
  check::Device<float> c(rows * columns);
  EXPECT_EQ(check::run(gemm_kernel, dim3(columns / kTile, rows / kTile), 128, sizeof(GemmShared), da.data, db.data,
                       c.data, columns, depth),
            cudaSuccess);
  for (unsigned row = 0; row < rows; row += 7)
    for (unsigned column = 0; column < columns; column += 5) {
      double sum = 0;
      for (unsigned k = 0; k < depth; ++k)
        sum += static_cast<double>(value_of(a[row * depth + k], true)) * value_of(b[column * depth + k], true);
      EXPECT(std::fabs(sum - c[row * columns + column]) < 1e-3);
    }
}
TEST(gemm) { test_gemm(128, 128, 96); }
// Prints its speed.
TEST(gemm_speed) {
  cudaEvent_t start, end;
  cudaEventCreate(&start);
  cudaEventCreate(&end);
  cudaEventRecord(start);
  test_gemm(256, 768, 768);
  cudaEventRecord(end);
  float ms = 0;
  EXPECT_EQ(cudaEventElapsedTime(&ms, start, end), cudaSuccess);
  std::printf("%.2f GFLOP/s\n", 2e-6 * 256 * 768 * 768 / ms);
}

}  // namespace
