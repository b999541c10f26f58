// Reads an engine file: the header into the configuration, then every tensor that the configuration asks for, by name.
//
// `Fields` and `Tensors` keep the first error and make everything after it a no-op, so that the code below reads as the
// list of what a file holds. Sizes from the header are bounded here; those of tensors are bounded by the file itself.
#include "engine/weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <string_view>
#include <utility>

#include "core/half.h"
#include "core/json.h"
#include "core/safetensors.h"

namespace dvt {
namespace {

constexpr const char* kFormat = "dvt_fast.engine";
constexpr int64_t kVersion = 1;

// Several times what any model has, and small enough that products of a few of them stay far from int64's range.
constexpr int64_t kMaxDim = 1 << 16, kMaxHeads = 1 << 10, kMaxHeadDim = 1 << 12, kMaxHidden = 1 << 18;
constexpr int64_t kMaxDepth = 512, kMaxExtraTokens = 1 << 12, kMaxGrid = 1 << 10, kMaxPatch = 256;
constexpr int64_t kMaxImageSize = 1 << 14;
constexpr double kMaxPlace = 1e6;  // of rotary positions

// Takes the fields of one JSON object, each once. What is missing or wrong comes back as the least allowed value.
class Fields {
 public:
  Fields(const JsonValue& object, std::string name, Status* status)
      : object_(object), name_(std::move(name)), status_(status) {
    if (object.kind != JsonValue::Kind::object) fail("", " must be an object");
  }

  int64_t integer(const char* key, int64_t low, int64_t high) { return to_integer(key, take(key), low, high); }
  std::array<int64_t, 2> integers(const char* key, int64_t low, int64_t high) {
    std::array<int64_t, 2> out{low, low};
    const JsonValue* list = array(key, out.size());
    for (size_t i = 0; list && i < out.size(); ++i) out[i] = to_integer(key, &list->items[i], low, high);
    return out;
  }
  double number(const char* key, double low, double high) { return to_double(key, take(key), low, high); }
  template <size_t n>
  std::array<double, n> numbers(const char* key, double low, double high) {
    std::array<double, n> out;
    out.fill(low);
    const JsonValue* list = array(key, n);
    for (size_t i = 0; list && i < n; ++i) out[i] = to_double(key, &list->items[i], low, high);
    return out;
  }
  bool boolean(const char* key) {
    const JsonValue* value = take(key);
    if (value && value->kind != JsonValue::Kind::boolean) fail(key, " must be true or false");
    return value && value->boolean;
  }
  template <class Choice>
  Choice choice(const char* key, std::initializer_list<std::pair<const char*, Choice>> choices) {
    const JsonValue* value = take(key);
    std::string names;
    for (const auto& [name, meaning] : choices) {
      if (value && value->kind == JsonValue::Kind::string && value->text == name) return meaning;
      names += (names.empty() ? "" : ", ") + std::string(name);
    }
    if (value) fail(key, " must be one of ", names, ", got ", quoted(value->source));
    return choices.begin()->second;
  }
  // An object, or null where the field is null or absent.
  const JsonValue* optional(const char* key) {
    taken_.push_back(key);
    const JsonValue* value = status_->ok() ? object_.find(key) : nullptr;
    return value && value->kind != JsonValue::Kind::null ? value : nullptr;
  }
  const JsonValue* take(const char* key) {
    const JsonValue* value = optional(key);
    if (!value) fail(key, " is missing");
    return value;
  }
  std::string path(const char* key) const { return name_.empty() ? key : name_ + "." + key; }
  // Refuses fields that nobody took: they could change what the others mean.
  void finish() {
    for (const std::string& key : object_.keys)
      if (std::find(taken_.begin(), taken_.end(), key) == taken_.end())
        fail("", " has the field ", quoted(key), ", which version ", kVersion, " of ", kFormat, " does not know");
  }
  template <class... Args>
  void fail(const char* key, const Args&... what) {
    if (!status_->ok()) return;
    const std::string where = *key ? path(key) : name_;
    *status_ = invalid_argument("the header", where.empty() ? "" : "'s " + where, what...);
  }

 private:
  const JsonValue* array(const char* key, size_t size) {
    const JsonValue* value = take(key);
    if (value && (value->kind != JsonValue::Kind::array || value->items.size() != size)) {
      fail(key, " must be a list of ", size, " numbers");
      return nullptr;
    }
    return value;
  }
  int64_t to_integer(const char* key, const JsonValue* value, int64_t low, int64_t high) {
    int64_t out = low;
    if (value && (!value->to_integer(&out) || out < low || out > high)) {
      fail(key, " must be a whole number from ", low, " to ", high, ", got ", quoted(value->source));
      return low;
    }
    return out;
  }
  double to_double(const char* key, const JsonValue* value, double low, double high) {
    double out = low;
    if (value && (!value->to_double(&out) || !(out >= low && out <= high))) {
      fail(key, " must be a number from ", low, " to ", high, ", got ", quoted(value->source));
      return low;
    }
    return out;
  }

