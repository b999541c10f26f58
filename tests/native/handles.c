/* Models, sessions, their options and infos, the instruction set: what is right works, what is wrong is a status. */
#include "client.h"

static void versions_and_names(void) {
  char numbers[32];
  snprintf(numbers, sizeof numbers, "%d.%d.%d", DVT_VERSION_MAJOR, DVT_VERSION_MINOR, DVT_VERSION_PATCH);
  CHECK(strcmp(numbers, DVT_VERSION) == 0);
  CHECK(strcmp(dvt_version(), DVT_VERSION) == 0);
  CHECK(strcmp(dvt_status_name(DVT_OK), "DVT_OK") == 0);
  CHECK(strcmp(dvt_status_name(DVT_BUSY), "DVT_BUSY") == 0);
  CHECK(strcmp(dvt_status_name(-7), "unknown") == 0);
  CHECK(strcmp(dvt_last_error(), "") == 0);
}

static void models(const char* path) {
  dvt_model* model = NULL;
  REQUIRE(dvt_model_load(path, NULL, &model) == DVT_OK);
  dvt_model_info info = {.struct_size = sizeof info};
  CHECK(dvt_model_get_info(model, &info) == DVT_OK);
  CHECK(info.struct_size == sizeof info);
  CHECK(info.has_vit == 1 && info.has_denoiser == 1 && info.weights == DVT_WEIGHTS_FLOAT32);
  CHECK(info.dim > 0 && info.image_height > 0 && info.image_width > 0);
  CHECK(info.source && strchr(info.source, '{'));
  CHECK_FAILS(DVT_INVALID_ARGUMENT, "model", dvt_model_get_info(NULL, &info));
  CHECK_FAILS(DVT_INVALID_ARGUMENT, "info", dvt_model_get_info(model, NULL));
  CHECK(dvt_model_destroy(model) == DVT_OK);
  CHECK(dvt_model_destroy(NULL) == DVT_OK);

  const dvt_model_options half = {.struct_size = sizeof half, .weights = DVT_WEIGHTS_FLOAT16};
  REQUIRE(dvt_model_load(path, &half, &model) == DVT_OK);
  CHECK(dvt_model_get_info(model, &info) == DVT_OK && info.weights == DVT_WEIGHTS_FLOAT16);
  CHECK(dvt_model_destroy(model) == DVT_OK);
}

static void models_that_cannot_be(const char* path) {
  size_t size = 0;
  char* data = read_file(path, &size);
  dvt_model* model = (dvt_model*)data; /* to see that it becomes null */
  CHECK_FAILS(DVT_INVALID_ARGUMENT, "no/such/file", dvt_model_load("no/such/file", NULL, &model));
  CHECK(model == NULL);
  CHECK_FAILS(DVT_INVALID_ARGUMENT, "path", dvt_model_load(NULL, NULL, &model));
  CHECK_FAILS(DVT_INVALID_ARGUMENT, "model", dvt_model_load(path, NULL, NULL));
  CHECK_FAILS(DVT_INVALID_ARGUMENT, "data", dvt_model_load_memory(NULL, size, NULL, &model));
  const size_t cuts[] = {0, 7, 8, 100, size / 2, size - 1};
  for (size_t i = 0; i < sizeof cuts / sizeof cuts[0]; ++i)
    CHECK_FAILS(DVT_INVALID_ARGUMENT, "", dvt_model_load_memory(data, cuts[i], NULL, &model));
  dvt_model_options options = {.struct_size = sizeof options, .weights = 9};
  CHECK_FAILS(DVT_INVALID_ARGUMENT, "weights", dvt_model_load(path, &options, &model));

  CHECK(dvt_model_load_memory(data, size, NULL, &model) == DVT_OK);
  memset(data, 0, size); /* the model has its own copy */
  free(data);
  dvt_session* session = NULL;
  CHECK(dvt_session_create(model, NULL, &session) == DVT_OK);
  CHECK(dvt_session_destroy(session) == DVT_OK);
  CHECK(dvt_model_destroy(model) == DVT_OK);
}

static void sessions(const dvt_model* model) {
  dvt_session* session = NULL;
  REQUIRE(dvt_session_create(model, NULL, &session) == DVT_OK);
  dvt_model_info of_model = {.struct_size = sizeof of_model};
  dvt_session_info info = {.struct_size = sizeof info};
  REQUIRE(dvt_model_get_info(model, &of_model) == DVT_OK);
  CHECK(dvt_session_get_info(session, &info) == DVT_OK);
  CHECK(info.input == DVT_INPUT_IMAGE && info.batch == 1 && info.threads == 1);
  CHECK(info.max_source_height == 8192 && info.max_source_width == 8192);
  CHECK(info.image_height == of_model.image_height && info.image_width == of_model.image_width);
  CHECK(info.grid_height > 0 && info.grid_width > 0 && info.dim == of_model.dim);
  CHECK(info.workspace_bytes > 0 && info.workspace_alignment == 64);
  CHECK_FAILS(DVT_INVALID_ARGUMENT, "info", dvt_session_get_info(session, NULL));
  CHECK_FAILS(DVT_INVALID_ARGUMENT, "session", dvt_session_get_info(NULL, &info));
  CHECK(dvt_session_destroy(session) == DVT_OK);
  CHECK(dvt_session_destroy(NULL) == DVT_OK);

  dvt_session_options options = {.struct_size = sizeof options,
                                 .input = DVT_INPUT_FEATURES,
                                 .threads = 2,
                                 .batch = 3,
                                 .grid_height = 5,
                                 .grid_width = 4};
  REQUIRE(dvt_session_create(model, &options, &session) == DVT_OK);
  CHECK(dvt_session_get_info(session, &info) == DVT_OK);
  CHECK(info.input == DVT_INPUT_FEATURES && info.batch == 3 && info.threads == 2);
  CHECK(info.grid_height == 5 && info.grid_width == 4 && info.image_height == 0);
  CHECK(dvt_session_destroy(session) == DVT_OK);
}

