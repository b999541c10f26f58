#include "core/safetensors.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "core/json.h"

namespace dvt {
namespace {

constexpr size_t kLengthBytes = 8;

bool dtype_of(const std::string& name, Dtype* out) {
  for (const auto& [known, dtype] :
       {std::pair("F32", Dtype::float32), std::pair("F16", Dtype::float16), std::pair("BF16", Dtype::bfloat16)})
    if (name == known) {
      *out = dtype;
      return true;
    }
  return false;
}

constexpr size_t kMaxSizes = 8;

// A few whole numbers of at least 0.
bool read_sizes(const JsonValue* value, std::vector<int64_t>* out) {
  if (!value || value->kind != JsonValue::Kind::array || value->items.size() > kMaxSizes) return false;
  for (const JsonValue& item : value->items) {
    int64_t size = 0;
    if (!item.to_integer(&size) || size < 0) return false;
    out->push_back(size);
  }
  return true;
}

struct Range {
  int64_t begin, end;
  const std::string* name;
};

// One tensor's entry: {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}.
Status read_entry(const std::string& name, const JsonValue& value, int64_t data_bytes, SafetensorsEntry* out,
                  Range* range) {
  out->name = name;
  const std::string tensor = "tensor " + quoted(name);
  if (value.kind != JsonValue::Kind::object || value.keys.size() != 3)
    return invalid_argument(tensor, " must have dtype, shape and data_offsets");
  const JsonValue* dtype = value.find("dtype");
  if (!dtype || dtype->kind != JsonValue::Kind::string) return invalid_argument(tensor, " must have a dtype");
  if (!dtype_of(dtype->text, &out->dtype))
    return invalid_argument(tensor, " must have dtype F32, F16 or BF16, got ", quoted(dtype->text));
  if (!read_sizes(value.find("shape"), &out->shape))
    return invalid_argument(tensor, " must have a shape of at most ", kMaxSizes, " whole numbers of at least 0");

  const int64_t element = size_of(out->dtype);
  out->count = 1;
  for (const int64_t extent : out->shape) {
    if (extent > 0 && out->count > std::numeric_limits<int64_t>::max() / element / extent)
      return invalid_argument(tensor, " has a shape with too many elements: ", shape_text(out->shape));
    out->count *= extent;
  }
  std::vector<int64_t> offsets;
  if (!read_sizes(value.find("data_offsets"), &offsets) || offsets.size() != 2)
    return invalid_argument(tensor, " must have data_offsets of two whole numbers of at least 0");
  if (offsets[0] > offsets[1] || offsets[1] > data_bytes)
    return invalid_argument(tensor, " must lie within the ", data_bytes, " bytes of data, got data_offsets ",
                            shape_text(offsets),
                            data_bytes < offsets[1] ? ": the file is cut or its header is wrong" : "");
  const int64_t bytes = out->count * element;
  if (offsets[1] - offsets[0] != bytes)
    return invalid_argument(tensor, " must have ", bytes, " bytes for ", dtype->text, " ", shape_text(out->shape),
                            ", got ", offsets[1] - offsets[0]);
  *range = {offsets[0], offsets[1], &out->name};
  return Status();
}

Status read_metadata(const JsonValue& value, SafetensorsFile* out) {
  if (value.kind != JsonValue::Kind::object) return invalid_argument("__metadata__ must be an object");
  for (size_t i = 0; i < value.keys.size(); ++i) {
    if (value.items[i].kind != JsonValue::Kind::string)
      return invalid_argument("__metadata__ must hold strings, got another kind for ", quoted(value.keys[i]));
    out->metadata_keys.push_back(value.keys[i]);
    out->metadata_values.push_back(value.items[i].text);
  }
  return Status();
}

// The ranges must follow each other from the first byte of the data to the last one.
Status check_layout(std::vector<Range> ranges, int64_t data_bytes) {
  std::sort(ranges.begin(), ranges.end(),
            [](const Range& a, const Range& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
  int64_t end = 0;
  for (const Range& range : ranges) {
    if (range.begin != end)
      return invalid_argument("tensor ", quoted(*range.name), " must start at byte ", end,
                              " of the data, where the one before it ends, got ", range.begin);
    end = range.end;
  }
  if (end != data_bytes)
    return invalid_argument("the tensors must fill the data, ", data_bytes, " bytes, and they end at ", end);
  return Status();
}

}  // namespace

const std::string* SafetensorsFile::metadata(const std::string& key) const {
  for (size_t i = 0; i < metadata_keys.size(); ++i)
    if (metadata_keys[i] == key) return &metadata_values[i];
  return nullptr;
}

Status read_safetensors(const void* data, size_t size, SafetensorsFile* out) {
  *out = SafetensorsFile();
  if (size < kLengthBytes) return invalid_argument("not a safetensors file: ", size, " bytes are no header");
  const unsigned char* bytes = static_cast<const unsigned char*>(data);
  uint64_t length = 0;
  for (size_t i = kLengthBytes; i-- > 0;) length = length << 8 | bytes[i];
  if (length > static_cast<uint64_t>(kMaxSafetensorsHeader))
    return invalid_argument("not one of our safetensors files, as dvt-fast export writes them");
  if (length > size - kLengthBytes)
    return invalid_argument("the file is cut: its header has ", length, " bytes, and ", size - kLengthBytes,
                            " are there");
  const std::string_view text(reinterpret_cast<const char*>(bytes) + kLengthBytes, static_cast<size_t>(length));
  JsonValue header;
  Status status = read_json(text, &header);
  if (!status.ok()) return invalid_argument("not a safetensors file: its header is ", status.message());
  if (header.kind != JsonValue::Kind::object || text[0] != '{')
    return invalid_argument("not a safetensors file: its header must be a JSON object");

  const size_t data_begin = kLengthBytes + static_cast<size_t>(length);
  const int64_t data_bytes = static_cast<int64_t>(size - data_begin);
  std::vector<Range> ranges;
  out->tensors.reserve(header.keys.size());  // so that the ranges' names stay where they are
  for (size_t i = 0; i < header.keys.size(); ++i) {
    if (header.keys[i] == "__metadata__") {
      DVT_RETURN_IF_ERROR(read_metadata(header.items[i], out));
      continue;
    }
    out->tensors.emplace_back();
    ranges.emplace_back();
    DVT_RETURN_IF_ERROR(read_entry(header.keys[i], header.items[i], data_bytes, &out->tensors.back(), &ranges.back()));
    out->tensors.back().data = bytes + data_begin + ranges.back().begin;
  }
  DVT_RETURN_IF_ERROR(check_layout(std::move(ranges), data_bytes));
  std::sort(out->tensors.begin(), out->tensors.end(),
            [](const SafetensorsEntry& a, const SafetensorsEntry& b) { return a.name < b.name; });
  return Status();
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

}  // namespace dvt
