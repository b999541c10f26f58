// Weights packed for this machine: immutable, shared by any number of sessions and threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "core/status.h"
#include "core/tensor.h"
#include "engine/weights.h"

namespace dvt {

struct PackedModel;  // model_packed.h

class Model {
 public:
  // Packs weights in `dtype` (float32, float16 or bfloat16: how they are stored; the arithmetic is float32).
  static Status create(const EngineWeights& weights, Dtype dtype, std::shared_ptr<const Model>* out);
  // Reads and packs an engine file that is in memory, or on the disk.
  static Status from_bytes(const void* data, size_t size, Dtype dtype, std::shared_ptr<const Model>* out);
  static Status from_file(const std::string& path, Dtype dtype, std::shared_ptr<const Model>* out);
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  bool has_vit() const;
  bool has_denoiser() const;
  int64_t dim() const;  // channels of the features
  Dtype dtype() const;
  const std::string& metadata() const;  // JSON text, see weights.h
  const PackedModel& packed() const { return *packed_; }

 private:
  explicit Model(std::unique_ptr<PackedModel> packed);
  std::unique_ptr<PackedModel> packed_;
};

}  // namespace dvt
