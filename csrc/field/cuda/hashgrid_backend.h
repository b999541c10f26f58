// Solver "hashgrid" on a device as the bindings see it, without a type of CUDA's: the whole loop runs on the device, as
// graphs of steps, and the host looks only between graphs. hashgrid_fitter.h has the recipe and the CPU's fitter.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/status.h"
#include "core/tensor.h"
#include "field/hashgrid_recipe.h"

namespace dvt::cuda {

struct HashgridCudaOptions {
  HashgridOptions recipe;
  // What the products multiply: "tf32" (float32 rounded to 11 bits), "bfloat16", or "float32" (three products of tf32,
  // with the error of float32 arithmetic). Sums, parameters and moments are float32 in any case.
  std::string compute = "tf32";
  // Gradients of the hash grid are added in 64-bit fixed point: the same seed gives the same bits on the same device.
  // Otherwise by float atomics, whose order is not fixed; everything else has one order in any case.
  bool deterministic = false;
  int64_t graph_steps = 20;  // steps a graph; 0: kernels are launched one by one
  int64_t sweep_steps = 64;  // every entry of the hash grid is brought up to date within this many steps
};

// The views, which outlive the fitter. The last view is the whole image.
struct HashgridCudaProblem {
  const void* features = nullptr;  // [V, H, W, C]
  Dtype dtype = Dtype::float32;    // or float16, bfloat16
  bool features_on_device = false;
  const float* coords = nullptr;  // [V, H, W, 2] in [0, 1]
  bool coords_on_device = false;
  HashgridSize size{};
  int device = 0;
  void* stream = nullptr;  // a cudaStream_t on which features and coords are written; null: the default one
};

class HashgridFitterCuda {
 public:
  // Called between graphs, when `report_every` steps have gone by, and after the last; false stops the fit.
  using Progress = std::function<bool(int64_t step, int64_t steps, double loss)>;

  virtual ~HashgridFitterCuda() = default;

  // As HashgridFitter's, arrays in main memory. A loss that is not finite, and a wish to stop, are noticed between
  // graphs: up to two graphs later.
  virtual Status run(int64_t count, const int64_t* samples, int64_t report_every, const Progress& progress) = 0;
  virtual Status gradients(const int64_t* samples, bool second_phase, const HashgridParameters& grads,
                           Losses* losses) = 0;
  virtual Status parameters(const HashgridParameters& to) = 0;
  virtual Status set_parameters(const HashgridParameters& from) = 0;  // before the first step

  // F at the last view's coordinates, G, and h of the last view's features, [H, W, C] each, computed in float32; to
  // main memory or to the device.
  virtual Status decomposition(float* semantics, float* artifacts, float* residual, bool to_device) = 0;
  // F at coords [n, 2], to out [n, C]; both in main memory or both on the device.
  virtual Status query(const float* coords, int64_t n, float* out, bool on_device) = 0;

  virtual const HashgridRecipe& recipe() const = 0;
  virtual int64_t step() const = 0;
  virtual Losses losses() const = 0;                           // of the last step that was looked at
  virtual const std::vector<float>& loss_history() const = 0;  // total, one a step taken
  virtual int64_t device_bytes() const = 0;                    // allocated, without features that lay there already
};

Status make_hashgrid_fitter(const HashgridCudaOptions& options, const HashgridCudaProblem& problem,
                            std::unique_ptr<HashgridFitterCuda>* out);

// Runs up to `count` steps of each of several fitters of one device together, their graphs in turn: one image's kernels
// fill what another's leave idle. progress gets the fitter's number first. The first error ends all.
Status run_hashgrid_fitters(
    const std::vector<HashgridFitterCuda*>& fitters, int64_t count, int64_t report_every,
    const std::function<bool(int64_t fitter, int64_t step, int64_t steps, double loss)>& progress);

}  // namespace dvt::cuda
