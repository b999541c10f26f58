// A stand-in for the CUDA runtime, with which .cu files compile as plain C++ (g++ -x c++) and run on the CPU. How
// kernels are run is told in emulator/execution.h; what can be set, in ../settings.h.
#pragma once

#include "emulator/arithmetic.h"
#include "emulator/errors.h"
#include "emulator/execution.h"
#include "emulator/intrinsics.h"
#include "emulator/launch.h"
#include "emulator/runtime_api.h"
#include "emulator/vector_types.h"
