// dvt_fast for C++17: the handles of dvt_fast.h as objects that let go of themselves, its statuses as exceptions.
//
//   const dvt_fast::Model model("engine.safetensors");
//   dvt_fast::SessionOptions options;
//   options.threads = 2;
//   dvt_fast::Session session(model, options);
//   std::vector<float> features(session.output_size());
//   const dvt_fast::Tensor frame(pixels, {480, 640, 3}), output(features.data(), session.output_shape());
//   session.run(frame, output);  // once a frame
//
// A loop that must not throw calls `try_run`, which returns the status.
#ifndef DVT_FAST_HPP
#define DVT_FAST_HPP

#include <dvt_fast.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>

namespace dvt_fast {

class Error : public std::runtime_error {
 public:
  Error(dvt_status status, const std::string& message) : std::runtime_error(message), status_(status) {}
  dvt_status status() const noexcept { return status_; }

 private:
  dvt_status status_;
};

inline void check(dvt_status status) {
  if (status != DVT_OK) throw Error(status, dvt_last_error());
}

// A struct of dvt_fast.h with its struct_size set and everything else zero.
template <class T>
struct Sized : T {
  Sized() noexcept : T{} { this->struct_size = sizeof(T); }
};
using ModelOptions = Sized<dvt_model_options>;
using ModelInfo = Sized<dvt_model_info>;
using SessionOptions = Sized<dvt_session_options>;
using SessionInfo = Sized<dvt_session_info>;
using RunArgs = Sized<dvt_run_args>;

inline constexpr dvt_data_type float32{DVT_FLOAT, 32, 1}, float16{DVT_FLOAT, 16, 1}, bfloat16{DVT_BFLOAT, 16, 1},
    uint8{DVT_UINT, 8, 1};

// A shape, or strides: up to four numbers.
class Extents {
 public:
  Extents() = default;
  Extents(std::initializer_list<std::int64_t> values) : Extents(values.begin(), values.size()) {}
  template <std::size_t N>
  Extents(const std::array<std::int64_t, N>& values) : Extents(values.data(), N) {}
  Extents(const std::int64_t* values, std::size_t count) : size_(count) {
    if (count > values_.size()) throw Error(DVT_INVALID_ARGUMENT, "tensors have at most 4 dimensions");
    std::copy_n(values, count, values_.begin());
  }

  const std::int64_t* data() const noexcept { return values_.data(); }
  std::size_t size() const noexcept { return size_; }

 private:
  std::array<std::int64_t, 4> values_{};
  std::size_t size_ = 0;
};

// Memory of the caller seen as a tensor; inputs are not written to. Strides are in elements, of any sign; none:
// row-major and contiguous. 16-bit floats are kept as anything and named by `float16` or `bfloat16`. device: where the
// memory is, {DVT_CUDA, 0} ... for that of a CUDA device.
class Tensor {
 public:
  Tensor(const void* data, dvt_data_type dtype, const Extents& shape, const Extents& strides = {},
         dvt_device device = {DVT_CPU, 0})
      : data_(const_cast<void*>(data)), dtype_(dtype), shape_(shape), strides_(strides), device_(device) {
    if (strides.size() != 0 && strides.size() != shape.size())
      throw Error(DVT_INVALID_ARGUMENT, "strides must be as many as dimensions, or none");
  }
  Tensor(const float* data, const Extents& shape, const Extents& strides = {})
      : Tensor(data, float32, shape, strides) {}
  Tensor(const std::uint8_t* data, const Extents& shape, const Extents& strides = {})
      : Tensor(data, uint8, shape, strides) {}

  // Valid while this Tensor is.
  dvt_tensor view() const noexcept {
    return {data_,  device_,       static_cast<std::int32_t>(shape_.size()),
            dtype_, shape_.data(), strides_.size() ? strides_.data() : nullptr,
            0};
  }

 private:
  void* data_;
  dvt_data_type dtype_;
  Extents shape_, strides_;
  dvt_device device_;
};

// Weights, packed; any number of threads may make sessions from one, and sessions keep what they need of it.
class Model {
 public:
  explicit Model(const std::string& path, const ModelOptions& options = {}) {
    dvt_model* model = nullptr;
    check(dvt_model_load(path.c_str(), &options, &model));
    handle_.reset(model);
  }
  Model(const void* data, std::size_t size, const ModelOptions& options = {}) {
    dvt_model* model = nullptr;
    check(dvt_model_load_memory(data, size, &options, &model));
    handle_.reset(model);
  }

  ModelInfo info() const {
    ModelInfo info;
    check(dvt_model_get_info(get(), &info));
    return info;
  }
  const dvt_model* get() const noexcept { return handle_.get(); }

 private:
  struct Destroy {
    void operator()(dvt_model* model) const noexcept { dvt_model_destroy(model); }
  };
  std::unique_ptr<dvt_model, Destroy> handle_;
};

// One stream of frames through a model; serves one caller at a time.
class Session {
 public:
  explicit Session(const Model& model, const SessionOptions& options = {}) {
    dvt_session* session = nullptr;
    check(dvt_session_create(model.get(), &options, &session));
    handle_.reset(session);
    check(dvt_session_get_info(session, &info_));
  }

  const SessionInfo& info() const noexcept { return info_; }
  // Of a result: {batch, grid height, grid width, dim}.
  std::array<std::int64_t, 4> output_shape() const noexcept {
    return {info_.batch, info_.grid_height, info_.grid_width, info_.dim};
  }
  std::size_t output_size() const noexcept {
    return static_cast<std::size_t>(info_.batch * info_.grid_height * info_.grid_width * info_.dim);
  }

  // raw: where the ViT's own features go, or null. workspace: see dvt_run_args; null: the session's own. stream: a
  // cudaStream_t, for tensors on a CUDA device.
  void run(const Tensor& input, const Tensor& output, const Tensor* raw = nullptr, void* workspace = nullptr,
           std::size_t workspace_bytes = 0, void* stream = nullptr) {
    check(try_run(input, output, raw, workspace, workspace_bytes, stream));
  }
  dvt_status try_run(const Tensor& input, const Tensor& output, const Tensor* raw = nullptr, void* workspace = nullptr,
                     std::size_t workspace_bytes = 0, void* stream = nullptr) noexcept {
    const dvt_tensor views[] = {input.view(), output.view(), (raw ? *raw : output).view()};
    RunArgs args;
    args.input = &views[0];
    args.output = &views[1];
    args.raw = raw ? &views[2] : nullptr;
    args.workspace = workspace;
    args.workspace_bytes = workspace_bytes;
    args.stream = stream;
    return dvt_session_run(get(), &args);
  }
  // Of a session on a CUDA device whose last run is done: whether its result is free of NaN and infinity.
  bool finite() const {
    std::int32_t finite = 0;
    check(dvt_session_finite(get(), &finite));
    return finite != 0;
  }
  dvt_session* get() const noexcept { return handle_.get(); }

 private:
  struct Destroy {
    void operator()(dvt_session* session) const noexcept { dvt_session_destroy(session); }
  };
  std::unique_ptr<dvt_session, Destroy> handle_;
  SessionInfo info_;
};

}  // namespace dvt_fast

#endif  // DVT_FAST_HPP