  const JsonValue& object_;
  std::string name_;
  Status* status_;
  std::vector<std::string_view> taken_;
};

// Writes float32 and returns whether all of them are finite.
bool convert(const SafetensorsEntry& entry, float* out) {
  const auto finite = [&](int64_t begin, int64_t end) {
    uint32_t bad = 0;
    for (int64_t i = begin; i < end; ++i) {
      uint32_t bits;
      std::memcpy(&bits, out + i, sizeof bits);
      bad |= (bits & 0x7f800000u) == 0x7f800000u;
    }
    return bad == 0;
  };
  // In blocks, so that what was written is checked while it is in the cache.
  constexpr int64_t kBlock = 4096;
  const char* data = static_cast<const char*>(entry.data);
  for (int64_t begin = 0; begin < entry.count; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, entry.count);
    if (entry.dtype == Dtype::float32) {
      std::memcpy(out + begin, data + begin * 4, static_cast<size_t>(end - begin) * 4);
    } else {
      uint16_t values[kBlock];  // a file's tensors need not be aligned
      std::memcpy(values, data + begin * 2, static_cast<size_t>(end - begin) * 2);
      if (entry.dtype == Dtype::float16) {
        for (int64_t i = begin; i < end; ++i) out[i] = half_to_float(values[i - begin]);
      } else {
        for (int64_t i = begin; i < end; ++i) out[i] = bfloat16_to_float(values[i - begin]);
      }
    }
    if (!finite(begin, end)) return false;
  }
  return true;
}

// Takes the tensors of a file, each once.
class Tensors {
 public:
  Tensors(const SafetensorsFile& file, Status* status)
      : tensors_(file.tensors), taken_(file.tensors.size()), status_(status) {}

  // Empty where there is none.
  std::vector<float> optional(const std::string& name, const std::vector<int64_t>& shape) {
    if (!status_->ok()) return {};
    const auto found =
        std::lower_bound(tensors_.begin(), tensors_.end(), name,
                         [](const SafetensorsEntry& entry, const std::string& name) { return entry.name < name; });
    if (found == tensors_.end() || found->name != name) return {};
    taken_[static_cast<size_t>(found - tensors_.begin())] = true;
    if (found->shape != shape) {
      *status_ = invalid_argument("tensor ", quoted(name), " must have shape ", shape_text(shape), ", got ",
                                  shape_text(found->shape));
      return {};
    }
    std::vector<float> values(static_cast<size_t>(found->count));
    if (!convert(*found, values.data())) *status_ = non_finite("tensor ", quoted(name), " holds NaN or infinity");
    return values;
  }
  std::vector<float> take(const std::string& name, const std::vector<int64_t>& shape) {
    std::vector<float> values = optional(name, shape);
    if (values.empty() && status_->ok())
      *status_ = invalid_argument("tensor ", quoted(name), " is missing: it must have shape ", shape_text(shape));
    return values;
  }
  LinearWeights linear(const std::string& name, int64_t in, int64_t out) {
    LinearWeights linear{in, out, take(name + ".weight", {out, in}), {}};
    linear.bias = optional(name + ".bias", {out});
    return linear;
  }
  // Of a norm whose kind and eps are read.
  void affine(const std::string& name, int64_t size, NormWeights* norm) {
    if (norm->kind == NormWeights::Kind::none) return;
    norm->weight = optional(name + ".weight", {size});
    if (norm->kind == NormWeights::Kind::layer) norm->bias = optional(name + ".bias", {size});
  }
  void finish() {
    const auto left = std::find(taken_.begin(), taken_.end(), false);
    if (left == taken_.end() || !status_->ok()) return;
    *status_ = invalid_argument("tensor ", quoted(tensors_[static_cast<size_t>(left - taken_.begin())].name),
                                " is not part of the model that the header describes; ",
                                std::count(left, taken_.end(), false), " such in all");
  }

