# For 64-bit ARM (Jetson, Raspberry Pi) from another machine, with Debian's g++-aarch64-linux-gnu; what is built runs
# under qemu-user where it is installed:
#
#   cmake -S . -B build/aarch64 -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake -DDVT_FAST_PYTHON=OFF
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
find_program(DVT_QEMU NAMES qemu-aarch64 qemu-aarch64-static)
if(DVT_QEMU)
  set(CMAKE_CROSSCOMPILING_EMULATOR ${DVT_QEMU} -L /usr/aarch64-linux-gnu)
endif()
