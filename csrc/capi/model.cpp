#include "capi/handles.h"
#include "capi/structs.h"
#include "engine/model_packed.h"

namespace dvt::capi {
namespace {

dvt_status weights_of(const dvt_model_options* given, Dtype* dtype) {
  dvt_model_options options = {};
  if (given) DVT_CAPI_TRY(read_struct(given, "options", &options));
  if (options.reserved) return fail(DVT_UNSUPPORTED, "options->reserved must be 0, got %d", int{options.reserved});
  switch (options.weights) {
    case DVT_WEIGHTS_FLOAT32: *dtype = Dtype::float32; return DVT_OK;
    case DVT_WEIGHTS_FLOAT16: *dtype = Dtype::float16; return DVT_OK;
    case DVT_WEIGHTS_BFLOAT16: *dtype = Dtype::bfloat16; return DVT_OK;
    default:
      return fail(DVT_INVALID_ARGUMENT,
                  "options->weights must be DVT_WEIGHTS_FLOAT32 (0), FLOAT16 (1) or BFLOAT16 (2), got %d",
                  int{options.weights});
  }
}

// `read(dtype, &model)` makes the core's model.
template <class Read>
dvt_status load(const dvt_model_options* options, dvt_model** out, Read&& read) noexcept {
  return guarded([&]() -> dvt_status {
    if (!out) return fail(DVT_INVALID_ARGUMENT, "model, where the new one is put, must not be null");
    *out = nullptr;
    DVT_CAPI_TRY(check_environment());
    Dtype dtype = Dtype::float32;
    DVT_CAPI_TRY(weights_of(options, &dtype));
    auto model = std::make_unique<dvt_model>();
    DVT_CAPI_TRY(from_status(read(dtype, &model->model)));
    *out = model.release();
    return DVT_OK;
  });
}

}  // namespace
}  // namespace dvt::capi

using namespace dvt::capi;

dvt_status dvt_model_load(const char* path, const dvt_model_options* options, dvt_model** model) {
  return load(options, model, [&](dvt::Dtype dtype, std::shared_ptr<const dvt::Model>* out) {
    if (!path) return dvt::invalid_argument("path must not be null");
    return dvt::Model::from_file(path, dtype, out);
  });
}

dvt_status dvt_model_load_memory(const void* data, size_t size, const dvt_model_options* options, dvt_model** model) {
  return load(options, model, [&](dvt::Dtype dtype, std::shared_ptr<const dvt::Model>* out) {
    if (!data) return dvt::invalid_argument("data must not be null");
    return dvt::Model::from_bytes(data, size, dtype, out);
  });
}

dvt_status dvt_model_destroy(dvt_model* model) {
  return guarded([&]() -> dvt_status {
    delete model;
    return DVT_OK;
  });
}

dvt_status dvt_model_get_info(const dvt_model* model, dvt_model_info* info) {
  return guarded([&]() -> dvt_status {
    if (!model) return fail(DVT_INVALID_ARGUMENT, "model must not be null");
    const dvt::Model& m = *model->model;
    dvt_model_info found = {};
    found.has_vit = m.has_vit();
    found.has_denoiser = m.has_denoiser();
    found.weights = m.dtype() == dvt::Dtype::float16    ? DVT_WEIGHTS_FLOAT16
                    : m.dtype() == dvt::Dtype::bfloat16 ? DVT_WEIGHTS_BFLOAT16
                                                        : DVT_WEIGHTS_FLOAT32;
    found.dim = m.dim();
    if (const auto& embed = m.packed().patch_embed) {
      found.image_height = embed->image_size[0];
      found.image_width = embed->image_size[1];
    }
    found.source = m.metadata().c_str();
    return write_struct(found, "info", info);
  });
}
