// The host's side: devices, memory, streams, events, graphs, errors of calls.
#include <cstdlib>

#include "check.h"

namespace {

__global__ void add_kernel(int* p, int v) { p[blockIdx.x * blockDim.x + threadIdx.x] += v; }

cudaError_t add(int* p, int v, cudaStream_t stream, unsigned n = 32) {
  cudaLaunchConfig_t config = {};
  config.gridDim = 1;
  config.blockDim = n;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, add_kernel, static_cast<int*>(p), static_cast<int>(v));
}

TEST(devices) {
  cudaDeviceProp properties;
  EXPECT_EQ(cudaGetDeviceProperties(&properties, 0), cudaSuccess);
  EXPECT_EQ(properties.major, 9);
  EXPECT_EQ(properties.multiProcessorCount, 132);
  EXPECT_EQ(properties.sharedMemPerBlockOptin, 227u * 1024);
  dvt_emulator_set("DVT_EMULATOR_ARCH", "86");
  int value = 0;
  EXPECT_EQ(cudaDeviceGetAttribute(&value, cudaDevAttrComputeCapabilityMinor, 0), cudaSuccess);
  EXPECT_EQ(value, 6);
  EXPECT_EQ(cudaDeviceGetAttribute(&value, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0), cudaSuccess);
  EXPECT_EQ(value, 99 * 1024);
  EXPECT_EQ(cudaSetDevice(1), cudaErrorInvalidDevice);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidDevice);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  int count = -1;
  dvt_emulator_set("DVT_EMULATOR_DEVICES", "0");
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaErrorNoDevice);
  dvt_emulator_set("DVT_EMULATOR_DEVICES", nullptr);
  dvt_emulator_set("DVT_EMULATOR_DRIVER", "11040");
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaErrorInsufficientDriver);
  EXPECT_EQ(cudaDriverGetVersion(&value), cudaSuccess);
  EXPECT_EQ(value, 11040);
}

