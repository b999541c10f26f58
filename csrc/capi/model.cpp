#include "capi/handles.h"
#include "capi/structs.h"
#include "cuda/backend.h"
#include "engine/model_packed.h"

namespace dvt::capi {
namespace {

constexpr int32_t kMaxDevices = 1 << 16;

dvt_status read_options(const dvt_model_options* given, dvt_model_options* options) {
  *options = {};
  if (given) DVT_CAPI_TRY(read_struct(given, "options", options));
  if (options->reserved) return fail(DVT_UNSUPPORTED, "options->reserved must be 0, got %d", int{options->reserved});
  const dvt_device device = options->device;
  if (device.type != 0 && device.type != DVT_CPU && device.type != DVT_CUDA)
    return fail(DVT_UNSUPPORTED, "options->device.type must be DVT_CPU (1) or DVT_CUDA (2), got %d", int{device.type});
  if (device.id < 0 || device.id > (device.type == DVT_CUDA ? kMaxDevices : 0))
    return fail(DVT_INVALID_ARGUMENT, "options->device.id must be the index of a device, 0 for the CPU, got %d",
                int{device.id});
  if (options->weights < DVT_WEIGHTS_FLOAT32 || options->weights > DVT_WEIGHTS_TF32)
    return fail(
        DVT_INVALID_ARGUMENT,
        "options->weights must be DVT_WEIGHTS_FLOAT32 (0), FLOAT16 (1), BFLOAT16 (2) or, on CUDA, TF32 (3), got "
        "%d",
        int{options->weights});
  if (options->weights == DVT_WEIGHTS_TF32 && device.type != DVT_CUDA)
    return fail(DVT_UNSUPPORTED, "options->weights can be DVT_WEIGHTS_TF32 on a CUDA device only");
  return DVT_OK;
}

Dtype dtype_of(int32_t weights) {
  return weights == DVT_WEIGHTS_FLOAT16    ? Dtype::float16
         : weights == DVT_WEIGHTS_BFLOAT16 ? Dtype::bfloat16
                                           : Dtype::float32;
}
cuda::EngineCompute compute_of(int32_t weights) {
  switch (weights) {
    case DVT_WEIGHTS_FLOAT16: return cuda::EngineCompute::float16;
    case DVT_WEIGHTS_BFLOAT16: return cuda::EngineCompute::bfloat16;
    case DVT_WEIGHTS_TF32: return cuda::EngineCompute::tf32;
    default: return cuda::EngineCompute::float32;
  }
}
int32_t weights_of(const dvt_model& model) {
  if (!model.cuda)
    return model.model->dtype() == Dtype::float16    ? DVT_WEIGHTS_FLOAT16
           : model.model->dtype() == Dtype::bfloat16 ? DVT_WEIGHTS_BFLOAT16
                                                     : DVT_WEIGHTS_FLOAT32;
  switch (model.cuda->compute()) {
    case cuda::EngineCompute::float16: return DVT_WEIGHTS_FLOAT16;
    case cuda::EngineCompute::bfloat16: return DVT_WEIGHTS_BFLOAT16;
    case cuda::EngineCompute::tf32: return DVT_WEIGHTS_TF32;
    case cuda::EngineCompute::float32: break;
  }
  return DVT_WEIGHTS_FLOAT32;
}

Status make_model(const EngineWeights& weights, const dvt_model_options& options, dvt_model* model) {
  if (options.device.type != DVT_CUDA) return Model::create(weights, dtype_of(options.weights), &model->model);
  const cuda::Backend* backend = nullptr;
  DVT_RETURN_IF_ERROR(cuda::load_backend(&backend));
  DVT_RETURN_IF_ERROR(backend->check_device(options.device.id));
  return backend->create_engine_model(weights, compute_of(options.weights), options.device.id, &model->cuda);
}

// `read(&weights)` reads the file.
template <class Read>
dvt_status load(const dvt_model_options* given, dvt_model** out, Read&& read) noexcept {
  return guarded([&]() -> dvt_status {
    if (!out) return fail(DVT_INVALID_ARGUMENT, "model, where the new one is put, must not be null");
    *out = nullptr;
    DVT_CAPI_TRY(check_environment());
    dvt_model_options options;
    DVT_CAPI_TRY(read_options(given, &options));
    auto model = std::make_unique<dvt_model>();
    EngineWeights weights;
    DVT_CAPI_TRY(from_status(read(&weights)));
    DVT_CAPI_TRY(from_status(make_model(weights, options, model.get())));
    *out = model.release();
    return DVT_OK;
  });
}

}  // namespace
}  // namespace dvt::capi

using namespace dvt::capi;

dvt_status dvt_model_load(const char* path, const dvt_model_options* options, dvt_model** model) {
  return load(options, model, [&](dvt::EngineWeights* weights) {
    if (!path) return dvt::invalid_argument("path must not be null");
    return dvt::read_engine_file(path, weights);
  });
}

dvt_status dvt_model_load_memory(const void* data, size_t size, const dvt_model_options* options, dvt_model** model) {
  return load(options, model, [&](dvt::EngineWeights* weights) {
    if (!data) return dvt::invalid_argument("data must not be null");
    return dvt::read_engine_weights(data, size, weights);
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
    dvt_model_info found = {};
    found.weights = weights_of(*model);
    if (model->cuda) {
      const dvt::cuda::EngineModelCuda& m = *model->cuda;
      found.has_vit = m.has_vit();
      found.has_denoiser = m.has_denoiser();
      found.dim = m.dim();
      found.image_height = m.image_height();
      found.image_width = m.image_width();
      found.source = m.metadata().c_str();
      found.device = {DVT_CUDA, m.device()};
      return write_struct(found, "info", info);
    }
    const dvt::Model& m = *model->model;
    found.has_vit = m.has_vit();
    found.has_denoiser = m.has_denoiser();
    found.dim = m.dim();
    if (const auto& embed = m.packed().patch_embed) {
      found.image_height = embed->image_size[0];
      found.image_width = embed->image_size[1];
    }
    found.source = m.metadata().c_str();
    found.device = {DVT_CPU, 0};
    return write_struct(found, "info", info);
  });
}
