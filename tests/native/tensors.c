/* Every layout that a tensor can have gives the same bits, and a tensor that cannot be used is a status with a
   sentence, after which the next valid call works. */
#include "client.h"

#include <math.h>

enum { kHeight = 90, kWidth = 120 }; /* of the image */
static const int64_t image_shape[3] = {kHeight, kWidth, 3};

typedef struct Fixture {
  dvt_session* session;
  dvt_session_info info;
  int64_t shape[3]; /* of the features */
  size_t count;
  uint8_t* pixels;
  float *expected, *expected_raw, *found;
  dvt_tensor input, output, raw;
} Fixture;

static dvt_status run(const Fixture* f, const dvt_tensor* input, const dvt_tensor* output, const dvt_tensor* raw) {
  const dvt_run_args args = {.struct_size = sizeof args, .input = input, .output = output, .raw = raw};
  return dvt_session_run(f->session, &args);
}

static int same(const float* a, const float* b, size_t count) { return memcmp(a, b, count * sizeof(float)) == 0; }

static void set_up(Fixture* f, const char* path) {
  dvt_model* model = NULL;
  REQUIRE(dvt_model_load(path, NULL, &model) == DVT_OK);
  REQUIRE(dvt_session_create(model, NULL, &f->session) == DVT_OK);
  REQUIRE(dvt_model_destroy(model) == DVT_OK);
  f->info.struct_size = sizeof f->info;
  REQUIRE(dvt_session_get_info(f->session, &f->info) == DVT_OK);
  f->shape[0] = f->info.grid_height;
  f->shape[1] = f->info.grid_width;
  f->shape[2] = f->info.dim;
  f->count = (size_t)(f->shape[0] * f->shape[1] * f->shape[2]);
  f->pixels = allocate(kHeight * kWidth * 3);
  fill_pixels(f->pixels, kHeight * kWidth * 3);
  f->expected = allocate(f->count * sizeof(float));
  f->expected_raw = allocate(f->count * sizeof(float));
  f->found = allocate(f->count * sizeof(float));
  f->input = tensor_on_cpu(f->pixels, DVT_UINT, 8, 3, image_shape);
  f->output = tensor_on_cpu(f->expected, DVT_FLOAT, 32, 3, f->shape);
  f->raw = tensor_on_cpu(f->expected_raw, DVT_FLOAT, 32, 3, f->shape);
  REQUIRE(run(f, &f->input, &f->output, &f->raw) == DVT_OK);
  f->output.data = f->found;
  for (size_t i = 0; i < f->count; ++i) CHECK(isfinite(f->expected[i]));
  CHECK(!same(f->expected, f->expected_raw, f->count));
}

static void tear_down(Fixture* f) {
  CHECK(dvt_session_destroy(f->session) == DVT_OK);
  free(f->pixels);
  free(f->expected);
  free(f->expected_raw);
  free(f->found);
}

/* A run that gives `expected`, with another input, or the first one where that is null. */
static int gives_expected(const Fixture* f, const dvt_tensor* input) {
  memset(f->found, 0xff, f->count * sizeof(float));
  return run(f, input ? input : &f->input, &f->output, NULL) == DVT_OK && same(f->found, f->expected, f->count);
}

static void inputs(const Fixture* f) {
  for (int i = 0; i < 20; ++i) CHECK(gives_expected(f, NULL));

  const int64_t batched[4] = {1, kHeight, kWidth, 3};
  dvt_tensor input = tensor_on_cpu(f->pixels, DVT_UINT, 8, 4, batched);
  CHECK(gives_expected(f, &input));

  /* Padded rows, four bytes a pixel in the order BGRX, bottom row first, 5 bytes in. */
  const int64_t row = 4 * kWidth + 12, strides[3] = {-row, 4, -1};
  uint8_t* padded = allocate((size_t)(5 + row * kHeight));
  for (int64_t y = 0; y < kHeight; ++y)
    for (int64_t x = 0; x < kWidth; ++x)
      for (int64_t c = 0; c < 3; ++c)
        padded[5 + (kHeight - 1 - y) * row + 4 * x + 2 - c] = f->pixels[(y * kWidth + x) * 3 + c];
  input = tensor_on_cpu(padded, DVT_UINT, 8, 3, image_shape);
  input.strides = strides;
  input.byte_offset = (uint64_t)(5 + (kHeight - 1) * row + 2);
  CHECK(gives_expected(f, &input));
  input.device.type = DVT_CUDA_HOST;
  CHECK(gives_expected(f, &input));
  free(padded);

  /* Float planes, contiguous and as a view of interleaved pixels. */
  const int64_t planes_shape[3] = {3, kHeight, kWidth}, interleaved[3] = {1, 3 * kWidth, 3};
  const size_t pixels = kHeight * kWidth;
  float *planes = allocate(3 * pixels * sizeof(float)), *from_planes = allocate(f->count * sizeof(float));
  for (size_t i = 0; i < 3 * pixels; ++i) planes[i % 3 * pixels + i / 3] = (float)f->pixels[i] / 255.0f;
  input = tensor_on_cpu(planes, DVT_FLOAT, 32, 3, planes_shape);
  CHECK(run(f, &input, &f->output, NULL) == DVT_OK);
  memcpy(from_planes, f->found, f->count * sizeof(float));
  for (size_t i = 0; i < 3 * pixels; ++i) planes[i] = (float)f->pixels[i] / 255.0f;
  input.strides = interleaved;
  CHECK(run(f, &input, &f->output, NULL) == DVT_OK);
  CHECK(same(f->found, from_planes, f->count));
  free(planes);
  free(from_planes);
}

