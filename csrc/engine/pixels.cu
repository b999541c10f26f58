// `prepare_pixels` on a device: what images must be, and the order of the two passes; the kernels are in
// resize_tables.cu and resize.cu.
#include <algorithm>
#include <cmath>

#include "cuda/op_registry.h"
#include "cuda/runtime.h"
#include "engine/pixels_cuda.h"
#include "engine/resize_cuda.h"

namespace dvt::cuda {
namespace {

constexpr int64_t kChannels = 3;
constexpr uintptr_t kAlignment = 16;

ResizeTables lay_out_tables(const PixelsPlan& plan, void* memory, size_t* bytes) {
  const auto taps = [](int64_t source, int64_t target) {
    return resize_taps(static_cast<double>(source) / static_cast<double>(target), source);
  };
  const int64_t y = taps(plan.max_source_height, plan.height), x = taps(plan.max_source_width, plan.width);
  *bytes = resize_tables_bytes(1, plan.height, plan.width, y, x);
  return resize_tables(memory, 1, plan.height, plan.width, y, x);
}

Status check_source_size(const PixelsPlan& plan, int64_t height, int64_t width) {
  if (height <= plan.max_source_height && width <= plan.max_source_width) return Status();
  return invalid_argument("an image must have at most ", plan.max_source_height, " x ", plan.max_source_width,
                          " pixels, the max_source that the session was made for, got ", height, " x ", width);
}

Status check_tables(const void* tables) {
  if (tables && reinterpret_cast<uintptr_t>(tables) % kAlignment == 0) return Status();
  return invalid_argument("the tables of pixels must be aligned to ", kAlignment, " bytes");
}

// The size of the images, and the strides of image, row, column and channel in bytes, 0 where there is only one.
struct Images {
  int64_t batch, height, width;
  int64_t strides[4];
};

Status check_images(const PixelsPlan& plan, const TensorView& view, Images* images) {
  const bool is_uint8 = view.dtype == Dtype::uint8;
  if (!is_uint8 && view.dtype != Dtype::float32)
    return invalid_argument("an image must be uint8 or float32, got ", dtype_name(view.dtype));
  const char* wanted =
      is_uint8 ? "[H, W, 3] or [B, H, W, 3] where it is uint8" : "[3, H, W] or [B, 3, H, W] where it is float32";
  if (view.rank != 3 && view.rank != 4)
    return invalid_argument("an image must have shape ", wanted, ", got ", view.rank, " axes");
  const int image_axis = view.rank - 4, rows = image_axis + (is_uint8 ? 1 : 2), columns = rows + 1;
  const int channels = image_axis + (is_uint8 ? 3 : 1);
  images->batch = view.rank == 4 ? view.shape[0] : 1;
  images->height = view.shape[rows];
  images->width = view.shape[columns];
  if (view.shape[channels] != kChannels || images->batch < 1 || images->height < 1 || images->width < 1) {
    std::string shape = "[";
    for (int axis = 0; axis < view.rank; ++axis) shape += format(axis ? ", " : "", view.shape[axis]);
    return invalid_argument("an image must have shape ", wanted, ", got ", shape, "]");
  }
  DVT_RETURN_IF_ERROR(check_source_size(plan, images->height, images->width));
  if (!view.data) return invalid_argument("an image must have data, got null");

  double reach = 0;
  for (int axis = 0; axis < view.rank; ++axis)
    if (view.shape[axis] > 1)
      reach += static_cast<double>(view.shape[axis] - 1) * std::fabs(static_cast<double>(view.strides[axis]));
  const int64_t element = size_of(view.dtype);
  if (!(reach * static_cast<double>(element) < 0x1p62))
    return invalid_argument("an image must have strides within memory");
  if (!is_uint8 && reinterpret_cast<uintptr_t>(view.data) % sizeof(float) != 0)
    return invalid_argument("an image of float32 must be aligned to 4 bytes");
  const int axes[4] = {image_axis, rows, columns, channels};
  for (int i = 0; i < 4; ++i)
    images->strides[i] = axes[i] >= 0 && view.shape[axes[i]] > 1 ? view.strides[axes[i]] * element : 0;
  return Status();
}

}  // namespace

size_t pixels_tables_bytes(const PixelsPlan& plan) {
  size_t bytes = 0;
  lay_out_tables(plan, nullptr, &bytes);
  return bytes;
}

Status pixels_fill_tables(const PixelsPlan& plan, int64_t height, int64_t width, Dtype kind, void* tables, bool overlap,
                          cudaStream_t stream) {
  DVT_RETURN_IF_ERROR(check_pixels_plan(plan));
  DVT_RETURN_IF_ERROR(check_tables(tables));
  if (height < 1 || width < 1) return invalid_argument("an image must have pixels, got ", height, " x ", width);
  DVT_RETURN_IF_ERROR(check_source_size(plan, height, width));
  if (kind != Dtype::uint8 && kind != Dtype::float32)
    return invalid_argument("an image must be uint8 or float32, got ", dtype_name(kind));
  size_t bytes = 0;
  ResizeTables t = lay_out_tables(plan, tables, &bytes);
  t.x.source = static_cast<int32_t>(width);
  t.y.source = static_cast<int32_t>(height);
  ResizeSpans spans{};
  spans.x[0] = {0, static_cast<double>(width) / static_cast<double>(plan.width)};
  spans.y[0] = {0, static_cast<double>(height) / static_cast<double>(plan.height)};
  return resize_fill_tables(t, spans, 1, kind, overlap, stream);
}

Status pixels_forward(const PixelsPlan& plan, const TensorView& view, void* tables, Dtype out_type, void* out,
                      bool overlap, cudaStream_t stream) {
  Images images{};
  DVT_RETURN_IF_ERROR(check_pixels_plan(plan));
  DVT_RETURN_IF_ERROR(check_images(plan, view, &images));
  DVT_RETURN_IF_ERROR(check_tables(tables));
  if (!out || reinterpret_cast<uintptr_t>(out) % static_cast<uintptr_t>(size_of(out_type)) != 0)
    return invalid_argument("the result of pixels must have data that is aligned to its elements");
  const bool is_uint8 = view.dtype == Dtype::uint8;
  ResizeCall call{};
  size_t bytes = 0;
  call.tables = lay_out_tables(plan, tables, &bytes);
  call.columns_first = is_uint8 && pixels_columns_first(plan, images.height, images.width);
  call.views = images.batch;
  call.kind = view.dtype;
  call.source = view.data;
  std::copy(images.strides, images.strides + 4, call.strides);
  call.out_type = out_type;
  call.out = out;
  for (int64_t c = 0; c < kChannels; ++c) {
    call.scale[c] = is_uint8 ? plan.scale[c] : 255 * plan.scale[c];
    call.shift[c] = plan.shift[c];
  }
  call.overlap = overlap;
  call.stream = stream;
  return resize_forward(call);
}

namespace {

// pixels: memory, uint8 or float32, of which an image is a view: numbers "rank", "offset", "shape0" .. and "stride0" ..
// in elements. y: [B, 3, h, w]. numbers "max_height", "max_width", "scale0" .. "shift2".
Status pixels_op(OpCall& call) {
  const std::string kind = call.word("kind", "uint8");
  const OpTensor *memory = nullptr, *y = nullptr;
  DVT_RETURN_IF_ERROR(call.tensor("pixels", kind == "uint8" ? OpType::uint8 : OpType::float32, &memory));
  const std::string type = call.word("type", "float32");
  const Dtype out_type = type == "float16" ? Dtype::float16 : type == "bfloat16" ? Dtype::bfloat16 : Dtype::float32;
  const OpType stored = type == "float16" ? OpType::float16 : type == "bfloat16" ? OpType::bfloat16 : OpType::float32;
  DVT_RETURN_IF_ERROR(call.tensor("y", stored, &y));
  if (y->shape.size() != 4) return invalid_argument("y must have 4 axes");

  const auto integer = [&](const std::string& name) { return static_cast<int64_t>(call.number(name)); };
  TensorView view;
  view.dtype = kind == "uint8" ? Dtype::uint8 : Dtype::float32;
  view.rank = static_cast<int>(integer("rank"));
  view.data = memory->as<char>() + integer("offset") * size_of(view.dtype);
  for (int axis = 0; axis < std::min(view.rank, kMaxRank); ++axis) {
    view.shape[axis] = integer(format("shape", axis));
    view.strides[axis] = integer(format("stride", axis));
  }
  PixelsPlan plan{y->shape[2], y->shape[3], integer("max_height"), integer("max_width"), {}, {}};
  for (int c = 0; c < kChannels; ++c) {
    plan.scale[c] = static_cast<float>(call.number(format("scale", c), 1));
    plan.shift[c] = static_cast<float>(call.number(format("shift", c), 0));
  }
  DVT_RETURN_IF_ERROR(check_pixels_plan(plan));
  const auto stream = static_cast<cudaStream_t>(call.stream);
  DeviceMemory tables;
  DVT_RETURN_IF_ERROR(tables.allocate(pixels_tables_bytes(plan), "filters"));
  // An image of another size first: what it leaves in the tables must not matter.
  DVT_RETURN_IF_ERROR(
      pixels_fill_tables(plan, plan.max_source_height, plan.max_source_width, view.dtype, tables.data(), true, stream));
  Images images{};
  DVT_RETURN_IF_ERROR(check_images(plan, view, &images));
  if (images.batch != y->shape[0]) return invalid_argument("y must have the batch of the images");
  DVT_RETURN_IF_ERROR(pixels_fill_tables(plan, images.height, images.width, view.dtype, tables.data(), true, stream));
  DVT_RETURN_IF_ERROR(pixels_forward(plan, view, tables.data(), out_type, y->data, true, stream));
  return check(cudaStreamSynchronize(stream), "preparing pixels");
}
DVT_CUDA_OP("pixels", pixels_op)

}  // namespace
}  // namespace dvt::cuda
