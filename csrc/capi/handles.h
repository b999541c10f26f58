// What the opaque pointers of dvt_fast.h point to.
#pragma once

#include <atomic>
#include <memory>

#include "capi/errors.h"
#include "engine/cuda/engine_backend.h"
#include "engine/session.h"

namespace dvt::capi {

// Models and sessions that exist: weights are packed for one instruction set, which must not change under them.
inline std::atomic<int> live_handles{0};

class Handle {
 public:
  Handle() { ++live_handles; }
  ~Handle() { --live_handles; }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
};

// What the environment asks for and cannot be honoured is an error of every call that makes a handle.
dvt_status check_environment();

}  // namespace dvt::capi

// Each on the CPU or on a device: the other pointer is null.
struct dvt_model : dvt::capi::Handle {
  std::shared_ptr<const dvt::Model> model;
  std::unique_ptr<dvt::cuda::EngineModelCuda> cuda;
};

struct dvt_session : dvt::capi::Handle {
  std::unique_ptr<dvt::Session> session;
  std::unique_ptr<dvt::cuda::EngineSessionCuda> cuda;
};
