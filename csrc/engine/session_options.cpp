#include "engine/session_options.h"

#include <algorithm>
#include <string>

#include "core/threads.h"
#include "engine/tensor_io.h"

namespace dvt {
namespace {

constexpr int64_t kMaxSide = 1 << 15;  // pixels or patches
constexpr int64_t kMaxBatch = 1 << 12;
constexpr int64_t kMaxTokens = 1 << 20;  // of one image

Status check_rank(const char* what, const TensorView& view, int64_t batch, const int64_t (&expected)[3],
                  const char* layout) {
  bool fits = view.rank == 4 || (view.rank == 3 && batch == 1);
  if (fits && view.rank == 4) fits = view.shape[0] == batch;
  for (int i = 0; fits && i < 3; ++i) {
    const int64_t n = view.shape[view.rank - 3 + i];
    fits = expected[i] < 0 ? n > 0 : n == expected[i];
  }
  if (fits) return Status();
  std::string want = format("[", batch), came = "[";
  for (int64_t n : expected) want += n < 0 ? std::string(", *") : format(", ", n);
  for (int i = 0; i < view.rank; ++i) came += format(i ? ", " : "", view.shape[i]);
  return invalid_argument(what, " must have shape ", want, "] (", layout, ")",
                          batch == 1 ? " or without the first" : "", ", got ", came, "]");
}

}  // namespace

Status resolve_options(const SessionModel& model, SessionOptions* options, std::array<int64_t, 2>* grid) {
  SessionOptions& o = *options;
  if (o.batch < 1 || o.batch > kMaxBatch)
    return invalid_argument("batch must be from 1 to ", kMaxBatch, ", got ", o.batch);
  if (o.threads < 1 || o.threads > kMaxThreads)
    return invalid_argument("threads must be from 1 to ", kMaxThreads, ", got ", o.threads);
  std::array<int64_t, 2> found = {0, 0};
  const bool features = o.input == InputKind::features;
  if (features && !model.has_denoiser)
    return invalid_argument("a session on features needs a denoiser, and this engine has only a ViT");
  if (!features && !model.has_vit)
    return invalid_argument("a session on images needs a ViT, and this engine has only a denoiser: give it features");
  if (features) {
    if (o.image_height != 0 || o.image_width != 0)
      return invalid_argument("a session on features takes a grid, and no image size");
    found = {o.grid_height, o.grid_width};
    if (found[0] < 1 || found[1] < 1 || found[0] > kMaxSide || found[1] > kMaxSide)
      return invalid_argument("a session on features needs a grid from 1 to ", kMaxSide, " patches a side, got ",
                              found[0], " x ", found[1]);
  } else {
    if (o.image_height == 0 && o.image_width == 0) {
      o.image_height = model.image_size[0];
      o.image_width = model.image_size[1];
    }
    const int64_t size[2] = {o.image_height, o.image_width};
    for (size_t i = 0; i < 2; ++i) {
      if (size[i] < model.patch[i] || size[i] > kMaxSide || (size[i] - model.patch[i]) % model.stride[i] != 0)
        return invalid_argument("the image size must fit whole patches of ", model.patch[i], " pixels every ",
                                model.stride[i], ", at most ", kMaxSide, ", got ", size[0], " x ", size[1]);
      found[i] = (size[i] - model.patch[i]) / model.stride[i] + 1;
    }
    if ((o.grid_height != 0 || o.grid_width != 0) && (o.grid_height != found[0] || o.grid_width != found[1]))
      return invalid_argument("images of ", size[0], " x ", size[1], " make a grid of ", found[0], " x ", found[1],
                              " patches, and ", o.grid_height, " x ", o.grid_width, " was asked for");
  }
  if (found[0] * found[1] > kMaxTokens)
    return invalid_argument("at most ", kMaxTokens, " patches an image, got ", found[0], " x ", found[1]);
  if (o.input == InputKind::image && (o.max_source_height < 1 || o.max_source_height > kMaxSide ||
                                      o.max_source_width < 1 || o.max_source_width > kMaxSide))
    return invalid_argument("the largest source must be from 1 to ", kMaxSide, " pixels a side, got ",
                            o.max_source_height, " x ", o.max_source_width);
  o.grid_height = found[0];
  o.grid_width = found[1];
  *grid = found;
  return Status();
}

Status check_tensors(const SessionModel& model, const SessionOptions& options, const TensorView& input,
                     const TensorView& output, const TensorView* raw) {
  const int64_t batch = options.batch, dim = model.dim, height = options.grid_height, width = options.grid_width;
  if (!input.data) return invalid_argument("input is null");
  switch (options.input) {
    case InputKind::image:
      if (input.dtype == Dtype::uint8) {
        DVT_RETURN_IF_ERROR(check_rank("uint8 images", input, batch, {-1, -1, 3}, "batch, height, width, RGB"));
      } else if (input.dtype == Dtype::float32) {
        DVT_RETURN_IF_ERROR(check_rank("float32 images", input, batch, {3, -1, -1}, "batch, RGB, height, width"));
      } else {
        return invalid_argument("images must be uint8 or float32, got ", dtype_name(input.dtype));
      }
      break;
    case InputKind::normalized:
      if (!is_floating(input.dtype))
        return invalid_argument("normalized images must be floats, got ", dtype_name(input.dtype));
      DVT_RETURN_IF_ERROR(check_rank("normalized images", input, batch, {3, options.image_height, options.image_width},
                                     "batch, RGB, height, width"));
      break;
    case InputKind::features:
      if (!is_floating(input.dtype)) return invalid_argument("features must be floats, got ", dtype_name(input.dtype));
      DVT_RETURN_IF_ERROR(check_rank("features", input, batch, {height, width, dim}, "batch, rows, columns, channels"));
      break;
  }
  for (const TensorView* view : {&output, raw}) {
    if (!view) continue;
    const char* name = view == raw ? "raw" : "output";
    if (!view->data) return invalid_argument(name, " is null");
    if (!is_floating(view->dtype))
      return invalid_argument(name, " must be of a floating type, got ", dtype_name(view->dtype));
    DVT_RETURN_IF_ERROR(check_rank(name, *view, batch, {height, width, dim}, "batch, rows, columns, channels"));
  }
  if (raw && options.input == InputKind::features)
    return invalid_argument("raw features are those of a ViT, and this session runs none");
  return Status();
}

TensorView image_of(const TensorView& view, int64_t i) {
  if (view.rank == 3) return view;
  TensorView one = view;
  one.rank = 3;
  one.data = static_cast<char*>(view.data) + i * view.strides[0] * size_of(view.dtype);
  std::copy_n(view.shape + 1, 3, one.shape);
  std::copy_n(view.strides + 1, 3, one.strides);
  return one;
}

}  // namespace dvt
