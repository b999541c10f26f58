// The direct solver on a device as the bindings see it, without a type of CUDA's; the mathematics and the options are
// in direct_solver.h. Also the baseline that averages, and what is asked of a field at the nodes of a grid.
//
// Features, results and coordinates are memory of the device, unless something else is said; nodes, artifacts and a
// prior are aligned to 16 bytes. A stream is a cudaStream_t
// (null: the default stream); it must be the same for all calls of one solver. `add` and `solve` read a few numbers
// back, so they wait for the stream; the other functions only enqueue.
#pragma once

#include <cstdint>
#include <memory>

#include "core/status.h"
#include "core/tensor.h"
#include "field/direct_solver/direct_solver.h"

namespace dvt::cuda {

struct DirectSetup {
  GridShape grid;
  int64_t patches, channels;
  Keep keep = Keep::nothing;  // borrow: features stay valid and unchanged until the last solve. half: a copy, float16
                              // of float32 features, else of their own type
  bool cosine = false;
  bool solves_artifacts = true;  // false: fix_artifacts is going to be set, and what only G needs is not made
  int64_t expected_views = 0;    // memory for as many is taken at once
  int device = 0;
};

class DirectSolverCuda {
 public:
  virtual ~DirectSolverCuda() = default;

  // features [views, patches, channels] of float32, float16 or bfloat16 (with Keep::borrow always the same), coords
  // [views, patches, 2], in main memory or on the device. An error names the first view with NaN or infinity, or beyond
  // float16's range where that is what is kept; then nothing of this call is kept.
  virtual Status add(int64_t views, const void* features, Dtype type, const float* coords, bool coords_on_device,
                     void* stream) = 0;
  // prior [patches, channels] or null; nodes [nodes, channels] and artifacts [patches, channels] are written. The
  // method is always pcg, with G eliminated; schur is refused.
  virtual Status solve(const DirectOptions& options, const float* prior, float* nodes, float* artifacts,
                       DirectReport* report, void* stream) = 0;
  // solver="average": nodes = what the views say about each, divided by their coverage, holes filled from their rims;
  // artifacts = the mean over views of what that leaves. Not after cosine weights.
  virtual Status average(float* nodes, float* artifacts, void* stream) = 0;
  // Forgets the views and keeps the memory, for the next image.
  virtual void reset() = 0;
};

Status create_direct_solver(const DirectSetup& setup, std::unique_ptr<DirectSolverCuda>* out);

// out [count, channels] = the field of nodes [ny, nx, channels] at coords [count, 2].
Status query_field(int device, GridShape grid, int64_t channels, const float* nodes, int64_t count, const float* coords,
                   float* out, void* stream);
// out [height, width, channels] = the mean of the field over each patch, coords [height, width, 2] the patches'
// centres.
Status field_patch_means(int device, GridShape grid, int64_t channels, const float* nodes, int64_t height,
                         int64_t width, const float* coords, float* out, void* stream);
// The constant that G gives to F (solvers/gauge.py): artifacts [patches, channels] -= it, nodes [count, channels] +=
// it. workspace: gauge_workspace_bytes() of device memory.
size_t gauge_workspace_bytes(int64_t patches, int64_t channels);
Status apply_gauge(int device, int64_t patches, int64_t channels, float* artifacts, int64_t nodes, float* node_values,
                   void* workspace, void* stream);

}  // namespace dvt::cuda
