// The launches of one run. A block takes seven: a norm, the product to queries, keys and values, attention, the
// projection onto the residual stream, a norm, and the two products of the MLP, the second one onto the residual
// stream, or out of it into the caller's tensor. The first norm of a denoiser reads its input, so that one of one block
// is these seven.
//
// Each kernel may start before the one before it ends and waits for it before it touches what others write, so that
// kernels of one stream are in order through any number of them, and buffers may be used again.
//
// One kernel for a whole block, with barriers of the grid between its phases, is not here: such a barrier costs about
// what an overlapped launch does (by count, neither is measured), and each phase would have to live with the registers,
// shared memory and number of blocks of the hungriest one.
//
// Work of a block of 768 channels and N tokens: 14.2 MFLOP a token and 3.1 kFLOP a pair of tokens; weights of 14.2 MB
// in 16 bits, and about 48 kB a token, written and read, that go through the L2.
#include <algorithm>

#include "engine/cuda/inner_norms_cuda.h"
#include "engine/cuda/patches_cuda.h"
#include "engine/cuda/session.h"
#include "engine/cuda/tokens_cuda.h"
#include "engine/pixels_cuda.h"
#include "transformer/attention/attention_cuda.h"
#include "transformer/layer_norm/layer_norm_cuda.h"
#include "transformer/linear/linear_cuda.h"

namespace dvt::cuda {
namespace {

AttentionType attention_type(EngineCompute compute) {
  switch (compute) {
    case EngineCompute::float32: return AttentionType::float32;
    case EngineCompute::tf32: return AttentionType::tf32;
    case EngineCompute::float16: return AttentionType::float16;
    case EngineCompute::bfloat16: break;
  }
  return AttentionType::bfloat16;
}

LinearType linear_type(EngineCompute compute) {
  switch (compute) {
    case EngineCompute::float32: return LinearType::float32;
    case EngineCompute::tf32: return LinearType::tf32;
    case EngineCompute::float16: return LinearType::float16;
    case EngineCompute::bfloat16: break;
  }
  return LinearType::bfloat16;
}

class Frame {
 public:
  explicit Frame(const FrameCall& call)
      : call_(call), plan_(*call.plan), model_(*call.plan->model), compute_(model_.compute) {}

  Status run();
  int launches() const { return launches_; }

 private:
  template <class T>
  T* at(size_t offset) const {
    return reinterpret_cast<T*>(call_.workspace + offset);
  }
  template <class Call>
  Call begun() const {
    Call call;
    call.overlap = plan_.overlap;
    call.stream = call_.stream;
    return call;
  }
  // Counts what a launcher enqueues.
  Status launched(Status status, int kernels = 1) {
    launches_ += kernels;
    return status;
  }

  PatchRows rows_of(const TensorView& view) const;
  Status embed_patches();
  Status blocks(const DeviceStage& stage, const TensorView* direct);
  Status product(const DeviceLinear& weights, const void* x, int64_t rows, LinearCudaCall call);
  TokensCall tokens_of(const DeviceStage& stage) const;
  PatchRows stream_of(const DeviceStage& stage) const;
  void begin_stage(const DeviceStage& stage, TokensCall* call) const;
  bool can_write_directly(const DeviceStage& stage, const TensorView& out) const;

