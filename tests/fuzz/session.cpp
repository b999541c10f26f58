// Any bytes as an engine file, and then the whole way: packed, a session, and a run whose result is finite or refused.
#include <cmath>
#include <memory>
#include <vector>

#include "engine/model.h"
#include "engine/session.h"
#include "engine/weights.h"
#include "fuzz.h"

namespace {

constexpr int64_t kMaxPixels = 64 * 64, kMaxPatches = 256;

dvt::TensorView view_of(std::vector<float>* values, std::vector<int64_t> shape) {
  dvt::TensorView view;
  view.data = values->data();
  view.rank = static_cast<int>(shape.size());
  int64_t stride = 1;
  for (size_t axis = shape.size(); axis-- > 0;) {
    view.shape[axis] = shape[axis];
    view.strides[axis] = stride;
    stride *= shape[axis];
  }
  return view;
}

void run(const std::shared_ptr<const dvt::Model>& model, const dvt::SessionOptions& options) {
  std::unique_ptr<dvt::Session> session;
  const dvt::Status created = dvt::Session::create(model, options, &session);
  if (!created.ok()) return require_sentence(created);
  const bool features = options.input == dvt::InputKind::features;
  const int64_t h = session->grid_height(), w = session->grid_width(), dim = model->dim();
  const std::vector<int64_t> shape =
      features ? std::vector<int64_t>{h, w, dim}
               : std::vector<int64_t>{3, session->options().image_height, session->options().image_width};
  std::vector<float> input(static_cast<size_t>(shape[0] * shape[1] * shape[2])),
      output(static_cast<size_t>(h * w * dim));
  for (size_t i = 0; i < input.size(); ++i) input[i] = static_cast<float>(i * 37 % 101) / 100;
  const dvt::Status status = session->run(view_of(&input, shape), view_of(&output, {h, w, dim}));
  if (status.ok()) {
    for (const float value : output) FUZZ_REQUIRE(std::isfinite(value));
  } else {
    FUZZ_REQUIRE(status.code() == dvt::StatusCode::non_finite);
    require_sentence(status);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  dvt::EngineWeights weights;
  if (!dvt::read_engine_weights(data, size, &weights).ok()) return 0;
  std::shared_ptr<const dvt::Model> model;
  const dvt::Dtype dtypes[] = {dvt::Dtype::float32, dvt::Dtype::float16, dvt::Dtype::bfloat16};
  const dvt::Status status = dvt::Model::create(weights, dtypes[size % 3], &model);
  if (!status.ok()) {
    require_sentence(status);
    return 0;
  }
  dvt::SessionOptions options;
  options.max_source_height = options.max_source_width = 64;
  if (weights.patch_embed) {
    const dvt::PatchEmbedWeights& embed = *weights.patch_embed;
    int64_t patches = 1;
    for (size_t i = 0; i < 2; ++i) patches *= (embed.image_size[i] - embed.patch[i]) / embed.stride[i] + 1;
    if (embed.image_size[0] * embed.image_size[1] > kMaxPixels || patches > kMaxPatches) return 0;
    options.max_source_height = embed.image_size[0];
    options.max_source_width = embed.image_size[1];
    run(model, options);
  } else {
    options.input = dvt::InputKind::features;
    options.grid_height = 3;
    options.grid_width = 5;
    run(model, options);
  }
  return 0;
}
