/* Runs a thousand frames (or as many as are asked for) after the first, and counts every allocation of the process:
   there is none. */
#include "allocator.h"
#include "client.h"

int main(int argc, char** argv) {
  if (argc != 2 && argc != 3) return 2;
  const int runs = argc == 3 ? atoi(argv[2]) : 1000;
  dvt_model* model = NULL;
  REQUIRE(dvt_model_load(argv[1], NULL, &model) == DVT_OK);
  CHECK(allocations_now() > 0); /* the library's are seen */

  const int64_t large[3] = {240, 320, 3}, small[3] = {90, 70, 3};
  uint8_t* pixels = allocate(240 * 320 * 3);
  fill_pixels(pixels, 240 * 320 * 3);
  for (int threads = 1; threads <= 2; ++threads) {
    const dvt_session_options options = {.struct_size = sizeof options, .threads = threads};
    dvt_session* session = NULL;
    dvt_session_info info = {.struct_size = sizeof info};
    REQUIRE(dvt_session_create(model, &options, &session) == DVT_OK);
    REQUIRE(dvt_session_get_info(session, &info) == DVT_OK);
    const int64_t shape[3] = {info.grid_height, info.grid_width, info.dim};
    const size_t bytes = (size_t)(shape[0] * shape[1] * shape[2]) * sizeof(float);
    float *first = allocate(bytes), *found = allocate(bytes), *raw = allocate(bytes);
    char* memory = allocate(info.workspace_bytes + info.workspace_alignment);
    dvt_tensor input = tensor_on_cpu(pixels, DVT_UINT, 8, 3, large);
    const dvt_tensor output = tensor_on_cpu(found, DVT_FLOAT, 32, 3, shape);
    const dvt_tensor raw_output = tensor_on_cpu(raw, DVT_FLOAT, 32, 3, shape);
    dvt_run_args args = {.struct_size = sizeof args, .input = &input, .output = &output};

    const long before_first = allocations_now();
    CHECK(dvt_session_run(session, &args) == DVT_OK);
    CHECK(allocations_now() > before_first); /* its own workspace */
    memcpy(first, found, bytes);
    const long before = allocations_now();
    int different = 0;
    for (int i = 0; i < runs; ++i) {
      args.raw = i % 3 == 1 ? &raw_output : NULL;
      args.workspace = i % 2 ? memory + (64 - (uintptr_t)memory % 64) : NULL;
      args.workspace_bytes = i % 2 ? info.workspace_bytes : 0;
      input.shape = i % 5 == 4 ? small : large; /* another size of the source */
      CHECK(dvt_session_run(session, &args) == DVT_OK);
      if (i % 5 != 4) different += memcmp(first, found, bytes) != 0;
    }
    CHECK(allocations_now() - before == 0);
    CHECK(different == 0);
    printf("threads %d: %ld allocations in %d runs\n", threads, allocations_now() - before, runs);
    CHECK(dvt_session_destroy(session) == DVT_OK);
    free(first);
    free(found);
    free(raw);
    free(memory);
  }
  CHECK(dvt_model_destroy(model) == DVT_OK);
  free(pixels);
  return failures != 0;
}