  const FrameCall& call_;
  const SessionPlan& plan_;
  const DeviceModel& model_;
  const EngineCompute compute_;
  int launches_ = 0;
};

PatchRows Frame::rows_of(const TensorView& view) const {
  PatchRows rows;
  rows.data = view.data;
  rows.dtype = view.dtype;
  const int64_t* strides = view.strides + view.rank - 3;
  rows.image = view.rank == 4 ? view.strides[0] : 0;
  rows.y = strides[0];
  rows.x = strides[1];
  rows.channel = strides[2];
  return rows;
}

// The patches of a residual stream.
PatchRows Frame::stream_of(const DeviceStage& stage) const {
  PatchRows rows;
  rows.data = at<float>(stage.x) + stage.first_patch * stage.x_stride;
  rows.image = stage.tokens * stage.x_stride;
  rows.y = stage.grid_width * stage.x_stride;
  rows.x = stage.x_stride;
  return rows;
}

TokensCall Frame::tokens_of(const DeviceStage& stage) const {
  TokensCall call = begun<TokensCall>();
  call.batch = stage.batch;
  call.tokens = stage.tokens;
  call.dim = stage.t->dim;
  call.first_patch = stage.first_patch;
  call.patches = stage.patches;
  call.grid_width = stage.grid_width;
  call.type = compute_;
  return call;
}

// From rows of patches to the residual stream and the first block's operand.
void Frame::begin_stage(const DeviceStage& stage, TokensCall* call) const {
  const DeviceTransformer& t = *stage.t;
  if (t.extra_count > 0) call->extra = model_.at<float>(t.extra_tokens);
  if (stage.has_positions) call->positions = plan_.tables.at(stage.positions);
  call->second = model_.norm(t.norm_pre);
  call->x = at<float>(stage.x);
  call->x_stride = stage.x_stride;
  if (t.blocks.empty()) return;
  call->third = model_.norm(t.blocks[0].norm1);
  call->normed = at<void>(plan_.normed);
  call->normed_stride = round_up(t.dim, kRowPiece);
}

// Whether the last product of a stage may write to a tensor of the caller: where its rows follow each other.
bool Frame::can_write_directly(const DeviceStage& stage, const TensorView& out) const {
  const DeviceTransformer& t = *stage.t;
  if (t.blocks.empty() || !t.norm.empty() || (t.extra_count > 0 && stage.batch > 1)) return false;
  const PatchRows rows = rows_of(out);
  const int64_t height = stage.patches / stage.grid_width, pieces = 16 / size_of(out.dtype);
  return rows.channel == 1 && rows.x == t.dim && (height == 1 || rows.y == stage.grid_width * t.dim) &&
         (stage.batch == 1 || rows.image == stage.patches * t.dim) && t.dim % pieces == 0 &&
         reinterpret_cast<uintptr_t>(out.data) % 16 == 0;
}

Status Frame::product(const DeviceLinear& weights, const void* x, int64_t rows, LinearCudaCall call) {
  call.type = linear_type(compute_);
  call.rows = rows;
  call.in = weights.in;
  call.x = x;
  call.x_stride = weights.in_stride;
  call.weight = model_.at<void>(weights.weight);
  call.weight_stride = weights.in_stride;
  call.bias = model_.at<float>(weights.bias);
  call.overlap = plan_.overlap;
  call.stream = call_.stream;
  return launched(linear_forward(call));
}

Status Frame::embed_patches() {
  const DevicePatchEmbed& embed = *model_.patch_embed;
  const DeviceStage& stage = *plan_.vit;
  const SessionOptions& options = plan_.options;
  PatchesCall patches = begun<PatchesCall>();
  patches.batch = options.batch;
  patches.grid_height = plan_.grid[0];
  patches.grid_width = plan_.grid[1];
  patches.patch_height = embed.patch[0];
  patches.patch_width = embed.patch[1];
  patches.stride_height = embed.stride[0];
  patches.stride_width = embed.stride[1];
  patches.type = compute_;
  patches.out = at<void>(plan_.patches);
  patches.out_stride = embed.linear.in_stride;
  if (plan_.pixels_plan) {
    const TensorView& image = *call_.input;
    const int rows = image.rank - 3 + (image.dtype == Dtype::uint8 ? 0 : 1);
    patches.dtype = storage_of(linear_type(compute_));
    patches.pixels = at<void>(plan_.pixels);
    const int64_t height = options.image_height, width = options.image_width;
    const int64_t strides[4] = {3 * height * width, height * width, width, 1};
    std::copy_n(strides, 4, patches.strides);
    void* tables = at<void>(plan_.pixel_tables);
    DVT_RETURN_IF_ERROR(launched(pixels_fill_tables(*plan_.pixels_plan, image.shape[rows], image.shape[rows + 1],
                                                    image.dtype, tables, plan_.overlap, call_.stream)));
    DVT_RETURN_IF_ERROR(launched(pixels_forward(*plan_.pixels_plan, image, tables, patches.dtype,
                                                at<void>(plan_.pixels), plan_.overlap, call_.stream)));
  } else {
    const TensorView& image = *call_.input;
    patches.pixels = image.data;
    patches.dtype = image.dtype;
    patches.strides[0] = image.rank == 4 ? image.strides[0] : 0;
    std::copy_n(image.strides + image.rank - 3, 3, patches.strides + 1);
  }
  DVT_RETURN_IF_ERROR(launched(patches_forward(patches)));
  LinearCudaCall linear;
  linear.out = stage.t->dim;
  linear.y = at<void>(plan_.embedded);
  linear.y_type = Dtype::float32;
  linear.y_stride = stage.x_stride;
  DVT_RETURN_IF_ERROR(product(embed.linear, patches.out, stage.batch * stage.patches, linear));

  TokensCall begin = tokens_of(stage);
  begin.source.data = at<float>(plan_.embedded);
  begin.source.image = stage.patches * stage.x_stride;
  begin.source.y = stage.grid_width * stage.x_stride;
  begin.source.x = stage.x_stride;
  begin.first = model_.norm(embed.norm);
  begin.clear = call_.non_finite;
  begin_stage(stage, &begin);
  return launched(tokens_forward(begin));
}

Status Frame::blocks(const DeviceStage& stage, const TensorView* direct) {
  const DeviceTransformer& t = *stage.t;
  const int64_t rows = stage.rows(), dim_stride = round_up(t.dim, kRowPiece), inner = t.inner(),
                hidden_stride = round_up(t.hidden, kRowPiece);
  const Dtype value = storage_of(linear_type(compute_));
  const bool rounded = compute_ == EngineCompute::tf32;
  void *normed = at<void>(plan_.normed), *qkv = at<void>(plan_.qkv), *attended = at<void>(plan_.attended),
       *hidden = at<void>(plan_.hidden);
  float* x = at<float>(stage.x);
  const auto norm_stream = [&](const DeviceNorm& norm) {  // the residual stream, normalised
    if (t.dim == dim_stride && t.dim <= kMaxNormDim) {
      const RowNorm row = model_.norm(norm);
      LayerNormCudaCall call = begun<LayerNormCudaCall>();
      call.kind = row.kind == RowNorm::kLayer ? NormWeights::Kind::layer
                  : row.kind == RowNorm::kRms ? NormWeights::Kind::rms
                                              : NormWeights::Kind::none;
      call.eps = row.eps;
      call.weight = row.weight;
      call.bias = row.bias;
      call.rows = rows;
      call.dim = t.dim;
      call.x = x;
      call.x_stride = stage.x_stride;
      call.y = normed;
      call.y_type = compute_ == EngineCompute::float16    ? Dtype::float16
                    : compute_ == EngineCompute::bfloat16 ? Dtype::bfloat16
                                                          : Dtype::float32;
      call.y_stride = dim_stride;
      call.round_y = rounded;
      return launched(layer_norm_forward(call));
    }
    // Rows with zeros behind them, and very long ones.
    TokensCall call = begun<TokensCall>();
    call.tokens = call.patches = call.grid_width = rows;
    call.dim = t.dim;
    call.source.data = x;
    call.source.x = stage.x_stride;
    call.third = model_.norm(norm);
    call.type = compute_;
    call.normed = normed;
    call.normed_stride = dim_stride;
    return launched(tokens_forward(call));
  };

  for (size_t i = 0; i < t.blocks.size(); ++i) {
    const DeviceBlockWeights& block = t.blocks[i];
    if (i > 0) DVT_RETURN_IF_ERROR(norm_stream(block.norm1));
    LinearCudaCall to_qkv;
    to_qkv.out = 3 * inner;
    to_qkv.y = qkv;
    to_qkv.y_type = value;
    to_qkv.round_y = rounded;
    to_qkv.y_stride = 3 * inner;
    DVT_RETURN_IF_ERROR(product(block.qkv, normed, rows, to_qkv));
    if (!block.q_norm.empty() || !block.k_norm.empty() || stage.has_rotary) {
      QueriesKeysCall call = begun<QueriesKeysCall>();
      call.type = compute_;
      call.batch = stage.batch;
      call.tokens = stage.tokens;
      call.heads = t.heads;
      call.head_dim = t.head_dim;
      call.padded_dim = t.padded_dim;
      call.qkv = qkv;
      call.stride = 3 * inner;
      call.q_norm = model_.norm(block.q_norm);
      call.k_norm = model_.norm(block.k_norm);
      if (stage.has_rotary) {
        call.cos = plan_.tables.at(stage.cos);
        call.sin = plan_.tables.at(stage.sin);
        call.neighbours = t.rotary->pairs == Rotary::Pairs::neighbours;
      }
      call.first_patch = stage.first_patch;
      call.patches = stage.patches;
      DVT_RETURN_IF_ERROR(launched(queries_keys_forward(call)));
    }
    AttentionCudaCall attend = begun<AttentionCudaCall>();
    attend.type = attention_type(compute_);
    attend.batch = stage.batch;
    attend.tokens = stage.tokens;
    attend.heads = t.heads;
    attend.head_dim = t.padded_dim;
    attend.qkv = qkv;
    attend.qkv_stride = 3 * inner;
    attend.out = attended;
    attend.out_stride = inner;
    DVT_RETURN_IF_ERROR(launched(attention_forward(attend)));
    InnerNormCall inner_norm = begun<InnerNormCall>();
    inner_norm.type = compute_;
    inner_norm.rows = rows;
    if (!block.attention_norm.empty()) {
      inner_norm.groups = t.heads;
      inner_norm.group = t.head_dim;
      inner_norm.group_stride = t.padded_dim;
      inner_norm.x = attended;
      inner_norm.stride = inner;
      inner_norm.norm = model_.norm(block.attention_norm);
      DVT_RETURN_IF_ERROR(launched(inner_norm_forward(inner_norm)));
    }
    LinearCudaCall project;
    project.out = t.dim;
    project.residual = x;
    project.residual_stride = stage.x_stride;
    project.y = x;
    project.y_type = Dtype::float32;
    project.y_stride = stage.x_stride;
    DVT_RETURN_IF_ERROR(product(block.proj, attended, rows, project));

    DVT_RETURN_IF_ERROR(norm_stream(block.norm2));
    LinearCudaCall up;
    up.out = t.hidden;
    up.activate = true;
    up.activation = t.activation;
    up.gated = t.gated;
    up.y = hidden;
    up.y_type = value;
    up.round_y = rounded;
    up.y_stride = hidden_stride;
    DVT_RETURN_IF_ERROR(product(block.fc1, normed, rows, up));
    if (!block.mlp_norm.empty()) {
      inner_norm.groups = 1;
      inner_norm.group = inner_norm.group_stride = t.hidden;
      inner_norm.x = hidden;
      inner_norm.stride = hidden_stride;
      inner_norm.norm = model_.norm(block.mlp_norm);
      DVT_RETURN_IF_ERROR(launched(inner_norm_forward(inner_norm)));
    }
    LinearCudaCall down = project;
    int64_t first = 0, count = rows;
    if (i + 1 == t.blocks.size() && direct) {
      first = stage.first_patch;  // 0 where there are several images
      count = stage.batch * stage.patches;
      down.residual = x + first * stage.x_stride;
      down.y = direct->data;
      down.y_type = direct->dtype;
      down.y_stride = t.dim;
      down.not_finite = call_.non_finite;
    }
    const char* from = static_cast<const char*>(hidden) + first * hidden_stride * plan_.value_bytes();
    DVT_RETURN_IF_ERROR(product(block.fc2, from, count, down));
  }
  return Status();
}

Status Frame::run() {
  if (plan_.vit) {
    const DeviceStage& stage = *plan_.vit;
    DVT_RETURN_IF_ERROR(embed_patches());
    const bool direct = !plan_.denoiser && !call_.raw && can_write_directly(stage, *call_.output);
    DVT_RETURN_IF_ERROR(blocks(stage, direct ? call_.output : nullptr));
    if (direct) return Status();
  }
  if (!plan_.denoiser || plan_.vit) {  // the features of the ViT
    const DeviceStage& stage = plan_.denoiser ? *plan_.denoiser : *plan_.vit;
    TokensCall call = tokens_of(stage);
    call.source = stream_of(*plan_.vit);
    call.first = model_.norm(plan_.vit->t->norm);
    call.non_finite = call_.non_finite;
    if (call_.raw) call.outputs[0] = rows_of(*call_.raw);
    if (plan_.denoiser) {
      begin_stage(stage, &call);
    } else {
      call.tokens = call.patches;  // nobody needs the others
      call.first_patch = 0;
      call.outputs[1] = rows_of(*call_.output);
    }
    DVT_RETURN_IF_ERROR(launched(tokens_forward(call)));
    if (!plan_.denoiser) return Status();
  } else {
    TokensCall call = tokens_of(*plan_.denoiser);
    call.source = rows_of(*call_.input);
    call.clear = call_.non_finite;
    begin_stage(*plan_.denoiser, &call);
    DVT_RETURN_IF_ERROR(launched(tokens_forward(call)));
  }
  const DeviceStage& stage = *plan_.denoiser;
  const bool direct = can_write_directly(stage, *call_.output);
  DVT_RETURN_IF_ERROR(blocks(stage, direct ? call_.output : nullptr));
  if (direct) return Status();
  TokensCall end = tokens_of(stage);
  end.tokens = end.patches;
  end.first_patch = 0;
  end.source = stream_of(stage);
  end.first = model_.norm(stage.t->norm);
  end.outputs[0] = rows_of(*call_.output);
  end.non_finite = call_.non_finite;
  return launched(tokens_forward(end));
}

}  // namespace

Status enqueue_frame(const FrameCall& call, int* launches) {
  Frame frame(call);
  const Status status = frame.run();
  *launches = frame.launches();
  return status;
}

}  // namespace dvt::cuda
