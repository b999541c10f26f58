/*
dvt_fast: a vision transformer and its denoiser, from an image to denoised features, in real time on a CPU or a CUDA
device. C99; for C++ there is dvt_fast.hpp beside this file.

A complete program. `python -m dvt_fast --pkg-config-dir` prints the folder that PKG_CONFIG_PATH needs; then

    cc -std=c99 features.c $(pkg-config --cflags --libs dvt_fast) \
        -Wl,-rpath,"$(pkg-config --variable=libdir dvt_fast)" -o features

#include <dvt_fast.h>

#include <stdio.h>
#include <stdlib.h>

static void check(dvt_status status) {
  if (status == DVT_OK) return;
  fprintf(stderr, "%s: %s\n", dvt_status_name(status), dvt_last_error());
  exit(1);
}

int main(int argc, char** argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: features ENGINE_FILE\n");
    return 2;
  }
  dvt_model* model;
  check(dvt_model_load(argv[1], NULL, &model));

  // Everything slow is done here; the session keeps the model.
  dvt_session* session;
  dvt_session_options options = {.struct_size = sizeof options, .input = DVT_INPUT_IMAGE, .threads = 2};
  check(dvt_session_create(model, &options, &session));
  check(dvt_model_destroy(model));

  dvt_session_info info = {.struct_size = sizeof info};
  check(dvt_session_get_info(session, &info));
  printf("%lld x %lld patches, %lld channels\n", (long long)info.grid_height, (long long)info.grid_width,
         (long long)info.dim);

  // A grey frame of 640 x 480; where the features go.
  const int64_t frame_shape[3] = {480, 640, 3};
  const int64_t features_shape[3] = {info.grid_height, info.grid_width, info.dim};
  const size_t count = (size_t)(info.grid_height * info.grid_width * info.dim);
  uint8_t* pixels = malloc(480 * 640 * 3);
  float* features = malloc(count * sizeof(float));
  if (!pixels || !features) return 1;
  for (size_t i = 0; i < 480 * 640 * 3; ++i) pixels[i] = 128;

  const dvt_tensor frame = {
      .data = pixels, .device = {DVT_CPU, 0}, .ndim = 3, .dtype = {DVT_UINT, 8, 1}, .shape = frame_shape};
  const dvt_tensor output = {
      .data = features, .device = {DVT_CPU, 0}, .ndim = 3, .dtype = {DVT_FLOAT, 32, 1}, .shape = features_shape};
  const dvt_run_args args = {.struct_size = sizeof args, .input = &frame, .output = &output};
  for (int i = 0; i < 3; ++i) check(dvt_session_run(session, &args));  // once a frame
  printf("the first value is %g\n", features[0]);

  check(dvt_session_destroy(session));
  free(features);
  free(pixels);
  return 0;
}
*/
#ifndef DVT_FAST_H
#define DVT_FAST_H

#include <stddef.h>
#include <stdint.h>

/* The version of this header; of the library in use, see dvt_version(). */
#define DVT_VERSION "0.1.0"
#define DVT_VERSION_MAJOR 0
#define DVT_VERSION_MINOR 1
#define DVT_VERSION_PATCH 0

#if defined(__GNUC__)
#define DVT_API __attribute__((visibility("default")))
#else
#define DVT_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------------------- errors --

Every call that can fail returns a status and never throws, prints or ends the process. After a status other than
DVT_OK the handles given are as they were, and dvt_last_error() has one sentence: what was expected and what came. */

typedef int32_t dvt_status;
enum {
  DVT_OK = 0,
  DVT_INVALID_ARGUMENT = 1, /* an argument, or a file, that cannot be used */
  DVT_NON_FINITE = 2,       /* weights or a result with NaN or infinity */
  DVT_UNSUPPORTED = 3,      /* asks for what this library or this machine does not have */
  DVT_BUSY = 4,             /* the session runs in another thread */
  DVT_OUT_OF_MEMORY = 5,
  DVT_INTERNAL = 6,     /* a thread that cannot be started; or a bug */
  DVT_DEVICE_FAILED = 7 /* a GPU that this process cannot use any more: it must be restarted */
};

/* The sentence of the calling thread's last call that failed, "" before the first; a call that succeeds leaves it.
   Never null; valid until this thread's next failure. */
DVT_API const char* dvt_last_error(void);

/* "DVT_OK", "DVT_BUSY" ...; "unknown" for any other number. Never null. */
DVT_API const char* dvt_status_name(dvt_status status);

