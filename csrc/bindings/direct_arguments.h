// What the bindings of the direct solver, on the CPU and on a device, share.
#pragma once

#include "bindings/convert.h"
#include "field/direct_solver/direct_solver.h"

namespace dvt::bindings {

constexpr int64_t kMaxNodes = 1 << 24, kMaxDirectPatches = 1 << 24, kMaxChannels = 1 << 20;

// With these limits no product of sizes wraps, and what is too large for the machine fails where memory is asked for.
inline void check_grid(int64_t ny, int64_t nx, int64_t channels) {
  if (ny < 2 || nx < 2) raise_if_error(invalid_argument("grid must have at least 2 x 2 nodes, got ", ny, " x ", nx));
  if (ny > kMaxNodes / nx)
    raise_if_error(invalid_argument("grid must have at most ", kMaxNodes, " nodes, got ", ny, " x ", nx));
  if (channels < 1 || channels > kMaxChannels)
    raise_if_error(invalid_argument("channels must be 1 to ", kMaxChannels, ", got ", channels));
}

inline void check_direct_problem(int64_t ny, int64_t nx, int64_t patches, int64_t channels) {
  check_grid(ny, nx, channels);
  if (patches < 1 || patches > kMaxDirectPatches)
    raise_if_error(invalid_argument("patches must be 1 to ", kMaxDirectPatches, ", got ", patches));
}

inline Keep keep_of(const std::string& keep) {
  if (keep != "borrow" && keep != "half" && keep != "nothing")
    raise_if_error(invalid_argument("keep must be 'borrow', 'half' or 'nothing', got '", keep, "'"));
  return keep == "borrow" ? Keep::borrow : keep == "half" ? Keep::half : Keep::nothing;
}

inline DirectOptions direct_options(const py::object& smoothness, const py::object& artifact_ridge, int passes,
                                    int residual, double outlier_threshold, bool fix_artifacts,
                                    const std::string& method, double tolerance, int max_iterations) {
  if (method != "auto" && method != "schur" && method != "pcg")
    raise_if_error(invalid_argument("method must be 'auto', 'schur' or 'pcg', got '", method, "'"));
  DirectOptions options;
  options.automatic_smoothness = smoothness.is_none();
  if (!options.automatic_smoothness) options.smoothness = smoothness.cast<double>();
  options.automatic_ridge = artifact_ridge.is_none();
  if (!options.automatic_ridge) options.artifact_ridge = artifact_ridge.cast<double>();
  options.passes = passes;
  options.residual = residual;
  options.outlier_threshold = outlier_threshold;
  options.fix_artifacts = fix_artifacts;
  options.method = method == "schur" ? DirectMethod::schur
                   : method == "pcg" ? DirectMethod::pcg
                                     : DirectMethod::automatic;
  options.tolerance = tolerance;
  options.max_iterations = max_iterations;
  return options;
}

inline py::dict report_dict(const DirectReport& report) {
  py::dict info;
  info["method"] = report.method == DirectMethod::pcg ? "pcg" : "schur";
  info["passes"] = report.passes;
  info["iterations"] = report.iterations;
  info["smoothness"] = report.smoothness;
  info["artifact_ridge"] = report.artifact_ridge;
  info["median_residual"] = report.median_residual;
  info["outlier_share"] = report.outlier_share;
  return info;
}

}  // namespace dvt::bindings
