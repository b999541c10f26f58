// Any image, layout and plan: refused before memory is touched, or prepared with the same bits on every instruction
// set, whatever the scratch held.
//
// The input is a program of bytes, taken one after the other, 0 after the last: plan, dtype, shape, strides, pixels.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "core/isa.h"
#include "engine/pixels.h"
#include "fuzz.h"

namespace {

constexpr int64_t kWild[] = {0,
                             -1,
                             3,
                             65536,
                             65537,
                             int64_t{1} << 31,
                             int64_t{1} << 62,
                             std::numeric_limits<int64_t>::max(),
                             std::numeric_limits<int64_t>::min()};
constexpr int64_t kMaxBytes = 1 << 20;  // of an image that is really made

class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  uint8_t byte() { return at_ < size_ ? data_[at_++] : 0; }
  // Mostly a size of an image, seldom anything.
  int64_t size() {
    const uint8_t kind = byte();
    if (kind < 160) return 1 + kind % 40;
    if (kind < 240) return 1 + byte();
    if (kind < 250) return 257 + kind % 2 * 256 + byte();
    return kWild[byte() % (sizeof kWild / sizeof *kWild)];
  }
  float number() {
    const uint8_t kind = byte();
    return kind < 250 ? static_cast<float>(kind) / 64 - 1 : kind == 250 ? INFINITY : kind == 251 ? NAN : 1e37f;
  }

 private:
  const uint8_t* data_;
  size_t size_, at_ = 0;
};

using Wide = __int128;

// The first and the last element of an image, relative to its data.
void reach_of(const dvt::TensorView& image, Wide* low, Wide* high) {
  *low = *high = 0;
  for (int axis = 0; axis < image.rank; ++axis) {
    const Wide end = static_cast<Wide>(image.shape[axis] - 1) * image.strides[axis];
    (end < 0 ? *low : *high) += end;
  }
}

void choose_strides(Input* input, bool is_uint8, dvt::TensorView* image) {
  const int rows = is_uint8 ? 0 : 1, columns = rows + 1, channels = is_uint8 ? 2 : 0;
  const uint8_t layout = input->byte();
  const int64_t pixel = is_uint8 ? 3 + layout % 2 : 1, padding = input->byte() % 20;
  image->strides[channels] = is_uint8 ? 1 : 0;
  image->strides[columns] = pixel;
  // The fuzzer's sizes may be anything: what wraps here is a stride like any other.
  const auto times = [](int64_t a, int64_t b, int64_t more = 0) {
    return static_cast<int64_t>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b) + static_cast<uint64_t>(more));
  };
  image->strides[rows] = times(image->shape[columns], pixel, padding);
  if (!is_uint8) image->strides[channels] = times(image->shape[rows], image->strides[rows]);
  const auto negate = [&](int axis) { image->strides[axis] = times(image->strides[axis], -1); };
  if (layout & 2) negate(rows);
  if (layout & 4) negate(columns);
  if (layout & 8) negate(channels);
  if (layout & 16) std::swap(image->strides[rows], image->strides[columns]);
  if (layout & 32) image->strides[input->byte() % 3] = 0;
  if (layout & 64) image->strides[input->byte() % 3] = static_cast<int8_t>(input->byte());
  if ((layout & 128) && input->byte() > 200) image->strides[input->byte() % 3] = kWild[input->byte() % 9];
}

std::vector<dvt::Isa> runnable_isas() {
  std::vector<dvt::Isa> isas;
  for (const dvt::Isa isa : dvt::built_isas())
    if (dvt::isa_runs(isa)) isas.push_back(isa);
  return isas;
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};

