// Mutations of an engine file that keep what libFuzzer cannot guess: the length in front of the header.
//
// A part of the file is mutated and put back: the header, our own JSON text within it, one number, or the data.
#include <algorithm>
#include <cstring>
#include <random>
#include <string>

#include "fuzz.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace {

constexpr size_t kLengthBytes = 8;

// Mutates the `size` bytes from `begin` on, to at most 64 more, and returns how many they are.
size_t mutate_part(std::string* text, size_t begin, size_t size) {
  std::string part = text->substr(begin, size);
  part.resize(size + 64);
  const size_t now = LLVMFuzzerMutate(reinterpret_cast<uint8_t*>(&part[0]), size, part.size());
  text->replace(begin, size, part.substr(0, now));
  return now;
}

void change_number(std::string* header, std::minstd_rand* random) {
  static const char* const kNumbers[] = {"0",
                                         "1",
                                         "2",
                                         "3",
                                         "4",
                                         "8",
                                         "16",
                                         "-1",
                                         "0.5",
                                         "1e-6",
                                         "65536",
                                         "2147483648",
                                         "9223372036854775807",
                                         "18446744073709551616",
                                         "1e308",
                                         "null",
                                         "[]",
                                         "{}"};
  std::string& text = *header;
  const size_t from = (*random)() % (text.size() + 1);
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  const size_t begin =
      static_cast<size_t>(std::find_if(text.begin() + static_cast<long>(from), text.end(), is_digit) - text.begin());
  size_t end = begin;
  while (end < text.size() && is_digit(text[end])) ++end;
  if (begin < end) text.replace(begin, end - begin, kNumbers[(*random)() % (sizeof kNumbers / sizeof *kNumbers)]);
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  std::minstd_rand random(seed);
  uint64_t length = 0;
  if (size >= kLengthBytes) std::memcpy(&length, data, kLengthBytes);
  const unsigned choice = random() % 8;
  if (choice == 0 || size < kLengthBytes || length > size - kLengthBytes) return LLVMFuzzerMutate(data, size, max_size);
  std::string header(reinterpret_cast<char*>(data) + kLengthBytes, length);
  std::string tensors(reinterpret_cast<char*>(data) + kLengthBytes + length, size - kLengthBytes - length);
  if (choice == 1) {
    mutate_part(&tensors, 0, tensors.size());
  } else if (choice == 2) {
    mutate_part(&header, 0, header.size());
  } else if (choice < 6) {
    change_number(&header, &random);
  } else {
    const size_t begin = random() % (header.size() + 1);
    mutate_part(&header, begin, std::min<size_t>(header.size() - begin, 1 + random() % 40));
  }
  if (kLengthBytes + header.size() + tensors.size() > max_size) return size;
  length = header.size();
  std::memcpy(data, &length, kLengthBytes);
  std::copy(header.begin(), header.end(), data + kLengthBytes);
  std::copy(tensors.begin(), tensors.end(), data + kLengthBytes + length);
  return kLengthBytes + header.size() + tensors.size();
}