TEST(memory) {
  dvt_emulator_set("DVT_EMULATOR_MEMORY", "1000000");
  void *a = nullptr, *b = nullptr;
  EXPECT_EQ(cudaMalloc(&a, 600000), cudaSuccess);
  EXPECT_EQ(static_cast<unsigned char*>(a)[599999], 255);
  EXPECT_EQ(cudaMalloc(&b, 600000), cudaErrorMemoryAllocation);
  EXPECT(b == nullptr);
  EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  size_t free = 0, total = 0;
  EXPECT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  EXPECT_EQ(free, 400000u);
  cudaPointerAttributes attributes;
  EXPECT_EQ(cudaPointerGetAttributes(&attributes, static_cast<char*>(a) + 5), cudaSuccess);
  EXPECT_EQ(attributes.type, cudaMemoryTypeDevice);
  EXPECT_EQ(cudaPointerGetAttributes(&attributes, &free), cudaSuccess);
  EXPECT_EQ(attributes.type, cudaMemoryTypeUnregistered);
  char host[64] = "sixty-four bytes";
  EXPECT_EQ(cudaMemcpy(a, host, 64, cudaMemcpyHostToDevice), cudaSuccess);
  EXPECT_EQ(cudaMemcpy(static_cast<char*>(a) + 599990, host, 64, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(host, a, 64, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy2D(static_cast<char*>(a) + 100, 16, a, 8, 8, 2, cudaMemcpyDeviceToDevice), cudaSuccess);
  EXPECT_EQ(std::memcmp(static_cast<char*>(a) + 116, "ur bytes", 8), 0);
  EXPECT_EQ(cudaMemset(a, 3, 10), cudaSuccess);
  EXPECT_EQ(static_cast<char*>(a)[9], 3);
  EXPECT_EQ(cudaFree(host), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(a), cudaSuccess);
  EXPECT_EQ(cudaFree(nullptr), cudaSuccess);
  EXPECT_EQ(dvt_emulator_count("bytes"), 0);
}

TEST(launch_errors) {
  check::Device<int> p(2048);
  EXPECT_EQ(check::run(add_kernel, 0, 32, 0, p.data, 1), cudaErrorInvalidConfiguration);
  EXPECT_EQ(check::run(add_kernel, 1, 1025, 0, p.data, 1), cudaErrorInvalidConfiguration);
  EXPECT_EQ(check::run(add_kernel, dim3(1, 65536), 32, 0, p.data, 1), cudaErrorInvalidConfiguration);
  EXPECT_EQ(check::run(add_kernel, 1, 32, 228 * 1024, p.data, 1), cudaErrorInvalidValue);
  cudaLaunchConfig_t config = {};
  config.gridDim = 1;
  config.blockDim = 32;
  config.dynamicSmemBytes = 49 * 1024;
  EXPECT_EQ(cudaLaunchKernelEx(&config, add_kernel, static_cast<int*>(p.data), 1), cudaErrorInvalidValue);
  EXPECT_EQ(check::run(add_kernel, 1, 32, 227 * 1024, p.data, 1), cudaSuccess);
  int blocks = 0;
  EXPECT_EQ(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, add_kernel, 256, 100 * 1024), cudaSuccess);
  EXPECT_EQ(blocks, 2);
}

TEST(sticky_errors) {
  check::Device<int> p(32);
  dvt_emulator_set("DVT_EMULATOR_FAIL_LAUNCH", "2");
  EXPECT_EQ(add(p.data, 1, nullptr), cudaSuccess);
  EXPECT_EQ(add(p.data, 1, nullptr), cudaSuccess);  // and fails later, as on a card
  EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaGetLastError(), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaGetLastError(), cudaErrorIllegalAddress);
  void* more = nullptr;
  EXPECT_EQ(cudaMalloc(&more, 16), cudaErrorIllegalAddress);
  EXPECT_EQ(add(p.data, 1, nullptr), cudaErrorIllegalAddress);
  EXPECT_EQ(dvt_emulator_count("launches"), 2);
  dvt_emulator_set("DVT_EMULATOR_FAIL_LAUNCH", nullptr);
  dvt_emulator_reset();
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

// As late as it may be: nothing before somebody waits.
TEST(streams_that_are_late) {
  dvt_emulator_set("DVT_EMULATOR_ASYNC", "1");
  check::Device<int> p(std::vector<int>(32));
  cudaStream_t a, b;
  cudaEvent_t event;
  EXPECT_EQ(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking), cudaSuccess);
  EXPECT_EQ(cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking), cudaSuccess);
  EXPECT_EQ(cudaEventCreate(&event), cudaSuccess);
  EXPECT_EQ(add(p.data, 1, a), cudaSuccess);
  EXPECT_EQ(cudaEventRecord(event, a), cudaSuccess);
  EXPECT_EQ(add(p.data, 10, a), cudaSuccess);
  EXPECT_EQ(cudaStreamWaitEvent(b, event), cudaSuccess);
  EXPECT_EQ(add(p.data, 100, b), cudaSuccess);
  EXPECT_EQ(p[0], 0);
  EXPECT_EQ(cudaStreamQuery(b), cudaErrorNotReady);
  EXPECT_EQ(cudaStreamSynchronize(b), cudaSuccess);
  EXPECT_EQ(p[0], 101);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(p[0], 111);
  int host = 0;  // a copy on the default stream comes after blocking streams
  cudaStream_t blocking;
  EXPECT_EQ(cudaStreamCreate(&blocking), cudaSuccess);
  EXPECT_EQ(add(p.data, 1000, blocking), cudaSuccess);
  EXPECT_EQ(cudaMemcpy(&host, p.data, 4, cudaMemcpyDeviceToHost), cudaSuccess);
  EXPECT_EQ(host, 1111);
  float ms = -1;
  EXPECT_EQ(cudaEventElapsedTime(&ms, event, event), cudaSuccess);
  EXPECT_EQ(ms, 0.0f);
  EXPECT_EQ(cudaStreamDestroy(a), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(a), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaStreamDestroy(b), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(blocking), cudaSuccess);
  EXPECT_EQ(cudaEventDestroy(event), cudaSuccess);
}