// Every instruction set on two kinds of dirt: the same bits from pixels, nearly the same values from floats.
void check_results(const dvt::PixelsPlan& plan, const dvt::TensorView& image) {
  static const std::vector<dvt::Isa> isas = runnable_isas();
  const size_t scratch_bytes = dvt::pixels_scratch_bytes(plan),
               count = static_cast<size_t>(3 * plan.height * plan.width);
  if (scratch_bytes > 16 * kMaxBytes || count > kMaxBytes / 4) return;
  const std::unique_ptr<void, Free> scratch(std::aligned_alloc(64, scratch_bytes));
  std::vector<float> expected;
  for (const dvt::Isa isa : isas) {
    FUZZ_REQUIRE(dvt::set_isa(dvt::isa_name(isa)).ok());
    std::vector<float> same_isa;
    for (const int dirt : {0x00, 0xff}) {
      std::vector<float> result(count);
      std::memset(scratch.get(), dirt, scratch_bytes);
      const dvt::Status status = dvt::prepare_pixels(plan, image, scratch.get(), result.data());
      FUZZ_REQUIRE(status.ok());
      for (const float value : result) FUZZ_REQUIRE(std::isfinite(value));
      if (same_isa.empty()) same_isa = result;
      FUZZ_REQUIRE(std::memcmp(result.data(), same_isa.data(), count * sizeof(float)) == 0);
    }
    if (expected.empty()) expected = same_isa;
    if (image.dtype == dvt::Dtype::uint8)
      FUZZ_REQUIRE(std::memcmp(expected.data(), same_isa.data(), count * sizeof(float)) == 0);
    for (size_t i = 0; i < count; ++i) FUZZ_REQUIRE(std::fabs(expected[i] - same_isa[i]) <= 1e-2f);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  dvt::PixelsPlan plan{};
  for (int64_t* side : {&plan.height, &plan.width, &plan.max_source_height, &plan.max_source_width})
    *side = input.size();
  for (int c = 0; c < 3; ++c) {
    plan.scale[c] = input.number();
    plan.shift[c] = input.number();
  }
  const bool plan_fits = dvt::check_pixels_plan(plan).ok();

  dvt::TensorView image;
  const uint8_t kind = input.byte();
  image.dtype = kind < 120   ? dvt::Dtype::uint8
                : kind < 240 ? dvt::Dtype::float32
                : kind < 248 ? dvt::Dtype::float16
                             : dvt::Dtype::bfloat16;
  image.rank = kind % 16 == 15 ? input.byte() % 5 : 3;
  const bool is_uint8 = image.dtype == dvt::Dtype::uint8;
  const int rows = is_uint8 ? 0 : 1, channels = is_uint8 ? 2 : 0;
  image.shape[rows] = input.size();
  image.shape[rows + 1] = input.size();
  image.shape[channels] = kind % 16 == 14 ? input.size() : 3;
  choose_strides(&input, is_uint8, &image);

  const bool fits = plan_fits && (is_uint8 || image.dtype == dvt::Dtype::float32) && image.rank == 3 &&
                    image.shape[channels] == 3 && image.shape[rows] >= 1 && image.shape[rows + 1] >= 1 &&
                    image.shape[rows] <= plan.max_source_height && image.shape[rows + 1] <= plan.max_source_width;
  Wide low = 0, high = 0;
  if (fits) reach_of(image, &low, &high);
  const Wide bytes = (high - low + 1) * dvt::size_of(image.dtype);
  if (fits && bytes <= kMaxBytes) {
    // Exactly the memory from the first element to the last one.
    const std::unique_ptr<uint8_t[]> memory(new uint8_t[static_cast<size_t>(bytes)]);
    for (size_t i = 0; i < static_cast<size_t>(bytes); ++i) memory[i] = input.byte();
    if (!is_uint8)
      for (size_t i = 0; i < static_cast<size_t>(bytes); i += sizeof(float)) {
        const float value = static_cast<float>(memory[i]) / 255;
        std::memcpy(&memory[i], &value, sizeof value);
      }
    image.data = memory.get() - static_cast<int64_t>(low) * dvt::size_of(image.dtype);
    check_results(plan, image);
    return 0;
  }
  if (fits && bytes < Wide{1} << 64) return 0;  // more memory than there is to test with
  // What is left must be refused before anything is touched: one byte is all that there is.
  const std::unique_ptr<uint8_t[]> memory(new uint8_t[1]);
  const std::unique_ptr<void, Free> scratch(std::aligned_alloc(64, 64));
  float out = 0;
  image.data = memory.get();
  const dvt::Status status = dvt::prepare_pixels(plan, image, scratch.get(), &out);
  FUZZ_REQUIRE(status.code() == dvt::StatusCode::invalid_argument);
  require_sentence(status);
  return 0;
}
