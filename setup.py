"""Builds the native module and the C library with CMake; the rest of the package is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Runs CMake for the one extension, `dvt_fast._native`, which brings dvt_fast/lib and dvt_fast/include with it.

    `DVT_FAST_CUDA` (auto, on, off) says whether the CUDA library is built, `DVT_FAST_CUDA_ARCHITECTURES` ("80 90a")
    for which processors; `DVT_FAST_CMAKE_ARGS` adds options.
    """

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
            # CMake would keep those of the last build.
            "-DDVT_FAST_WERROR=OFF", "-DDVT_FAST_SANITIZE=OFF",
            f"-DDVT_FAST_CUDA={os.environ.get('DVT_FAST_CUDA', 'auto')}",
            f"-DDVT_FAST_CUDA_ARCHITECTURES={os.environ.get('DVT_FAST_CUDA_ARCHITECTURES', '')}",
            *os.environ.get("DVT_FAST_CMAKE_ARGS", "").split(),
        ]  # fmt: skip
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build), "--target", "dvt_package"], check=True)

    def copy_extensions_to_source(self) -> None:
        """What an in-place or editable build does last: setuptools itself copies the module only."""
        super().copy_extensions_to_source()
        for folder in ("lib", "include"):
            built, source = Path(self.build_lib, "dvt_fast", folder), ROOT / "dvt_fast" / folder
            shutil.rmtree(source, ignore_errors=True)  # an earlier build may have made what this one does not
            shutil.copytree(built, source, symlinks=True)


setup(ext_modules=[Extension("dvt_fast._native", sources=[])], cmdclass={"build_ext": CMakeBuild})