TEST(graphs) {
  check::Device<int> p(std::vector<int>(32)), q(std::vector<int>(32));
  cudaStream_t a, b;
  cudaEvent_t fork, join;
  cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking);
  cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking);
  cudaEventCreateWithFlags(&fork, cudaEventDisableTiming);
  cudaEventCreateWithFlags(&join, cudaEventDisableTiming);
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  EXPECT_EQ(cudaStreamBeginCapture(a, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  EXPECT_EQ(add(p.data, 1, a), cudaSuccess);
  EXPECT_EQ(cudaEventRecord(fork, a), cudaSuccess);
  EXPECT_EQ(cudaStreamWaitEvent(b, fork), cudaSuccess);
  EXPECT_EQ(add(q.data, 10, b), cudaSuccess);
  cudaStreamCaptureStatus status;
  EXPECT_EQ(cudaStreamIsCapturing(b, &status), cudaSuccess);
  EXPECT_EQ(status, cudaStreamCaptureStatusActive);
  EXPECT_EQ(cudaEventRecord(join, b), cudaSuccess);
  EXPECT_EQ(cudaStreamWaitEvent(a, join), cudaSuccess);
  EXPECT_EQ(cudaMemcpyAsync(q.data + 1, p.data, 4, cudaMemcpyDeviceToDevice, a), cudaSuccess);
  EXPECT_EQ(cudaStreamEndCapture(a, &graph), cudaSuccess);
  EXPECT_EQ(p[0], 0);
  size_t nodes = 0;
  EXPECT_EQ(cudaGraphGetNodes(graph, nullptr, &nodes), cudaSuccess);
  EXPECT_EQ(nodes, 3u);
  EXPECT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(cudaGraphLaunch(exec, a), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(a), cudaSuccess);
  EXPECT_EQ(p[0], 3);
  EXPECT_EQ(q[0], 30);
  EXPECT_EQ(q[1], 3);
  EXPECT_EQ(dvt_emulator_count("launches"), 6);
  EXPECT_EQ(cudaGraphExecDestroy(exec), cudaSuccess);

  // Work that the origin does not wait for.
  EXPECT_EQ(cudaStreamBeginCapture(a, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  EXPECT_EQ(cudaEventRecord(fork, a), cudaSuccess);
  EXPECT_EQ(cudaStreamWaitEvent(b, fork), cudaSuccess);
  EXPECT_EQ(add(q.data, 10, b), cudaSuccess);
  EXPECT_EQ(cudaStreamEndCapture(b, &graph), cudaErrorStreamCaptureUnmatched);
  EXPECT_EQ(cudaStreamEndCapture(a, &graph), cudaErrorStreamCaptureUnjoined);

  // What is not allowed, and ends the capture.
  void* memory = nullptr;
  EXPECT_EQ(cudaStreamBeginCapture(a, cudaStreamCaptureModeGlobal), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&memory, 16), cudaErrorStreamCaptureUnsupported);
  EXPECT_EQ(add(p.data, 1, a), cudaErrorStreamCaptureInvalidated);
  EXPECT_EQ(cudaStreamEndCapture(a, &graph), cudaErrorStreamCaptureInvalidated);
  EXPECT_EQ(cudaStreamBeginCapture(a, cudaStreamCaptureModeRelaxed), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&memory, 16), cudaSuccess);
  EXPECT_EQ(cudaFree(memory), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(a), cudaErrorStreamCaptureUnsupported);
  EXPECT_EQ(cudaStreamEndCapture(a, &graph), cudaErrorStreamCaptureInvalidated);
  EXPECT_EQ(cudaStreamEndCapture(a, &graph), cudaErrorIllegalState);
  cudaEventRecord(fork, b);
  EXPECT_EQ(cudaStreamBeginCapture(a, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  EXPECT_EQ(cudaStreamWaitEvent(a, fork), cudaErrorStreamCaptureIsolation);
  EXPECT_EQ(cudaStreamEndCapture(a, &graph), cudaErrorStreamCaptureInvalidated);
  EXPECT_EQ(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal), cudaErrorStreamCaptureUnsupported);
  cudaGetLastError();
}

}  // namespace