static void outputs(const Fixture* f) {
  const int64_t h = f->shape[0], w = f->shape[1], c = f->shape[2];
  /* Channels first, each plane padded, last row first; what lies between is not touched. */
  const int64_t plane = h * w + 3, strides[3] = {-w, 1, plane};
  float* planes = allocate((size_t)(plane * c) * sizeof(float));
  for (int64_t i = 0; i < plane * c; ++i) planes[i] = -1234.5f;
  dvt_tensor output = tensor_on_cpu(planes, DVT_FLOAT, 32, 3, f->shape);
  output.strides = strides;
  output.byte_offset = (uint64_t)((h - 1) * w) * sizeof(float);
  dvt_tensor raw = f->output;
  CHECK(run(f, &f->input, &output, &raw) == DVT_OK);
  CHECK(same(f->found, f->expected_raw, f->count));
  int wrong = 0;
  for (int64_t k = 0; k < c; ++k)
    for (int64_t i = 0; i < plane; ++i) {
      const float value = planes[k * plane + i];
      const int64_t y = h - 1 - i / w;
      wrong += value != (i < h * w ? f->expected[(y * w + i % w) * c + k] : -1234.5f);
    }
  CHECK(wrong == 0);
  free(planes);

  /* A bfloat16 is the upper half of a float32, rounded. */
  uint16_t* half = allocate(f->count * sizeof(uint16_t));
  output = tensor_on_cpu(half, DVT_BFLOAT, 16, 3, f->shape);
  CHECK(run(f, &f->input, &output, NULL) == DVT_OK);
  wrong = 0;
  for (size_t i = 0; i < f->count; ++i) {
    const uint32_t bits = (uint32_t)half[i] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    wrong += !(fabsf(value - f->expected[i]) <= fabsf(f->expected[i]) / 256.0f);
  }
  CHECK(wrong == 0);
  output.dtype.code = DVT_FLOAT;
  CHECK(run(f, &f->input, &output, NULL) == DVT_OK);
  free(half);
}

static void workspaces(const Fixture* f) {
  const size_t bytes = f->info.workspace_bytes, alignment = f->info.workspace_alignment;
  char* memory = allocate(bytes + alignment);
  char* workspace = memory + (alignment - (uintptr_t)memory % alignment) % alignment;
  dvt_run_args args = {.struct_size = sizeof args, .input = &f->input, .output = &f->output};
  args.workspace = workspace;
  args.workspace_bytes = bytes;
  for (int fill = 0; fill < 256; fill += 255) {
    memset(workspace, fill, bytes);
    memset(f->found, 0xff, f->count * sizeof(float));
    CHECK(dvt_session_run(f->session, &args) == DVT_OK);
    CHECK(same(f->found, f->expected, f->count));
  }
  const size_t too_small[] = {0, 1, bytes - 1};
  for (size_t i = 0; i < 3; ++i) {
    args.workspace_bytes = too_small[i];
    CHECK_FAILS(DVT_INVALID_ARGUMENT, "workspace", dvt_session_run(f->session, &args));
  }
  args.workspace_bytes = bytes;
  args.workspace = workspace + 32;
  CHECK_FAILS(DVT_INVALID_ARGUMENT, "workspace", dvt_session_run(f->session, &args));
  args.workspace = NULL;
  CHECK_FAILS(DVT_INVALID_ARGUMENT, "workspace", dvt_session_run(f->session, &args));
  args.workspace_bytes = 0;
  args.struct_size = 3;
  CHECK_FAILS(DVT_INVALID_ARGUMENT, "struct_size", dvt_session_run(f->session, &args));
  CHECK_FAILS(DVT_INVALID_ARGUMENT, "args", dvt_session_run(f->session, NULL));
  args.struct_size = sizeof args;
  CHECK_FAILS(DVT_INVALID_ARGUMENT, "session", dvt_session_run(NULL, &args));
  CHECK(gives_expected(f, NULL));
  free(memory);
}

