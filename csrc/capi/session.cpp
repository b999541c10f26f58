#include <tuple>

#include "capi/handles.h"
#include "capi/structs.h"
#include "capi/tensor.h"

namespace dvt::capi {
namespace {

dvt_status input_kind(int32_t input, bool has_vit, InputKind* kind) {
  switch (input) {
    case DVT_INPUT_DEFAULT: *kind = has_vit ? InputKind::image : InputKind::features; return DVT_OK;
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

dvt_status session_options(const dvt_session_options* given, bool has_vit, SessionOptions* out) {
  dvt_session_options options = {};
  if (given) DVT_CAPI_TRY(read_struct(given, "options", &options));
  DVT_CAPI_TRY(input_kind(options.input, has_vit, &out->input));
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

// What a run is given. on_device: all of it is on the session's device.
struct Run {
  TensorView input, output, raw;
  bool on_device = false;
};

dvt_status view_tensors(const dvt_session& session, const dvt_run_args& given, Run* run) {
  const int device = session.cuda ? session.cuda->device() : kNoDevice;
  bool output_on_device = false, raw_on_device = false;
  DVT_CAPI_TRY(view_tensor(given.input, "input", false, device, &run->input, &run->on_device));
  DVT_CAPI_TRY(view_tensor(given.output, "output", true, device, &run->output, &output_on_device));
  if (given.raw) DVT_CAPI_TRY(view_tensor(given.raw, "raw", true, device, &run->raw, &raw_on_device));
  if (output_on_device != run->on_device || (given.raw && raw_on_device != run->on_device))
    return fail(DVT_INVALID_ARGUMENT, "input, output and raw must all be on the device or all in main memory");
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
    DVT_CAPI_TRY(session_options(options, model->cuda ? model->cuda->has_vit() : model->model->has_vit(), &wanted));
    auto made = std::make_unique<dvt_session>();
    DVT_CAPI_TRY(from_status(model->cuda ? model->cuda->create_session(wanted, &made->cuda)
                                         : dvt::Session::create(model->model, wanted, &made->session)));
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
    const auto& [cpu, cuda] = std::tie(session->session, session->cuda);
    const dvt::SessionOptions& options = cuda ? cuda->options() : cpu->options();
    const bool features = options.input == dvt::InputKind::features;
    dvt_session_info found = {};
    found.input = input_of(options.input);
    found.threads = static_cast<int32_t>(options.threads);
    found.batch = options.batch;
    found.image_height = features ? 0 : options.image_height;
    found.image_width = features ? 0 : options.image_width;
    found.max_source_height = options.max_source_height;
    found.max_source_width = options.max_source_width;
    found.grid_height = options.grid_height;
    found.grid_width = options.grid_width;
    found.dim = cuda ? cuda->dim() : cpu->model().dim();
    found.workspace_bytes = cuda ? cuda->workspace_bytes() : cpu->workspace_bytes();
    found.workspace_alignment =
        cuda ? dvt::cuda::EngineSessionCuda::kWorkspaceAlignment : dvt::Session::kWorkspaceAlignment;
    return write_struct(found, "info", info);
  });
}

dvt_status dvt_session_run(dvt_session* session, const dvt_run_args* args) {
  return guarded([&]() -> dvt_status {
    if (!session) return fail(DVT_INVALID_ARGUMENT, "session must not be null");
    dvt_run_args given = {};
    DVT_CAPI_TRY(read_struct(args, "args", &given));
    Run run;
    DVT_CAPI_TRY(view_tensors(*session, given, &run));
    if (!given.workspace && given.workspace_bytes)
      return fail(DVT_INVALID_ARGUMENT, "workspace is null, so workspace_bytes must be 0, got %zu",
                  given.workspace_bytes);
    const dvt::TensorView* raw = given.raw ? &run.raw : nullptr;
    if (session->session) {
      if (given.stream) return fail(DVT_INVALID_ARGUMENT, "stream must be null: this session computes on the CPU");
      return from_status(session->session->run(run.input, run.output, raw, given.workspace, given.workspace_bytes));
    }
    if (run.on_device)
      return from_status(
          session->cuda->run(run.input, run.output, raw, given.stream, given.workspace, given.workspace_bytes));
    if (given.stream || given.workspace)
      return fail(DVT_INVALID_ARGUMENT,
                  "stream and workspace must be null where the tensors are in main memory: the session has its own");
    return from_status(session->cuda->run_host(run.input, run.output, raw));
  });
}

dvt_status dvt_session_finite(dvt_session* session, int32_t* finite) {
  return guarded([&]() -> dvt_status {
    if (!session) return fail(DVT_INVALID_ARGUMENT, "session must not be null");
    if (!finite) return fail(DVT_INVALID_ARGUMENT, "finite, where the answer is put, must not be null");
    if (!session->cuda)
      return fail(DVT_UNSUPPORTED, "a session on the CPU says so itself: dvt_session_run returns DVT_NON_FINITE");
    bool is_finite = false;
    DVT_CAPI_TRY(from_status(session->cuda->finite(&is_finite)));
    *finite = is_finite;
    return DVT_OK;
  });
}