/* The version of the library that is loaded, as "1.2.3". Libraries of one soname have one ABI: structs only grow at
   their end, see struct_size. */
DVT_API const char* dvt_version(void);

/* ------------------------------------------------------------------------------------------------------ structs --

Structs begin with struct_size, which the caller sets to sizeof the struct. In options every other field may be zero
and then means its default, so initialise the rest to zero and set what matters, as the program above does. In infos
the caller sets struct_size only. */

/* A tensor has the layout and the codes of DLPack's DLTensor: a DLTensor* may be cast to a dvt_tensor*. DVT_CUDA_HOST
   is main memory too. */
enum { DVT_CPU = 1, DVT_CUDA = 2, DVT_CUDA_HOST = 3 };
enum { DVT_INT = 0, DVT_UINT = 1, DVT_FLOAT = 2, DVT_BFLOAT = 4 }; /* kinds of values */

typedef struct dvt_device {
  int32_t type; /* DVT_CPU ... */
  int32_t id;
} dvt_device;

typedef struct dvt_data_type {
  uint8_t code;   /* DVT_UINT ... */
  uint8_t bits;   /* of a value */
  uint16_t lanes; /* 1 */
} dvt_data_type;

typedef struct dvt_tensor {
  void* data; /* not written to where the tensor is an input */
  dvt_device device;
  int32_t ndim; /* 1 to 4 */
  dvt_data_type dtype;
  const int64_t* shape;   /* [ndim] */
  const int64_t* strides; /* [ndim], in elements, of any sign; null: row-major and contiguous */
  uint64_t byte_offset;   /* of the first element from data */
} dvt_tensor;

/* -------------------------------------------------------------------------------------------------------- model --

A model is the weights of an engine file, packed for this machine. It does not change, so any number of threads may
create sessions from one at once. */

typedef struct dvt_model dvt_model;

/* How weights are stored; on the CPU the arithmetic is float32. On a CUDA device the tensor cores multiply 16-bit
   numbers, or float32 ones cut to 19 bits (TF32), or float32 ones in three such products, which have the error of
   float32; sums are float32. */
enum {
  DVT_WEIGHTS_FLOAT32 = 0,
  DVT_WEIGHTS_FLOAT16 = 1,
  DVT_WEIGHTS_BFLOAT16 = 2,
  DVT_WEIGHTS_TF32 = 3 /* CUDA only */
};

typedef struct dvt_model_options {
  size_t struct_size;
  int32_t weights;   /* DVT_WEIGHTS_FLOAT32 ... */
  int32_t reserved;  /* 0 */
  dvt_device device; /* where its sessions compute: default the CPU, or {DVT_CUDA, 0} ... */
} dvt_model_options;

/* Reads an engine file from a path or from memory, which may be freed afterwards. options may be null. *model is null
   where the status is not DVT_OK: DVT_UNSUPPORTED for a device that is not there, with the reason. */
DVT_API dvt_status dvt_model_load(const char* path, const dvt_model_options* options, dvt_model** model);
DVT_API dvt_status dvt_model_load_memory(const void* data, size_t size, const dvt_model_options* options,
                                         dvt_model** model);

/* Lets go of the model; its sessions keep what they need. Null is allowed. */
DVT_API dvt_status dvt_model_destroy(dvt_model* model);

typedef struct dvt_model_info {
  size_t struct_size;
  int32_t has_vit;      /* 1: takes images; 0: takes features */
  int32_t has_denoiser; /* 1: gives denoised features; 0: the ViT's own */
  int32_t weights;      /* DVT_WEIGHTS_FLOAT32 ... */
  int32_t reserved;
  int64_t dim;                       /* channels of the features */
  int64_t image_height, image_width; /* of a session by default; 0 without a ViT */
  const char* source;                /* JSON: which ViT and denoiser these are; lives as long as the model */
  dvt_device device;                 /* where its sessions compute */
} dvt_model_info;

DVT_API dvt_status dvt_model_get_info(const dvt_model* model, dvt_model_info* info);

/* ------------------------------------------------------------------------------------------------------ session --

A session runs one stream of frames through a model. Creating it is the slow call: everything that depends on the size
of a frame is made there. It serves one caller at a time. */

typedef struct dvt_session dvt_session;

