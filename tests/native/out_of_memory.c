/* Every allocation on the way from a file to features fails once, one after the other: each time a status, nothing
   leaks, and the next call works. */
#include "allocator.h"
#include "client.h"

static const char* path;
static float *expected, *found;
static size_t count;

static int acceptable(dvt_status status) {
  return status == DVT_OUT_OF_MEMORY || status == DVT_INTERNAL || status == DVT_INVALID_ARGUMENT;
}

static dvt_status load(dvt_model** model) { return dvt_model_load(path, NULL, model); }

/* A model, a session with a helper, and its first run; the last status that is not DVT_OK. */
static dvt_status everything(const dvt_model* shared, float* to) {
  dvt_model* model = NULL;
  dvt_session* session = NULL;
  const dvt_session_options options = {.struct_size = sizeof options, .threads = 2};
  const int64_t image_shape[3] = {90, 120, 3};
  static uint8_t pixels[90 * 120 * 3];
  fill_pixels(pixels, sizeof pixels);
  dvt_status status = shared ? DVT_OK : load(&model);
  if (status == DVT_OK) status = dvt_session_create(shared ? shared : model, &options, &session);
  if (status == DVT_OK) {
    dvt_session_info info = {.struct_size = sizeof info};
    CHECK(dvt_session_get_info(session, &info) == DVT_OK);
    const int64_t shape[3] = {info.grid_height, info.grid_width, info.dim};
    count = (size_t)(shape[0] * shape[1] * shape[2]);
    const dvt_tensor input = tensor_on_cpu(pixels, DVT_UINT, 8, 3, image_shape);
    const dvt_tensor output = tensor_on_cpu(to, DVT_FLOAT, 32, 3, shape);
    const dvt_run_args args = {.struct_size = sizeof args, .input = &input, .output = &output};
    status = dvt_session_run(session, &args);
    /* The session is as it was: the next run has its memory, and works. */
    if (status != DVT_OK) CHECK(dvt_session_run(session, &args) == DVT_OK);
    /* A run that is refused, when there is no memory for the sentence. */
    const dvt_run_args wrong = {.struct_size = sizeof wrong, .input = &output, .output = &input};
    fail_allocation(1);
    CHECK(acceptable(dvt_session_run(session, &wrong)));
    fail_allocation(0);
  }
  CHECK(dvt_session_destroy(session) == DVT_OK);
  CHECK(dvt_model_destroy(model) == DVT_OK);
  return status;
}

/* Fails the first allocation, the second ...; how many there are until the work succeeds with none failing. */
static long fail_each(const dvt_model* shared) {
  for (long n = 1;; ++n) {
    memset(found, 0xff, count * sizeof(float));
    const long before = living_now(), first = allocations_now();
    fail_allocation(n);
    const dvt_status status = everything(shared, found);
    const int happened = allocations_now() >= first + n;
    fail_allocation(0);
    if (status != DVT_OK) {
      CHECK(acceptable(status));
      CHECK(dvt_last_error()[0]);
    } else {
      CHECK(memcmp(found, expected, count * sizeof(float)) == 0);
    }
    if (living_now() != before) {
      fprintf(stderr, "allocation %ld: %ld leaked\n", n, living_now() - before);
      ++failures;
    }
    if (!happened || failures) return n - 1;
  }
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  path = argv[1];
  dvt_model* model = NULL;
  REQUIRE(load(&model) == DVT_OK);
  expected = allocate(1 << 20);
  found = allocate(1 << 20);
  REQUIRE(everything(model, expected) == DVT_OK); /* what is allocated once in a process is */
  REQUIRE(everything(NULL, expected) == DVT_OK);
  const long of_sessions = fail_each(model), of_all = fail_each(NULL);
  CHECK(of_sessions > 5 && of_all > of_sessions);
  printf("%ld and %ld allocations failed\n", of_sessions, of_all);
  CHECK(dvt_model_destroy(model) == DVT_OK);
  free(expected);
  free(found);
  return failures != 0;
}
