// What the engine is made of, bound for tests and benchmarks only.
#include <pybind11/stl.h>

#include "bindings/convert.h"
#include "engine/weights.h"

namespace dvt::bindings {
namespace {

// The arrays of a file under the names that they have in it.
class Arrays {
 public:
  void add(const std::string& name, const std::vector<float>& values) {
    if (values.empty()) return;
    dict_[name.c_str()] = Array<float>(static_cast<py::ssize_t>(values.size()), values.data());
  }
  void add(const std::string& name, const NormWeights& norm) {
    add(name + ".weight", norm.weight);
    add(name + ".bias", norm.bias);
  }
  void add(const std::string& name, const LinearWeights& linear) {
    add(name + ".weight", linear.weight);
    add(name + ".bias", linear.bias);
  }
  void add(const std::string& name, const BlockWeights& block) {
    add(name + ".norm1", block.norm1);
    add(name + ".qkv", block.qkv);
    add(name + ".q_norm", block.q_norm);
    add(name + ".k_norm", block.k_norm);
    add(name + ".attention_norm", block.attention_norm);
    add(name + ".proj", block.proj);
    add(name + ".scale1", block.scale1);
    add(name + ".norm2", block.norm2);
    add(name + ".fc1", block.fc1);
    add(name + ".mlp_norm", block.mlp_norm);
    add(name + ".fc2", block.fc2);
    add(name + ".scale2", block.scale2);
  }
  py::dict take() { return std::move(dict_); }

 private:
  py::dict dict_;
};

py::object describe(const NormWeights& norm) {
  if (norm.kind == NormWeights::Kind::none) return py::none();
  return py::dict(py::arg("kind") = norm.kind == NormWeights::Kind::layer ? "layer" : "rms", py::arg("eps") = norm.eps);
}

py::dict describe(const BlockWeights& block) {
  return py::dict(py::arg("norm1") = describe(block.norm1), py::arg("norm2") = describe(block.norm2),
                  py::arg("q_norm") = describe(block.q_norm), py::arg("k_norm") = describe(block.k_norm),
                  py::arg("attention_norm") = describe(block.attention_norm),
                  py::arg("mlp_norm") = describe(block.mlp_norm));
}

py::dict describe(const TransformerWeights& t, const std::string& name, Arrays* arrays) {
  py::object rotary = py::none();
  if (t.rotary) {
    rotary = py::dict(py::arg("offset") = t.rotary->offset, py::arg("shift") = t.rotary->shift,
                      py::arg("reference") = t.rotary->reference, py::arg("pairs") = static_cast<int>(t.rotary->pairs));
    arrays->add(name + ".rotary.bands", t.rotary->bands);
  }
  py::object pos_grid = py::none();
  if (!t.pos_embed.empty()) pos_grid = py::cast(t.pos_grid);
  arrays->add(name + ".pos_embed", t.pos_embed);
  arrays->add(name + ".extra_tokens", t.extra_tokens);
  arrays->add(name + ".norm_pre", t.norm_pre);
  arrays->add(name + ".norm", t.norm);
  for (size_t i = 0; i < t.blocks.size(); ++i) arrays->add(name + ".blocks." + std::to_string(i), t.blocks[i]);
  return py::dict(
      py::arg("dim") = t.dim, py::arg("heads") = t.heads, py::arg("head_dim") = t.head_dim,
      py::arg("hidden") = t.hidden, py::arg("depth") = t.blocks.size(),
      py::arg("activation") = static_cast<int>(t.activation), py::arg("gated") = t.gated,
      py::arg("pos_grid") = pos_grid, py::arg("extra_tokens") = t.extra_tokens.size() / static_cast<size_t>(t.dim),
      py::arg("extra_first") = t.extra_first, py::arg("norm_pre") = describe(t.norm_pre),
      py::arg("norm") = describe(t.norm),
      py::arg("block") = t.blocks.empty() ? py::none() : py::object(describe(t.blocks[0])), py::arg("rotary") = rotary);
}

// An engine file as it was understood: the header's fields (choices as their numbers) and "arrays", flat float32.
py::dict check_engine_file(const py::bytes& data) {
  char* bytes = nullptr;
  py::ssize_t size = 0;
  if (PyBytes_AsStringAndSize(data.ptr(), &bytes, &size) != 0) throw py::error_already_set();
  EngineWeights weights;
  Status status;
  {
    py::gil_scoped_release release;
    status = read_engine_weights(bytes, static_cast<size_t>(size), &weights);
  }
  raise_if_error(status);
  Arrays arrays;
  py::object patch_embed = py::none(), vit = py::none(), denoiser = py::none();
  if (weights.patch_embed) {
    const PatchEmbedWeights& embed = *weights.patch_embed;
    arrays.add("patch_embed", embed.linear);
    arrays.add("patch_embed.norm", embed.norm);
    patch_embed = py::dict(py::arg("patch") = embed.patch, py::arg("stride") = embed.stride,
                           py::arg("image_size") = embed.image_size, py::arg("mean") = embed.mean,
                           py::arg("std") = embed.std, py::arg("norm") = describe(embed.norm));
  }
  if (weights.vit) vit = describe(*weights.vit, "vit", &arrays);
  if (weights.denoiser) denoiser = describe(*weights.denoiser, "denoiser", &arrays);
  return py::dict(py::arg("patch_embed") = patch_embed, py::arg("vit") = vit, py::arg("denoiser") = denoiser,
                  py::arg("source") = weights.metadata, py::arg("arrays") = arrays.take());
}

}  // namespace

void bind_engine_parts(py::module_& m) { m.def("check_engine_file", &check_engine_file, py::arg("data")); }

}  // namespace dvt::bindings
