// Gives each file that is named to a fuzz target, without libFuzzer.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    std::ifstream file(argv[i], std::ios::binary);
    if (!file) {
      std::fprintf(stderr, "%s cannot be read\n", argv[i]);
      return EXIT_FAILURE;
    }
    const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    // Exactly as many bytes as there are, so that one more is seen.
    const std::unique_ptr<uint8_t[]> data(new uint8_t[text.size()]);
    std::memcpy(data.get(), text.data(), text.size());
    std::fprintf(stderr, "%s\n", argv[i]);
    LLVMFuzzerTestOneInput(data.get(), text.size());
  }
  std::printf("%d\n", argc - 1);
}
