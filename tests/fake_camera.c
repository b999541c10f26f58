/* A camera for tests, preloaded into a process: /dev/zero, opened for reading and writing, becomes a Video4Linux
   device.

   FAKE_CAMERA says what it does, one word a picture: the path of a JPEG to show, "broken" for a picture that the driver
   marks as such, "hang" for no more pictures, "unplug" for a device that is gone. After the last word it hangs.
   FAKE_CAMERA_MS is the time from picture to picture. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define BUFFERS 4
#define BUFFER_SIZE (1 << 20)

static int camera = -1, blocking, head, tail, queue[BUFFERS + 1];
static char* buffers[BUFFERS];
static char* script;
static long long due_ns;

static long long now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int open_camera(const char* path, int flags, mode_t mode, const char* symbol) {
  int (*real)(const char*, int, ...) = (int (*)(const char*, int, ...))dlsym(RTLD_NEXT, symbol);
  int descriptor = real(path, flags, mode);
  if (strcmp(path, "/dev/zero") == 0 && (flags & O_ACCMODE) == O_RDWR) {
    camera = descriptor;
    blocking = !(flags & O_NONBLOCK);
    script = strdup(getenv("FAKE_CAMERA"));
    due_ns = now_ns();
  }
  return descriptor;
}

#define OPEN(name)                                \
  int name(const char* path, int flags, ...) {    \
    va_list list;                                 \
    va_start(list, flags);                        \
    mode_t mode = va_arg(list, mode_t);           \
    va_end(list);                                 \
    return open_camera(path, flags, mode, #name); \
  }
OPEN(open)
OPEN(open64)

static int fail(int error) {
  errno = error;
  return -1;
}

static int next_picture(struct v4l2_buffer* buffer) {
  char* word = script + strspn(script, " ");
  int length = (int)strcspn(word, " ");
  int hangs = length == 0 || strncmp(word, "hang", length) == 0;
  while (hangs || now_ns() < due_ns || head == tail) {
    if (!blocking) return fail(EAGAIN);
    usleep(1000);
  }
  if (strncmp(word, "unplug", length) == 0) return fail(ENODEV);
  due_ns += atoi(getenv("FAKE_CAMERA_MS")) * 1000000LL;
  script = word + length;
  int index = queue[head];
  head = (head + 1) % (BUFFERS + 1);
  long long stamp = now_ns();
  buffer->index = index;
  buffer->flags = V4L2_BUF_FLAG_TIMESTAMP_MONOTONIC;
  buffer->bytesused = 0;
  buffer->timestamp.tv_sec = stamp / 1000000000LL;
  buffer->timestamp.tv_usec = stamp % 1000000000LL / 1000;
  if (strncmp(word, "broken", length) == 0) {
    buffer->flags |= V4L2_BUF_FLAG_ERROR;
    return 0;
  }
  char* path = strndup(word, length);
  FILE* file = fopen(path, "rb");
  free(path);
  if (!file) return fail(ENOENT);
  buffer->bytesused = fread(buffers[index], 1, BUFFER_SIZE, file);
  fclose(file);
  return 0;
}

int ioctl(int descriptor, unsigned long request, ...) {
  va_list list;
  va_start(list, request);
  void* argument = va_arg(list, void*);
  va_end(list);
  if (camera < 0 || descriptor != camera) {
    int (*real)(int, unsigned long, ...) = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
    return real(descriptor, request, argument);
  }
  switch ((unsigned)request) {
    case VIDIOC_QUERYCAP:
      ((struct v4l2_capability*)argument)->capabilities = V4L2_CAP_VIDEO_CAPTURE | V4L2_CAP_STREAMING;
      return 0;
    case VIDIOC_G_FMT:
    case VIDIOC_S_FMT: {
      struct v4l2_pix_format* format = &((struct v4l2_format*)argument)->fmt.pix;
      format->width = 64, format->height = 48, format->pixelformat = V4L2_PIX_FMT_MJPEG;
      format->field = V4L2_FIELD_NONE, format->sizeimage = BUFFER_SIZE;
      return 0;
    }
    case VIDIOC_G_PARM:
    case VIDIOC_S_PARM:
      ((struct v4l2_streamparm*)argument)->parm.capture.timeperframe = (struct v4l2_fract){1, 30};
      return 0;
    case VIDIOC_REQBUFS: ((struct v4l2_requestbuffers*)argument)->count = BUFFERS; return 0;
    case VIDIOC_QUERYBUF: {
      struct v4l2_buffer* buffer = argument;
      buffer->length = BUFFER_SIZE, buffer->m.offset = buffer->index * BUFFER_SIZE;
      return 0;
    }
    case VIDIOC_QBUF:
      queue[tail] = ((struct v4l2_buffer*)argument)->index;
      tail = (tail + 1) % (BUFFERS + 1);
      return 0;
    case VIDIOC_DQBUF: return next_picture(argument);
    case VIDIOC_STREAMON:
    case VIDIOC_STREAMOFF:
    case VIDIOC_G_INPUT:
    case VIDIOC_S_INPUT:
    case VIDIOC_ENUMINPUT: return 0;
    default: return fail(ENOTTY);
  }
}

static void* map(void* address, size_t size, int protection, int flags, int descriptor, long offset,
                 const char* symbol) {
  void* (*real)(void*, size_t, int, int, int, long) =
      (void* (*)(void*, size_t, int, int, int, long))dlsym(RTLD_NEXT, symbol);
  if (camera < 0 || descriptor != camera) return real(address, size, protection, flags, descriptor, offset);
  return buffers[offset / BUFFER_SIZE] = real(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

void* mmap(void* address, size_t size, int protection, int flags, int descriptor, off_t offset) {
  return map(address, size, protection, flags, descriptor, offset, "mmap");
}

void* mmap64(void* address, size_t size, int protection, int flags, int descriptor, off64_t offset) {
  return map(address, size, protection, flags, descriptor, offset, "mmap64");
}
