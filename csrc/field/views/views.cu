// Views of one image: what Pillow makes of a box in float, and many views a launch; the kernels are engine/resize.cu's.
//
// Pillow takes the four edges as float32, subtracts them in float32 and goes on in double, and so the spans here.
#include "field/views/views_cuda.h"

#include <algorithm>
#include <cmath>

#include "cuda/op_registry.h"
#include "cuda/runtime.h"
#include "engine/pixels.h"
#include "engine/resize_cuda.h"

namespace dvt::cuda {
namespace {

constexpr int64_t kChannels = 3;
constexpr uintptr_t kAlignment = 16;

ResizeSpan span_of(double from, double to, int64_t target) {
  const float first = static_cast<float>(from), last = static_cast<float>(to);
  const float length = last - first;
  return {static_cast<double>(first), static_cast<double>(length) / static_cast<double>(target)};
}

// Of view i, along x and y.
ResizeSpan span_x(const ViewsRequest& r, int64_t i) { return span_of(r.boxes[4 * i], r.boxes[4 * i + 2], r.width); }
ResizeSpan span_y(const ViewsRequest& r, int64_t i) {
  return span_of(r.boxes[4 * i + 1], r.boxes[4 * i + 3], r.height);
}

Status check_views(const ViewsRequest& r) {
  const TensorView& image = r.image;
  if (image.dtype != Dtype::uint8 || image.rank != 3 || image.shape[2] != kChannels || image.shape[0] < 1 ||
      image.shape[1] < 1)
    return invalid_argument("the image of views must be uint8 of shape [H, W, 3]");
  if (image.shape[0] > kMaxPixelsSide || image.shape[1] > kMaxPixelsSide)
    return invalid_argument("the image of views must have at most ", kMaxPixelsSide, " pixels a side, got ",
                            image.shape[0], " x ", image.shape[1]);
  if (r.height < 1 || r.width < 1 || r.height > kMaxPixelsSide || r.width > kMaxPixelsSide)
    return invalid_argument("a view must have from 1 to ", kMaxPixelsSide, " pixels a side, got ", r.height, " x ",
                            r.width);
  if (r.views < 1) return invalid_argument("there must be at least 1 view, got ", r.views);
  if (!r.boxes) return invalid_argument("views must have boxes, got null");
  for (int64_t i = 0; i < r.views; ++i) {
    const double* box = r.boxes + 4 * i;
    const auto is_within = [](double from, double to, int64_t size) {
      return from >= 0 && to > from && static_cast<float>(to) <= static_cast<float>(size);  // false for NaN
    };
    if (!is_within(box[0], box[2], image.shape[1]) || !is_within(box[1], box[3], image.shape[0]))
      return invalid_argument("the box of view ", i, " must lie within the image of ", image.shape[0], " x ",
                              image.shape[1], " pixels, got left ", box[0], ", top ", box[1], ", right ", box[2],
                              ", bottom ", box[3]);
  }
  return Status();
}

// The tables of `views` views at a time, and their bytes.
ResizeTables lay_out_tables(const ViewsRequest& r, int64_t views, void* memory, size_t* bytes) {
  double step_x = 0, step_y = 0;
  for (int64_t i = 0; i < r.views; ++i) {
    step_x = std::max(step_x, span_x(r, i).step);
    step_y = std::max(step_y, span_y(r, i).step);
  }
  const int64_t taps_x = resize_taps(step_x, r.image.shape[1]), taps_y = resize_taps(step_y, r.image.shape[0]);
  *bytes = resize_tables_bytes(views, r.height, r.width, taps_y, taps_x);
  ResizeTables tables = resize_tables(memory, views, r.height, r.width, taps_y, taps_x);
  tables.x.source = static_cast<int32_t>(r.image.shape[1]);
  tables.y.source = static_cast<int32_t>(r.image.shape[0]);
  return tables;
}

}  // namespace

Status views_workspace_bytes(const ViewsRequest& r, size_t* bytes) {
  DVT_RETURN_IF_ERROR(check_views(r));
  lay_out_tables(r, std::min<int64_t>(r.views, kMaxResizeViews), nullptr, bytes);
  return Status();
}

Status views_forward(const ViewsRequest& r) {
  size_t bytes = 0;
  DVT_RETURN_IF_ERROR(views_workspace_bytes(r, &bytes));
  if (!r.image.data) return invalid_argument("the image of views must have data, got null");
  if (!r.workspace || r.workspace_bytes < bytes)
    return invalid_argument("the workspace of views must have ", bytes, " bytes, got ",
                            r.workspace ? r.workspace_bytes : 0);
  if (reinterpret_cast<uintptr_t>(r.workspace) % kAlignment != 0)
    return invalid_argument("the workspace of views must be aligned to ", kAlignment, " bytes");
  const int64_t element = size_of(r.type);
  if (!r.out || reinterpret_cast<uintptr_t>(r.out) % static_cast<uintptr_t>(element) != 0)
    return invalid_argument("the result of views must have data that is aligned to its elements");
  for (int64_t c = 0; c < kChannels; ++c)
    if (!std::isfinite(r.scale[c]) || !std::isfinite(r.shift[c]))
      return invalid_argument("scale and shift of pixels must be finite, got ", r.scale[c], " and ", r.shift[c]);

  ResizeCall call{};
  call.table_each = true;
  const PixelsPlan plan{r.height, r.width, r.image.shape[0], r.image.shape[1], {}, {}};
  call.columns_first = r.columns_first && pixels_columns_first(plan, r.image.shape[0], r.image.shape[1]);
  call.kind = Dtype::uint8;
  call.source = r.image.data;
  for (int axis = 0; axis < 3; ++axis) call.strides[axis + 1] = r.image.shape[axis] > 1 ? r.image.strides[axis] : 0;
  call.out_type = r.type;
  std::copy(r.scale, r.scale + kChannels, call.scale);
  std::copy(r.shift, r.shift + kChannels, call.shift);
  call.stream = static_cast<cudaStream_t>(r.stream);
  for (int64_t first = 0; first < r.views; first += kMaxResizeViews) {
    call.views = std::min<int64_t>(r.views - first, kMaxResizeViews);
    call.tables = lay_out_tables(r, call.views, r.workspace, &bytes);
    call.out = static_cast<char*>(r.out) + first * kChannels * r.height * r.width * element;
    call.mirrored = 0;
    ResizeSpans spans{};
    for (int64_t i = 0; i < call.views; ++i) {
      spans.x[i] = span_x(r, first + i);
      spans.y[i] = span_y(r, first + i);
      if (r.mirrored && r.mirrored[first + i]) call.mirrored |= uint64_t{1} << i;
    }
    DVT_RETURN_IF_ERROR(resize_fill_tables(call.tables, spans, call.views, Dtype::uint8, true, call.stream));
    call.overlap = true;
    DVT_RETURN_IF_ERROR(resize_forward(call));
  }
  return Status();
}

namespace {

// pixels: uint8 memory, of which the image is a view: numbers "offset", "height", "width", "stride0" .. "stride2".
// number "views"; "box<i>_<k>" and "mirror<i>" of each. y: [views, 3, h, w]. numbers "scale0" .. "shift2".
Status views_op(OpCall& call) {
  const OpTensor *memory = nullptr, *y = nullptr;
  DVT_RETURN_IF_ERROR(call.tensor("pixels", OpType::uint8, &memory));
  const std::string type = call.word("type", "float32");
  const OpType stored = type == "float16" ? OpType::float16 : type == "bfloat16" ? OpType::bfloat16 : OpType::float32;
  DVT_RETURN_IF_ERROR(call.tensor("y", stored, &y));
  if (y->shape.size() != 4) return invalid_argument("y must have 4 axes");
  const auto integer = [&](const std::string& name) { return static_cast<int64_t>(call.number(name)); };
  ViewsRequest r;
  r.type = type == "float16" ? Dtype::float16 : type == "bfloat16" ? Dtype::bfloat16 : Dtype::float32;
  r.image.dtype = Dtype::uint8;
  r.image.rank = 3;
  r.image.data = memory->as<char>() + integer("offset");
  r.image.shape[0] = integer("height"), r.image.shape[1] = integer("width"), r.image.shape[2] = kChannels;
  for (int axis = 0; axis < 3; ++axis) r.image.strides[axis] = integer(format("stride", axis));
  r.views = y->shape[0], r.height = y->shape[2], r.width = y->shape[3];
  std::vector<double> boxes;
  std::vector<uint8_t> mirrored;
  for (int64_t i = 0; i < r.views; ++i) {
    for (int k = 0; k < 4; ++k) boxes.push_back(call.number(format("box", i, "_", k)));
    mirrored.push_back(call.number(format("mirror", i)) != 0);
  }
  r.boxes = boxes.data();
  r.mirrored = mirrored.data();
  r.columns_first = call.number("columns_first", 1) != 0;
  for (int c = 0; c < kChannels; ++c) {
    r.scale[c] = static_cast<float>(call.number(format("scale", c), 1));
    r.shift[c] = static_cast<float>(call.number(format("shift", c), 0));
  }
  r.out = y->data;
  r.stream = call.stream;
  DVT_RETURN_IF_ERROR(views_workspace_bytes(r, &r.workspace_bytes));
  DeviceMemory workspace;
  DVT_RETURN_IF_ERROR(workspace.allocate(r.workspace_bytes, "filters"));
  r.workspace = workspace.data();
  DVT_RETURN_IF_ERROR(views_forward(r));
  return check(cudaStreamSynchronize(static_cast<cudaStream_t>(r.stream)), "making views");
}
DVT_CUDA_OP("views", views_op)

}  // namespace
}  // namespace dvt::cuda
