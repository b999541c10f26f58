// The header of a safetensors file: 8 bytes with the length of a JSON text, that text, then the tensors' bytes.
//
// The format has one layout for given sizes: data without holes, overlaps or anything after them, each range of exactly
// the bytes that shape and dtype ask for. All of it is checked, and nothing is allocated by a size that the file
// claims.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/status.h"
#include "core/tensor.h"

namespace dvt {

struct SafetensorsEntry {
  std::string name;
  Dtype dtype = Dtype::float32;  // float32, float16 or bfloat16
  std::vector<int64_t> shape;
  int64_t count = 0;           // elements
  const void* data = nullptr;  // within the file, C order, of any alignment
};

struct SafetensorsFile {
  std::vector<SafetensorsEntry> tensors;  // by name
  // Of "__metadata__", whose values are strings.
  std::vector<std::string> metadata_keys, metadata_values;

  const std::string* metadata(const std::string& key) const;
};

constexpr int64_t kMaxSafetensorsHeader = 4 << 20;  // bytes; a model of 1,000 tensors has a tenth of a megabyte

// Reads the header of a whole file at `data`, which must outlive the result. Other dtypes than those three are refused.
Status read_safetensors(const void* data, size_t size, SafetensorsFile* out);

// "[2, 3]", for messages.
std::string shape_text(const std::vector<int64_t>& shape);

}  // namespace dvt
