// Where the buffers of a session lie in its workspace, and the tables that depend on the frame's size.
#include <algorithm>

#include "engine/cuda/session.h"
#include "engine/pixels_cuda.h"
#include "engine/resample.h"
#include "transformer/block/block.h"

namespace dvt::cuda {
namespace {

// Hands out pieces of the workspace; what is rewound to is used again.
class Arena {
 public:
  size_t take(int64_t bytes) {
    const size_t at = used_;
    used_ += (static_cast<size_t>(bytes) + Layout::kAlignment - 1) / Layout::kAlignment * Layout::kAlignment;
    most_ = std::max(most_, used_);
    return at;
  }
  size_t used() const { return used_; }
  size_t most() const { return most_; }
  void rewind(size_t to) { used_ = to; }

 private:
  size_t used_ = 0, most_ = 0;
};

DeviceStage plan_stage(const DeviceTransformer& t, std::array<int64_t, 2> grid, int64_t batch, SessionTables* tables) {
  DeviceStage stage;
  stage.t = &t;
  stage.batch = batch;
  stage.patches = grid[0] * grid[1];
  stage.tokens = stage.patches + t.extra_count;
  stage.first_patch = t.extra_first ? t.extra_count : 0;
  stage.grid_width = grid[1];
  stage.x_stride = round_up(t.dim, kRowPiece);
  if (!t.pos_embed.empty()) {
    const std::vector<float> maps = resample_bicubic(t.pos_embed, t.dim, t.pos_grid, grid);
    std::vector<float> rows(static_cast<size_t>(stage.patches * row_floats(t.dim)), 0.0f);
    for (int64_t i = 0; i < stage.patches; ++i)
      std::copy_n(maps.data() + i * t.dim, t.dim, rows.data() + i * row_floats(t.dim));
    stage.positions = tables->put(rows.data(), static_cast<int64_t>(rows.size()));
    stage.has_positions = true;
  }
  if (t.rotary) {
    const Rotation rotation = make_rotation(*t.rotary, t.head_dim, grid[0], grid[1]);
    const int64_t count = stage.patches * (t.head_dim / 2);
    stage.cos = tables->put(rotation.cos.data(), count);
    stage.sin = tables->put(rotation.sin.data(), count);
    stage.has_rotary = true;
  }
  return stage;
}

}  // namespace

size_t SessionTables::put(const float* from, int64_t count) {
  const size_t at = values.size();
  values.insert(values.end(), from, from + count);
  values.resize((values.size() + 63) / 64 * 64, 0.0f);
  return at;
}

Status SessionPlan::make() {
  kind.has_vit = model->vit.has_value();
  kind.has_denoiser = model->denoiser.has_value();
  kind.dim = model->dim();
  if (const auto& embed = model->patch_embed) {
    kind.patch = embed->patch;
    kind.stride = embed->stride;
    kind.image_size = embed->image_size;
  }
  DVT_RETURN_IF_ERROR(resolve_options(kind, &options, &grid));
  const DeviceTraits* traits = nullptr;
  DVT_RETURN_IF_ERROR(device_traits(model->device, &traits));
  overlap = traits->is_at_least(9);

  const bool features = options.input == InputKind::features;
  if (!features) vit = plan_stage(*model->vit, grid, options.batch, &tables);
  if (model->denoiser) denoiser = plan_stage(*model->denoiser, grid, options.batch, &tables);

  // The residual streams and the operand of the product after a norm outlive a stage; the rest is shared by the stages
  // and by the patches' embedding before them.
  Arena arena;
  const int64_t size = value_bytes();
  int64_t normed_bytes = 0, qkv_bytes = 0, attended_bytes = 0, hidden_bytes = 0;
  for (DeviceStage* stage : {vit ? &*vit : nullptr, denoiser ? &*denoiser : nullptr}) {
    if (!stage) continue;
    const DeviceTransformer& t = *stage->t;
    const int64_t rows = stage->rows();
    if (rows > INT32_MAX / 2)
      return invalid_argument("a batch must have fewer than 2^30 tokens, got ", stage->batch, " times ", stage->tokens);
    stage->x = arena.take(rows * stage->x_stride * static_cast<int64_t>(sizeof(float)));
    normed_bytes = std::max(normed_bytes, rows * round_up(t.dim, kRowPiece) * size);
    if (t.blocks.empty()) continue;
    qkv_bytes = std::max(qkv_bytes, rows * 3 * t.inner() * size);
    attended_bytes = std::max(attended_bytes, rows * t.inner() * size);
    hidden_bytes = std::max(hidden_bytes, rows * round_up(t.hidden, kRowPiece) * size);
  }
  normed = arena.take(normed_bytes);
  const size_t shared = arena.used();
  qkv = arena.take(qkv_bytes);
  attended = arena.take(attended_bytes);
  hidden = arena.take(hidden_bytes);
  arena.rewind(shared);
  if (!features) {
    const DevicePatchEmbed& embed = *model->patch_embed;
    const int64_t patch_rows = options.batch * vit->patches;
    if (options.input == InputKind::image) {
      PixelsPlan& pixels_of = pixels_plan.emplace();
      pixels_of.height = options.image_height;
      pixels_of.width = options.image_width;
      pixels_of.max_source_height = options.max_source_height;
      pixels_of.max_source_width = options.max_source_width;
      for (size_t c = 0; c < 3; ++c) {
        pixels_of.scale[c] = static_cast<float>(1 / (255.0 * embed.std[c]));
        pixels_of.shift[c] = static_cast<float>(-embed.mean[c] / embed.std[c]);
      }
      DVT_RETURN_IF_ERROR(check_pixels_plan(pixels_of));
      pixel_tables = arena.take(static_cast<int64_t>(pixels_tables_bytes(pixels_of)));
      pixels = arena.take(options.batch * 3 * options.image_height * options.image_width * size);
    }
    patches = arena.take(patch_rows * embed.linear.in_stride * size);
    embedded = arena.take(patch_rows * vit->x_stride * static_cast<int64_t>(sizeof(float)));
  }
  workspace_bytes = arena.most();
  return Status();
}

}  // namespace dvt::cuda
