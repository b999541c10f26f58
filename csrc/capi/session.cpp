#include "capi/handles.h"
#include "capi/structs.h"
#include "capi/tensor.h"

namespace dvt::capi {
namespace {

dvt_status input_kind(int32_t input, const Model& model, InputKind* kind) {
  switch (input) {
    case DVT_INPUT_DEFAULT: *kind = model.has_vit() ? InputKind::image : InputKind::features; return DVT_OK;
    case DVT_INPUT_IMAGE: *kind = InputKind::image; return DVT_OK;
    case DVT_INPUT_NORMALIZED: *kind = InputKind::normalized; return DVT_OK;
    case DVT_INPUT_FEATURES: *kind = InputKind::features; return DVT_OK;
    default:
      return fail(DVT_INVALID_ARGUMENT, "options->input must be 0 to 3 (DVT_INPUT_DEFAULT ...), got %d", int{input});
  }
}

int32_t input_of(InputKind kind) {
  switch (kind) {
    case InputKind::image: return DVT_INPUT_IMAGE;
    case InputKind::normalized: return DVT_INPUT_NORMALIZED;
    case InputKind::features: return DVT_INPUT_FEATURES;
  }
  return DVT_INPUT_DEFAULT;
}

dvt_status session_options(const dvt_session_options* given, const Model& model, SessionOptions* out) {
  dvt_session_options options = {};
  if (given) DVT_CAPI_TRY(read_struct(given, "options", &options));
  DVT_CAPI_TRY(input_kind(options.input, model, &out->input));
  out->image_height = options.image_height;
  out->image_width = options.image_width;
  out->grid_height = options.grid_height;
  out->grid_width = options.grid_width;
  if (options.batch) out->batch = options.batch;
  if (options.threads) out->threads = options.threads;
  if (options.max_source_height) out->max_source_height = options.max_source_height;
  if (options.max_source_width) out->max_source_width = options.max_source_width;
  return DVT_OK;
}

}  // namespace
}  // namespace dvt::capi

using namespace dvt::capi;

dvt_status dvt_session_create(const dvt_model* model, const dvt_session_options* options, dvt_session** session) {
  return guarded([&]() -> dvt_status {
    if (!session) return fail(DVT_INVALID_ARGUMENT, "session, where the new one is put, must not be null");
    *session = nullptr;
    if (!model) return fail(DVT_INVALID_ARGUMENT, "model must not be null");
    DVT_CAPI_TRY(check_environment());
    dvt::SessionOptions wanted;
    DVT_CAPI_TRY(session_options(options, *model->model, &wanted));
    auto made = std::make_unique<dvt_session>();
    DVT_CAPI_TRY(from_status(dvt::Session::create(model->model, wanted, &made->session)));
    *session = made.release();
    return DVT_OK;
  });
}

dvt_status dvt_session_destroy(dvt_session* session) {
  return guarded([&]() -> dvt_status {
    delete session;
    return DVT_OK;
  });
}

dvt_status dvt_session_get_info(const dvt_session* session, dvt_session_info* info) {
  return guarded([&]() -> dvt_status {
    if (!session) return fail(DVT_INVALID_ARGUMENT, "session must not be null");
    const dvt::Session& s = *session->session;
    const dvt::SessionOptions& options = s.options();
    const bool features = options.input == dvt::InputKind::features;
    dvt_session_info found = {};
    found.input = input_of(options.input);
    found.threads = static_cast<int32_t>(options.threads);
    found.batch = options.batch;
    found.image_height = features ? 0 : options.image_height;
    found.image_width = features ? 0 : options.image_width;
    found.max_source_height = options.max_source_height;
    found.max_source_width = options.max_source_width;
    found.grid_height = s.grid_height();
    found.grid_width = s.grid_width();
    found.dim = s.model().dim();
    found.workspace_bytes = s.workspace_bytes();
    found.workspace_alignment = dvt::Session::kWorkspaceAlignment;
    return write_struct(found, "info", info);
  });
}

dvt_status dvt_session_run(dvt_session* session, const dvt_run_args* args) {
  return guarded([&]() -> dvt_status {
    if (!session) return fail(DVT_INVALID_ARGUMENT, "session must not be null");
    dvt_run_args given = {};
    DVT_CAPI_TRY(read_struct(args, "args", &given));
    dvt::TensorView input, output, raw;
    DVT_CAPI_TRY(view_tensor(given.input, "input", false, &input));
    DVT_CAPI_TRY(view_tensor(given.output, "output", true, &output));
    if (given.raw) DVT_CAPI_TRY(view_tensor(given.raw, "raw", true, &raw));
    if (!given.workspace && given.workspace_bytes)
      return fail(DVT_INVALID_ARGUMENT, "workspace is null, so workspace_bytes must be 0, got %zu",
                  given.workspace_bytes);
    return from_status(
        session->session->run(input, output, given.raw ? &raw : nullptr, given.workspace, given.workspace_bytes));
  });
}
