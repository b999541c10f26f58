/* What the C clients share: checks that count, and tensors on the CPU. */
#ifndef DVT_TESTS_CLIENT_H
#define DVT_TESTS_CLIENT_H

#include <dvt_fast.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures = 0;

#define CHECK(condition)                                                                             \
  do {                                                                                               \
    if (!(condition)) {                                                                              \
      fprintf(stderr, "%s:%d: not so: %s (%s)\n", __FILE__, __LINE__, #condition, dvt_last_error()); \
      ++failures;                                                                                    \
    }                                                                                                \
  } while (0)

/* For what the rest of a test needs. */
#define REQUIRE(condition)                     \
  do {                                         \
    const int failures_before_ = failures;     \
    CHECK(condition);                          \
    if (failures != failures_before_) exit(1); \
  } while (0)

/* The call fails with this status and a sentence, one line, in which `text` occurs. */
#define CHECK_FAILS(expected, text, call)                          \
  do {                                                             \
    const dvt_status status_ = (call);                             \
    CHECK(status_ == (expected));                                  \
    CHECK(dvt_last_error()[0] && !strchr(dvt_last_error(), '\n')); \
    CHECK(strstr(dvt_last_error(), (text)) != NULL);               \
  } while (0)

static inline dvt_tensor tensor_on_cpu(void* data, uint8_t code, uint8_t bits, int32_t ndim, const int64_t* shape) {
  dvt_tensor tensor;
  memset(&tensor, 0, sizeof tensor);
  tensor.data = data;
  tensor.device.type = DVT_CPU;
  tensor.ndim = ndim;
  tensor.dtype.code = code;
  tensor.dtype.bits = bits;
  tensor.dtype.lanes = 1;
  tensor.shape = shape;
  return tensor;
}

static inline void* allocate(size_t size) {
  void* memory = malloc(size);
  REQUIRE(memory != NULL);
  return memory;
}

/* Pixels that differ everywhere, the same on every machine. */
static inline void fill_pixels(uint8_t* pixels, size_t count) {
  uint32_t state = 1;
  for (size_t i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    pixels[i] = (uint8_t)(state >> 24);
  }
}

static inline char* read_file(const char* path, size_t* size) {
  FILE* file = fopen(path, "rb");
  REQUIRE(file != NULL);
  REQUIRE(fseek(file, 0, SEEK_END) == 0);
  *size = (size_t)ftell(file);
  rewind(file);
  char* data = allocate(*size);
  REQUIRE(fread(data, 1, *size, file) == *size);
  fclose(file);
  return data;
}

#endif