 private:
  const std::vector<SafetensorsEntry>& tensors_;
  std::vector<bool> taken_;
  Status* status_;
};

NormWeights read_norm(Fields* parent, const char* key, Status* status) {
  NormWeights norm;
  if (const JsonValue* value = parent->optional(key)) {
    Fields fields(*value, parent->path(key), status);
    norm.kind = fields.choice<NormWeights::Kind>(
        "kind", {{"layer", NormWeights::Kind::layer}, {"rms", NormWeights::Kind::rms}});
    norm.eps = static_cast<float>(fields.number("eps", 0, 1));
    fields.finish();
  }
  return norm;
}

PatchEmbedWeights read_patch_embed(const JsonValue& value, int64_t dim, Tensors* tensors, Status* status) {
  PatchEmbedWeights embed;
  Fields fields(value, "patch_embed", status);
  embed.patch = fields.integers("patch", 1, kMaxPatch);
  embed.stride = fields.integers("stride", 1, kMaxPatch);
  embed.image_size = fields.integers("image_size", 1, kMaxImageSize);
  embed.mean = fields.numbers<3>("mean", -1e3, 1e3);
  embed.std = fields.numbers<3>("std", 1e-6, 1e6);
  embed.norm = read_norm(&fields, "norm", status);
  fields.finish();
  for (size_t i = 0; i < 2; ++i) {
    const int64_t size = embed.image_size[i], patch = embed.patch[i], stride = embed.stride[i];
    if (stride > patch) fields.fail("stride", " must be at most the patch, ", patch, ", got ", stride);
    if (size < patch || (size - patch) % stride != 0)
      fields.fail("image_size", " must fit whole patches of ", patch, " with stride ", stride, ", got ", size);
    if ((size - patch) / stride >= kMaxGrid) fields.fail("image_size", " must make at most ", kMaxGrid, " patches");
  }
  embed.linear = tensors->linear("patch_embed", 3 * embed.patch[0] * embed.patch[1], dim);
  tensors->affine("patch_embed.norm", dim, &embed.norm);
  return embed;
}

Rotary read_rotary(const JsonValue& value, const std::string& name, int64_t head_dim, Tensors* tensors,
                   Status* status) {
  Rotary rotary;
  Fields fields(value, name + ".rotary", status);
  rotary.offset = fields.number("offset", -kMaxPlace, kMaxPlace);
  rotary.shift = fields.number("shift", -kMaxPlace, kMaxPlace);
  rotary.reference = fields.numbers<2>("reference", 0, kMaxPlace);
  rotary.pairs = fields.choice<Rotary::Pairs>(
      "pairs", {{"halves", Rotary::Pairs::halves}, {"neighbours", Rotary::Pairs::neighbours}});
  fields.finish();
  if (head_dim % 4 != 0) fields.fail("", " needs a head_dim that 4 divides, got ", head_dim);
  rotary.bands = tensors->take(name + ".rotary.bands", {head_dim / 4});
  return rotary;
}

// A block without its tensors: which norms there are.
BlockWeights read_block(Fields* parent, Status* status) {
  BlockWeights block;
  if (const JsonValue* value = parent->take("block")) {
    Fields fields(*value, parent->path("block"), status);
    block.norm1 = read_norm(&fields, "norm1", status);
    block.q_norm = read_norm(&fields, "q_norm", status);
    block.k_norm = read_norm(&fields, "k_norm", status);
    block.attention_norm = read_norm(&fields, "attention_norm", status);
    block.norm2 = read_norm(&fields, "norm2", status);
    block.mlp_norm = read_norm(&fields, "mlp_norm", status);
    fields.finish();
  }
  return block;
}

void fill_block(const std::string& name, const TransformerWeights& t, Tensors* tensors, BlockWeights* block) {
  const int64_t inner = t.heads * t.head_dim;
  tensors->affine(name + ".norm1", t.dim, &block->norm1);
  block->qkv = tensors->linear(name + ".qkv", t.dim, 3 * inner);
  tensors->affine(name + ".q_norm", t.head_dim, &block->q_norm);
  tensors->affine(name + ".k_norm", t.head_dim, &block->k_norm);
  tensors->affine(name + ".attention_norm", inner, &block->attention_norm);
  block->proj = tensors->linear(name + ".proj", inner, t.dim);
  block->scale1 = tensors->optional(name + ".scale1", {t.dim});
  tensors->affine(name + ".norm2", t.dim, &block->norm2);
  block->fc1 = tensors->linear(name + ".fc1", t.dim, t.gated ? 2 * t.hidden : t.hidden);
  tensors->affine(name + ".mlp_norm", t.hidden, &block->mlp_norm);
  block->fc2 = tensors->linear(name + ".fc2", t.hidden, t.dim);
  block->scale2 = tensors->optional(name + ".scale2", {t.dim});
}

TransformerWeights read_transformer(const JsonValue& value, const std::string& name, Tensors* tensors, Status* status) {
  TransformerWeights t;
  Fields fields(value, name, status);
  t.dim = fields.integer("dim", 1, kMaxDim);
  const int64_t depth = fields.integer("depth", 0, kMaxDepth);
  const int64_t least = depth > 0 ? 1 : 0;  // a map of position embeddings alone has no heads
  t.heads = fields.integer("heads", least, kMaxHeads);
  t.head_dim = fields.integer("head_dim", least, kMaxHeadDim);
  t.hidden = fields.integer("hidden", least, kMaxHidden);
  t.activation = fields.choice<Activation>("activation", {{"gelu", Activation::gelu},
                                                          {"gelu_tanh", Activation::gelu_tanh},
                                                          {"quick_gelu", Activation::quick_gelu},
                                                          {"silu", Activation::silu},
                                                          {"relu", Activation::relu}});
  t.gated = fields.boolean("gated");
  if (fields.optional("pos_grid")) t.pos_grid = fields.integers("pos_grid", 1, kMaxGrid);
  const int64_t extra_tokens = fields.integer("extra_tokens", 0, kMaxExtraTokens);
  t.extra_first = fields.boolean("extra_first");
  t.norm_pre = read_norm(&fields, "norm_pre", status);
  t.norm = read_norm(&fields, "norm", status);
  const BlockWeights block = read_block(&fields, status);
  const JsonValue* rotary = fields.optional("rotary");
  fields.finish();

  if (t.pos_grid[0] > 0) t.pos_embed = tensors->take(name + ".pos_embed", {t.pos_grid[0] * t.pos_grid[1], t.dim});
  if (extra_tokens > 0) t.extra_tokens = tensors->take(name + ".extra_tokens", {extra_tokens, t.dim});
  if (rotary) t.rotary = read_rotary(*rotary, name, t.head_dim, tensors, status);
  tensors->affine(name + ".norm_pre", t.dim, &t.norm_pre);
  tensors->affine(name + ".norm", t.dim, &t.norm);
  for (int64_t i = 0; i < depth && status->ok(); ++i) {
    t.blocks.push_back(block);
    fill_block(name + ".blocks." + std::to_string(i), t, tensors, &t.blocks.back());
  }
  return t;
}

Status check_format(Fields* header, Status* status) {
  const JsonValue* format = header->take("format");
  if (!status->ok() || format->kind != JsonValue::Kind::string || format->text != kFormat)
    return invalid_argument("not an engine file: its header must say format '", kFormat, "'",
                            format ? ", got " + quoted(format->source) : "");
  const int64_t version = header->integer("version", 1, int64_t{1} << 31);
  if (status->ok() && version > kVersion)
    return invalid_argument("the file is of ", kFormat, " version ", version, ", and this library reads up to version ",
                            kVersion, ": update it");
  return *status;
}

}  // namespace

