"""The wheel brings the C library: what it contains, and a client built against it where only the wheel is installed."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import dvt_fast
from native_samples import DIM, ROOT, TOOLS, cmake_build, random_engine, run, where

LIBRARY = {
    "include/dvt_fast.h",
    "include/dvt_fast.hpp",
    "lib/cmake/dvt_fast/dvt_fastConfig.cmake",
    "lib/cmake/dvt_fast/dvt_fastConfigVersion.cmake",
    "lib/cmake/dvt_fast/dvt_fastTargets.cmake",
    "lib/cmake/dvt_fast/dvt_fastTargets-release.cmake",
    "lib/libdvt_fast.so.0",
    "lib/pkgconfig/dvt_fast.pc",
}


BUILT = re.compile(r"dvt_fast/(lib|include)/")
MAJOR, MINOR, PATCH = (int(n) for n in re.findall(r"\d+", dvt_fast.__version__)[:3])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "setup.py", "-q", "build", "--build-base", folder / "build"]
    run(*build, "bdist_wheel", "--dist-dir", folder, DVT_FAST_CUDA="off")  # which takes minutes to compile
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The Python of an environment with the wheel and nothing else: no NumPy, no torch."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    return python


def test_wheel_contains_the_library_once(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name.removeprefix("dvt_fast/") for name in archive.namelist() if BUILT.match(name)}
        assert names == LIBRARY
        record = archive.read(next(name for name in archive.namelist() if name.endswith("RECORD"))).decode()
        assert all(f"dvt_fast/{name},sha256=" in record for name in LIBRARY)
        for name in LIBRARY:
            if not name.endswith(".so.0"):
                assert str(ROOT) not in archive.read(f"dvt_fast/{name}").decode(), f"{name} holds a path of this build"


def test_client_of_an_installed_wheel(installed, tmp_path):
    """The C library is found, linked and run from the wheel alone."""
    folder = where("--cmake-dir", installed)
    assert ROOT not in folder.parents and folder.is_dir()
    engine = tmp_path / "engine.safetensors"
    engine.write_bytes(random_engine())
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(client CXX)\n"
        f"find_package(dvt_fast {dvt_fast.__version__} REQUIRED)\n"
        "add_executable(client client.cpp)\ntarget_link_libraries(client PRIVATE dvt_fast::dvt_fast)\n"
    )
    (tmp_path / "client.cpp").write_text(
        "#include <dvt_fast.hpp>\n#include <cstdio>\n"
        'int main(int, char** argv) { std::printf("%d", int(dvt_fast::Model(argv[1]).info().dim)); }\n'
    )
    build = cmake_build(tmp_path, tmp_path / "build", f"-Ddvt_fast_DIR={folder}")
    assert run(build / "client", engine) == str(DIM)

    packages = str(where("--pkg-config-dir", installed))
    flags = run("pkg-config", "--cflags", "--libs", "dvt_fast", PKG_CONFIG_PATH=packages)
    run("c++", "-std=c++17", tmp_path / "client.cpp", "-o", tmp_path / "client", *flags.split())
    assert run(tmp_path / "client", engine, LD_LIBRARY_PATH=str(folder.parents[1])) == str(DIM)


@pytest.mark.parametrize(
    "version, found",
    [
        (f"{MAJOR}.{MINOR}", True),
        (f"{MAJOR}.{MINOR}.{PATCH}", True),
        (f"{MAJOR}.{MINOR}.{PATCH + 1}", False),
        (f"{MAJOR}.{MINOR + 1}", False),
        (f"{MAJOR + 1}.0", False),
    ],
)
def test_find_package_knows_versions(installed, tmp_path, version, found):
    (tmp_path / "CMakeLists.txt").write_text(
        f"cmake_minimum_required(VERSION 3.18)\nproject(client CXX)\nfind_package(dvt_fast {version} REQUIRED)\n"
    )
    folder = where("--cmake-dir", installed)
    configure = ["cmake", "-S", tmp_path, "-B", tmp_path / "build", "-G", "Ninja", f"-Ddvt_fast_DIR={folder}"]
    done = subprocess.run(configure, capture_output=True, text=True, env=os.environ | TOOLS)
    assert (done.returncode == 0) == found
    assert found or f'compatible with requested version "{version}"' in done.stderr


def test_folders_are_said_without_any_package(installed):
    for option in ("--cmake-dir", "--pkg-config-dir", "--include-dir"):
        assert where(option, installed).is_dir()


def test_a_copy_without_the_library_says_so(tmp_path):
    (tmp_path / "dvt_fast").mkdir()
    for name in ("__init__.py", "__main__.py"):
        (tmp_path / "dvt_fast" / name).write_bytes((ROOT / "dvt_fast" / name).read_bytes())
    command = [sys.executable, "-m", "dvt_fast", "--cmake-dir"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert re.fullmatch(r"error: this copy of dvt_fast was built without its C library: there is no \S+\n", done.stderr)


def test_source_archive_has_none_of_what_was_built(tmp_path):
    run(sys.executable, "setup.py", "-q", "sdist", "--dist-dir", tmp_path)
    (archive,) = tmp_path.glob("*.tar.gz")
    names = {name.split("/", 1)[1] for name in run("tar", "-tzf", archive).split() if "/" in name}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    assert "csrc/capi/exports.map" in sources and sources | {"dvt_fast/__main__.py"} <= names
    assert not [name for name in names if BUILT.match(name)]
