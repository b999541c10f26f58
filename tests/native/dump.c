/* The features of one image, the same on every machine, to a file: dump ENGINE_FILE OUT; "raw" float32. */
#include "client.h"

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  dvt_model* model = NULL;
  dvt_session* session = NULL;
  dvt_session_info info = {.struct_size = sizeof info};
  REQUIRE(dvt_model_load(argv[1], NULL, &model) == DVT_OK);
  REQUIRE(dvt_session_create(model, NULL, &session) == DVT_OK);
  REQUIRE(dvt_model_destroy(model) == DVT_OK);
  REQUIRE(dvt_session_get_info(session, &info) == DVT_OK);
  const int64_t image_shape[3] = {90, 120, 3}, shape[3] = {info.grid_height, info.grid_width, info.dim};
  const size_t count = (size_t)(shape[0] * shape[1] * shape[2]);
  uint8_t* pixels = allocate(90 * 120 * 3);
  float* features = allocate(count * sizeof(float));
  fill_pixels(pixels, 90 * 120 * 3);
  const dvt_tensor input = tensor_on_cpu(pixels, DVT_UINT, 8, 3, image_shape);
  const dvt_tensor output = tensor_on_cpu(features, DVT_FLOAT, 32, 3, shape);
  const dvt_run_args args = {.struct_size = sizeof args, .input = &input, .output = &output};
  REQUIRE(dvt_session_run(session, &args) == DVT_OK);
  FILE* file = fopen(argv[2], "wb");
  REQUIRE(file != NULL);
  REQUIRE(fwrite(features, sizeof(float), count, file) == count);
  REQUIRE(fclose(file) == 0);
  CHECK(dvt_session_destroy(session) == DVT_OK);
  free(features);
  free(pixels);
  return failures != 0;
}