Status read_engine_weights(const void* data, size_t size, EngineWeights* out) {
  *out = EngineWeights();
  SafetensorsFile file;
  DVT_RETURN_IF_ERROR(read_safetensors(data, size, &file));
  const std::string* text = file.metadata("dvt_fast");
  if (!text) return invalid_argument("not an engine file: its metadata has no 'dvt_fast'");
  JsonValue json;
  Status status = read_json(*text, &json);
  if (!status.ok()) return invalid_argument("not an engine file: its metadata 'dvt_fast' is ", status.message());

  Fields header(json, "", &status);
  DVT_RETURN_IF_ERROR(check_format(&header, &status));
  const JsonValue* source = header.take("source");
  const JsonValue* vit = header.optional("vit");
  const JsonValue* denoiser = header.optional("denoiser");
  const JsonValue* patch_embed = header.optional("patch_embed");
  if (source && source->kind != JsonValue::Kind::object) header.fail("source", " must be an object");
  if (!vit && !denoiser) header.fail("", " must have a vit, a denoiser or both");
  if (!vit != !patch_embed) header.fail("", " must have patch_embed where there is a vit, and only there");
  header.finish();
  DVT_RETURN_IF_ERROR(status);

  Tensors tensors(file, &status);
  out->metadata = source->source;
  if (vit) out->vit = read_transformer(*vit, "vit", &tensors, &status);
  if (patch_embed) out->patch_embed = read_patch_embed(*patch_embed, out->vit->dim, &tensors, &status);
  if (denoiser) out->denoiser = read_transformer(*denoiser, "denoiser", &tensors, &status);
  if (vit && denoiser && out->vit->dim != out->denoiser->dim)
    header.fail("denoiser.dim", " must be the vit's, ", out->vit->dim, ", got ", out->denoiser->dim);
  tensors.finish();
  return status;
}

}  // namespace dvt
