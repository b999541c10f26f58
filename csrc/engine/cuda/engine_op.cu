// A whole session by name, for tests of kernels without the package: an engine file and an input in, features out.
#include <memory>
#include <vector>

#include "cuda/op_registry.h"
#include "cuda/runtime.h"
#include "engine/cuda/engine_backend.h"

namespace dvt::cuda {
namespace {

Status view_of(const OpTensor& tensor, TensorView* view) {
  switch (tensor.type) {
    case OpType::float32: view->dtype = Dtype::float32; break;
    case OpType::float16: view->dtype = Dtype::float16; break;
    case OpType::bfloat16: view->dtype = Dtype::bfloat16; break;
    case OpType::uint8: view->dtype = Dtype::uint8; break;
    default: return invalid_argument("block: tensors must be float32, float16, bfloat16 or uint8");
  }
  if (tensor.shape.size() != 3 && tensor.shape.size() != 4)
    return invalid_argument("block: tensors must have 3 or 4 dimensions, got ", tensor.shape.size());
  view->data = tensor.data;
  view->rank = static_cast<int>(tensor.shape.size());
  int64_t stride = 1;
  for (int axis = view->rank - 1; axis >= 0; --axis) {
    view->shape[axis] = tensor.shape[static_cast<size_t>(axis)];
    view->strides[axis] = stride;
    stride *= view->shape[axis];
  }
  return Status();
}

Status find(const OpCall& op, const char* name, TensorView* view) {
  const auto found = op.tensors.find(name);
  if (found == op.tensors.end()) return invalid_argument("block: ", name, " is missing");
  return view_of(found->second, view);
}

// file (uint8), x [B, h, w, C] or images -> out [B, h, w, C], and raw where it is given. words: compute ("float32",
// "tf32", "float16", "bfloat16"), input ("features", "normalized", "image"); numbers: image_height, image_width.
Status block_op(OpCall& op) {
  const OpTensor* file = nullptr;
  DVT_RETURN_IF_ERROR(op.tensor("file", OpType::uint8, &file));
  TensorView x, out, raw;
  DVT_RETURN_IF_ERROR(find(op, "x", &x));
  DVT_RETURN_IF_ERROR(find(op, "out", &out));
  if (op.has("raw")) DVT_RETURN_IF_ERROR(find(op, "raw", &raw));
  EngineCompute compute = EngineCompute::bfloat16;
  for (const EngineCompute c :
       {EngineCompute::float32, EngineCompute::tf32, EngineCompute::float16, EngineCompute::bfloat16})
    if (op.word("compute") == compute_name(c)) compute = c;
  SessionOptions options;
  const std::string input = op.word("input", "features");
  options.input = input == "image"        ? InputKind::image
                  : input == "normalized" ? InputKind::normalized
                                          : InputKind::features;
  options.batch = x.rank == 4 ? x.shape[0] : 1;
  options.image_height = static_cast<int64_t>(op.number("image_height"));
  options.image_width = static_cast<int64_t>(op.number("image_width"));
  if (options.input == InputKind::features) {
    options.grid_height = x.shape[x.rank - 3];
    options.grid_width = x.shape[x.rank - 2];
  }

  const cudaStream_t stream = static_cast<cudaStream_t>(op.stream);
  std::vector<char> bytes(static_cast<size_t>(file->count()));
  DVT_CUDA(cudaMemcpyAsync(bytes.data(), file->data, bytes.size(), cudaMemcpyDeviceToHost, stream), "copying a file");
  DVT_CUDA(cudaStreamSynchronize(stream), "copying a file");
  EngineWeights weights;
  DVT_RETURN_IF_ERROR(read_engine_weights(bytes.data(), bytes.size(), &weights));
  std::unique_ptr<EngineModelCuda> model;
  DVT_RETURN_IF_ERROR(create_engine_model(weights, compute, op.device, &model));
  std::unique_ptr<EngineSessionCuda> session;
  DVT_RETURN_IF_ERROR(model->create_session(options, &session));
  DVT_RETURN_IF_ERROR(session->run(x, out, op.has("raw") ? &raw : nullptr, stream, nullptr, 0));
  DVT_CUDA(cudaStreamSynchronize(stream), "running a session");
  bool finite = true;
  DVT_RETURN_IF_ERROR(session->finite(&finite));
  return finite ? Status() : non_finite("the features hold NaN or infinity");
}

}  // namespace

DVT_CUDA_OP("block", block_op)

}  // namespace dvt::cuda