static void sessions_that_cannot_be(const dvt_model* model) {
  dvt_session* session = NULL;
  const dvt_session_options good = {.struct_size = sizeof good};
  dvt_session_options options[10];
  for (size_t i = 0; i < 10; ++i) options[i] = good;
  options[0].input = 4;
  options[1].input = -1;
  options[2].batch = -1;
  options[3].batch = INT64_MAX;
  options[4].threads = -1;
  options[5].threads = 1 << 20;
  options[6].image_height = 1;
  options[7].image_width = INT64_MAX;
  options[8].max_source_height = -5;
  options[9].input = DVT_INPUT_FEATURES; /* and no grid */
  for (size_t i = 0; i < 10; ++i) {
    session = (dvt_session*)&options; /* to see that it becomes null */
    const dvt_status status = dvt_session_create(model, &options[i], &session);
    CHECK(status == DVT_INVALID_ARGUMENT || status == DVT_OUT_OF_MEMORY);
    CHECK(session == NULL);
    CHECK(dvt_last_error()[0] && !strchr(dvt_last_error(), '\n'));
  }
  CHECK_FAILS(DVT_INVALID_ARGUMENT, "model", dvt_session_create(NULL, &good, &session));
  CHECK_FAILS(DVT_INVALID_ARGUMENT, "session", dvt_session_create(model, &good, NULL));
  CHECK(dvt_session_create(model, &good, &session) == DVT_OK);
  CHECK(dvt_session_destroy(session) == DVT_OK);
}

/* Callers that were compiled with an older header, a newer one, or that forgot struct_size. */
static void sizes_of_structs(const dvt_model* model) {
  dvt_session* session = NULL;
  struct {
    dvt_session_options known;
    int64_t later[3];
  } newer;
  memset(&newer, 0, sizeof newer);
  newer.known.struct_size = sizeof newer;
  CHECK(dvt_session_create(model, &newer.known, &session) == DVT_OK);
  CHECK(dvt_session_destroy(session) == DVT_OK);
  newer.later[2] = 1;
  CHECK_FAILS(DVT_UNSUPPORTED, "options", dvt_session_create(model, &newer.known, &session));
  const size_t wrong[] = {0, 8, sizeof newer.known - 1, 5000, SIZE_MAX};
  for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; ++i) {
    newer.known.struct_size = wrong[i];
    CHECK_FAILS(DVT_INVALID_ARGUMENT, "struct_size", dvt_session_create(model, &newer.known, &session));
  }

  struct {
    dvt_model_info known;
    int64_t later[2];
  } info;
  memset(&info, 0xff, sizeof info);
  info.known.struct_size = sizeof info;
  CHECK(dvt_model_get_info(model, &info.known) == DVT_OK);
  CHECK(info.known.dim > 0 && info.later[0] == 0 && info.later[1] == 0);
  info.known.struct_size = 16;
  CHECK_FAILS(DVT_INVALID_ARGUMENT, "struct_size", dvt_model_get_info(model, &info.known));
}

static void instruction_sets(const char* path) {
  const char *name = NULL, *again = NULL;
  REQUIRE(dvt_isa_get(&name) == DVT_OK);
  CHECK(dvt_isa_check(name) == DVT_OK);
  CHECK(dvt_isa_check("generic") == DVT_OK);
  CHECK_FAILS(DVT_INVALID_ARGUMENT, "avx3", dvt_isa_check("avx3"));
#if defined(__x86_64__)
  CHECK_FAILS(DVT_UNSUPPORTED, "neon", dvt_isa_set("neon"));
#else
  CHECK_FAILS(DVT_UNSUPPORTED, "avx2", dvt_isa_set("avx2"));
#endif
  CHECK_FAILS(DVT_INVALID_ARGUMENT, "name", dvt_isa_set(NULL));
  CHECK_FAILS(DVT_INVALID_ARGUMENT, "name", dvt_isa_check(NULL));
  CHECK_FAILS(DVT_INVALID_ARGUMENT, "name", dvt_isa_get(NULL));

  CHECK(dvt_isa_set("generic") == DVT_OK);
  CHECK(dvt_isa_get(&again) == DVT_OK && strcmp(again, "generic") == 0);
  dvt_model* model = NULL;
  REQUIRE(dvt_model_load(path, NULL, &model) == DVT_OK);
  CHECK_FAILS(DVT_BUSY, "instruction set", dvt_isa_set(name));
  CHECK(dvt_model_destroy(model) == DVT_OK);
  CHECK(dvt_isa_set(name) == DVT_OK);
  printf("isa %s\n", name);
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  versions_and_names();
  models(argv[1]);
  models_that_cannot_be(argv[1]);
  dvt_model* model = NULL;
  REQUIRE(dvt_model_load(argv[1], NULL, &model) == DVT_OK);
  sessions(model);
  sessions_that_cannot_be(model);
  sizes_of_structs(model);
  CHECK(dvt_model_destroy(model) == DVT_OK);
  instruction_sets(argv[1]);
  return failures != 0;
}
