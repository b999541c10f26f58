// An engine file on the disk.
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <utility>

#include "core/buffer.h"
#include "engine/weights.h"

namespace dvt {

Status read_engine_file(const std::string& path, EngineWeights* out) {
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  const std::unique_ptr<std::FILE, Close> file(std::fopen(path.c_str(), "rb"));
  if (!file) return invalid_argument(path, ": ", std::strerror(errno));
  // Its size may be a lie (a pipe has none, a folder the largest number): read until there is no more.
  constexpr long kMaxFile = 1L << 46;
  Buffer<char> bytes;
  size_t size = 0, capacity = 0;
  if (std::fseek(file.get(), 0, SEEK_END) == 0) {
    const long end = std::ftell(file.get());
    if (end > 0 && end < kMaxFile) capacity = static_cast<size_t>(end) + 1;
    std::rewind(file.get());
  }
  if (capacity == 0) capacity = size_t{1} << 20;
  for (;;) {
    Buffer<char> larger;
    char* to = larger.at_least(static_cast<int64_t>(capacity));
    if (size > 0) std::memcpy(to, bytes.data(), size);
    size += std::fread(to + size, 1, capacity - size, file.get());
    bytes = std::move(larger);
    if (size < capacity) break;
    capacity *= 2;
  }
  if (std::ferror(file.get())) return invalid_argument(path, ": ", std::strerror(errno));
  const Status status = read_engine_weights(bytes.data(), size, out);
  return status.ok() ? status : Status(status.code(), format(path, ": ", status.message()));
}

}  // namespace dvt