/* What a run is given. */
enum {
  DVT_INPUT_DEFAULT = 0, /* DVT_INPUT_IMAGE where the model has a ViT, else DVT_INPUT_FEATURES */
  /* RGB pixels, uint8 [B, H, W, 3] or float32 [B, 3, H, W] in [0, 1], of any size up to max_source: resized (bicubic,
     antialias) to image_height x image_width and normalised as the ViT wants it. */
  DVT_INPUT_IMAGE = 1,
  DVT_INPUT_NORMALIZED = 2, /* floating [B, 3, image_height, image_width], normalised already */
  DVT_INPUT_FEATURES = 3    /* floating [B, grid_height, grid_width, dim]: the denoiser alone */
};

typedef struct dvt_session_options {
  size_t struct_size;
  int32_t input;                               /* DVT_INPUT_IMAGE ... */
  int32_t threads;                             /* the caller's included; default 1 */
  int64_t batch;                               /* default 1 */
  int64_t image_height, image_width;           /* default: the model's; whole patches; not with DVT_INPUT_FEATURES */
  int64_t grid_height, grid_width;             /* patches; for DVT_INPUT_FEATURES, and required there */
  int64_t max_source_height, max_source_width; /* the largest image; default 8192, 8192 */
} dvt_session_options;

/* options may be null. *session is null where the status is not DVT_OK. */
DVT_API dvt_status dvt_session_create(const dvt_model* model, const dvt_session_options* options,
                                      dvt_session** session);

/* Not while it runs in another thread. Null is allowed. */
DVT_API dvt_status dvt_session_destroy(dvt_session* session);

typedef struct dvt_session_info {
  size_t struct_size;
  /* The options, with every default replaced by what it stands for. */
  int32_t input, threads;
  int64_t batch;
  int64_t image_height, image_width; /* 0 with DVT_INPUT_FEATURES */
  int64_t max_source_height, max_source_width;
  /* A result is [batch, grid_height, grid_width, dim]. */
  int64_t grid_height, grid_width, dim;
  /* What a run's workspace must have, where the caller supplies it. */
  size_t workspace_bytes, workspace_alignment;
} dvt_session_info;

DVT_API dvt_status dvt_session_get_info(const dvt_session* session, dvt_session_info* info);

typedef struct dvt_run_args {
  size_t struct_size;
  const dvt_tensor* input;  /* see DVT_INPUT_IMAGE ...; the batch axis may be left out where batch is 1 */
  const dvt_tensor* output; /* float32, float16 or bfloat16 [batch, grid_height, grid_width, dim], or without batch */
  const dvt_tensor* raw;    /* null, or a tensor like output for the ViT's own features */
  void* workspace;          /* null: the session's own, which the first such run allocates; else on its device */
  size_t workspace_bytes;   /* of workspace; its contents are undefined before and after */
  void* stream;             /* a cudaStream_t of the device, for tensors on it; null: the default one */
} dvt_run_args;

/* Runs one batch. Allocates nothing (without a workspace: after the first run), and gives the same bits for the same
   input with any number of threads. Tensors must not share elements with each other. Where the status is
   DVT_NON_FINITE the output is written; with any other that is not DVT_OK it is as it was.

   Tensors are in main memory, or, where the session computes on a CUDA device, all in memory of that device. Then the
   call only enqueues kernels on args->stream and can be captured into a graph: tensors and workspace are in use until
   the stream has come so far, and dvt_session_finite tells what DVT_NON_FINITE would. Runs that may overlap in time
   need sessions of their own. From main memory a session on a device copies, and returns when the result is there. */
DVT_API dvt_status dvt_session_run(dvt_session* session, const dvt_run_args* args);

/* Of a session on a CUDA device whose last run is done (its stream was synchronised): *finite becomes 1 where the
   result is free of NaN and infinity, else 0. */
DVT_API dvt_status dvt_session_finite(dvt_session* session, int32_t* finite);

/* ---------------------------------------------------------------------------------------------- instruction set --

"generic", "avx2", "avx512" or "neon": the best that this machine runs, or what the environment variable DVT_FAST_ISA
names. One that does not run here is DVT_UNSUPPORTED from every call that needs it; nothing else is used instead. */

/* The one in use. *name is static. */
DVT_API dvt_status dvt_isa_get(const char** name);

/* DVT_OK where this machine runs it, else why not. */
DVT_API dvt_status dvt_isa_check(const char* name);

/* Uses another one. While models or sessions exist DVT_BUSY: weights are packed for the set in use. */
DVT_API dvt_status dvt_isa_set(const char* name);

#ifdef __cplusplus
}
#endif

#endif /* DVT_FAST_H */