/* Spoils the tensor in the given way; 0 where there is no such way. */
static const char* spoil(int way, int written, dvt_tensor* t, int64_t* shape, int64_t* strides) {
  switch (way) {
    case 0: t->ndim = 0; return "no dimensions";
    case 1: t->ndim = -1; return "a negative number of dimensions";
    case 2: t->ndim = 5; return "five dimensions";
    case 3: t->ndim = INT32_MAX; return "very many dimensions";
    case 4: t->ndim = 2; return "too few dimensions";
    case 5: t->device.type = 2; return "a CUDA tensor";
    case 6: t->device.type = 0; return "no device";
    case 7: t->device.type = -1; return "a negative device";
    case 8: t->dtype.bits = 64; return "64 bits";
    case 9: t->dtype.bits = 0; return "0 bits";
    case 10: t->dtype.code = 200; return "an unknown code";
    case 11: t->dtype.code = DVT_INT; return "signed integers";
    case 12: t->dtype.lanes = 4; return "four lanes";
    case 13: t->dtype.lanes = 0; return "no lanes";
    case 14: t->shape = NULL; return "no shape";
    case 15: t->data = NULL; return "no data";
    case 16: shape[0] = 0; return "an empty axis";
    case 17: shape[1] = -1; return "a negative axis";
    case 18: shape[2] += 1; return "an axis too long";
    case 19: shape[0] = INT64_MAX; return "the longest axis";
    case 20: shape[0] = shape[1] = INT64_C(1) << 40; return "a product that wraps";
    case 21: strides[0] = INT64_MAX; return "the largest stride";
    case 22: strides[0] = INT64_MIN; return "the smallest stride";
    case 23: strides[1] = INT64_C(1) << 58; return "a stride beyond all addresses";
    case 24: strides[0] = -(INT64_C(1) << 50); return "a stride below all addresses";
    case 25: t->byte_offset = UINT64_MAX; return "the largest offset";
    case 26: t->byte_offset = UINT64_MAX - 4095 - (uint64_t)(uintptr_t)t->data; return "an offset to the last page";
    case 27:
      if (!written) t->ndim = 3, t->dtype.code = DVT_FLOAT, t->dtype.bits = 32;
      t->byte_offset = 2;
      return "an odd address";
    case 28:
      t->dtype.code = written ? DVT_UINT : DVT_BFLOAT;
      t->dtype.bits = written ? 8 : 16;
      return "the other type";
    case 29:
      if (written)
        strides[1] = 0;
      else
        shape[2] = 4;
      return "elements in one place, or four channels";
    case 30:
      if (written)
        strides[0] = 1;
      else
        shape[0] = 8193;
      return "overlapping rows, or an image too high";
    default: return NULL;
  }
}

static void malformed_tensors(const Fixture* f) {
  const char* names[] = {"", "output", "raw"}; /* of an input the sentence may say "images" */
  for (int role = 0; role < 3; ++role) {
    const dvt_tensor* good[] = {&f->input, &f->output, &f->output};
    for (int way = 0;; ++way) {
      int64_t shape[4], strides[4];
      memcpy(shape, good[role]->shape, sizeof(int64_t[3]));
      shape[3] = 1;
      strides[3] = 1;
      strides[2] = 1;
      strides[1] = shape[2];
      strides[0] = shape[1] * shape[2];
      dvt_tensor bad = *good[role];
      bad.shape = shape;
      bad.strides = strides;
      const char* what = spoil(way, role > 0, &bad, shape, strides);
      if (!what) break;
      const int before = failures;
      dvt_tensor other = f->raw;
      CHECK_FAILS(DVT_INVALID_ARGUMENT, names[role],
                  role == 0   ? run(f, &bad, &f->output, NULL)
                  : role == 1 ? run(f, &f->input, &bad, NULL)
                              : run(f, &f->input, &other, &bad));
      CHECK(gives_expected(f, NULL));
      if (failures > before) fprintf(stderr, "  ... tensor %d: %s\n", role, what);
    }
  }
  CHECK_FAILS(DVT_INVALID_ARGUMENT, "input", run(f, NULL, &f->output, NULL));
  CHECK_FAILS(DVT_INVALID_ARGUMENT, "output", run(f, &f->input, NULL, NULL));
  CHECK(gives_expected(f, NULL));
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  Fixture f;
  memset(&f, 0, sizeof f);
  set_up(&f, argv[1]);
  inputs(&f);
  outputs(&f);
  workspaces(&f);
  malformed_tensors(&f);
  tear_down(&f);
  return failures != 0;
}
