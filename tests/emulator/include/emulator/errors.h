// cudaError_t: the codes of the CUDA runtime that the package knows or the emulator returns.
#pragma once

#define EMULATOR_ERRORS(ERROR)                                                                                  \
  ERROR(cudaSuccess, 0, "no error")                                                                             \
  ERROR(cudaErrorInvalidValue, 1, "invalid argument")                                                           \
  ERROR(cudaErrorMemoryAllocation, 2, "out of memory")                                                          \
  ERROR(cudaErrorInitializationError, 3, "initialization error")                                                \
  ERROR(cudaErrorCudartUnloading, 4, "driver shutting down")                                                    \
  ERROR(cudaErrorInvalidConfiguration, 9, "invalid configuration argument")                                     \
  ERROR(cudaErrorInvalidMemcpyDirection, 21, "invalid copy direction for memcpy")                               \
  ERROR(cudaErrorInsufficientDriver, 35, "CUDA driver version is insufficient for CUDA runtime version")        \
  ERROR(cudaErrorECCUncorrectable, 214, "uncorrectable ECC error encountered")                                  \
  ERROR(cudaErrorInvalidDeviceFunction, 98, "invalid device function")                                          \
  ERROR(cudaErrorNoDevice, 100, "no CUDA-capable device is detected")                                           \
  ERROR(cudaErrorInvalidDevice, 101, "invalid device ordinal")                                                  \
  ERROR(cudaErrorNoKernelImageForDevice, 209, "no kernel image is available for execution on the device")       \
  ERROR(cudaErrorUnsupportedPtxVersion, 222, "the provided PTX was compiled with an unsupported toolchain.")    \
  ERROR(cudaErrorInvalidResourceHandle, 400, "invalid resource handle")                                         \
  ERROR(cudaErrorIllegalState, 401, "the operation cannot be performed in the present state")                   \
  ERROR(cudaErrorSymbolNotFound, 500, "named symbol not found")                                                 \
  ERROR(cudaErrorNotReady, 600, "device not ready")                                                             \
  ERROR(cudaErrorIllegalAddress, 700, "an illegal memory access was encountered")                               \
  ERROR(cudaErrorLaunchOutOfResources, 701, "too many resources requested for launch")                          \
  ERROR(cudaErrorLaunchTimeout, 702, "the launch timed out and was terminated")                                 \
  ERROR(cudaErrorAssert, 710, "device-side assert triggered")                                                   \
  ERROR(cudaErrorHardwareStackError, 714, "hardware stack error")                                               \
  ERROR(cudaErrorIllegalInstruction, 715, "an illegal instruction was encountered")                             \
  ERROR(cudaErrorMisalignedAddress, 716, "misaligned address")                                                  \
  ERROR(cudaErrorInvalidAddressSpace, 717, "operation not supported on global/shared address space")            \
  ERROR(cudaErrorInvalidPc, 718, "invalid program counter")                                                     \
  ERROR(cudaErrorLaunchFailure, 719, "unspecified launch failure")                                              \
  ERROR(cudaErrorCooperativeLaunchTooLarge, 720, "too many blocks in cooperative launch")                       \
  ERROR(cudaErrorNotPermitted, 800, "operation not permitted")                                                  \
  ERROR(cudaErrorNotSupported, 801, "operation not supported")                                                  \
  ERROR(cudaErrorStreamCaptureUnsupported, 900, "operation not permitted when stream is capturing")             \
  ERROR(cudaErrorStreamCaptureInvalidated, 901, "operation failed due to a previous error during capture")      \
  ERROR(cudaErrorStreamCaptureMerge, 902, "operation would result in a merge of separate capture sequences")    \
  ERROR(cudaErrorStreamCaptureUnmatched, 903, "capture was not ended in the same stream as it began")           \
  ERROR(cudaErrorStreamCaptureUnjoined, 904, "capturing stream has unjoined work")                              \
  ERROR(cudaErrorStreamCaptureIsolation, 905, "dependency created on uncaptured work in another stream")        \
  ERROR(cudaErrorStreamCaptureImplicit, 906,                                                                    \
        "operation would make the legacy stream depend on a capturing blocking stream")                         \
  ERROR(cudaErrorCapturedEvent, 907, "operation not permitted on an event last recorded in a capturing stream") \
  ERROR(cudaErrorStreamCaptureWrongThread, 908,                                                                 \
        "attempt to terminate a thread-local capture sequence from another thread")                             \
  ERROR(cudaErrorInvalidClusterSize, 912, "invalid cluster size")                                               \
  ERROR(cudaErrorUnknown, 999, "unknown error")

enum cudaError {
#define EMULATOR_ENUMERATOR(name, code, text) name = code,
  EMULATOR_ERRORS(EMULATOR_ENUMERATOR)
#undef EMULATOR_ENUMERATOR
};
using cudaError_t = cudaError;
