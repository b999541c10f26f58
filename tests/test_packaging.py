"""The package as it is installed: light to import, complete in its wheel, clear about what is missing."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import dvt_fast

ROOT = Path(__file__).parents[1]
# CMake and Ninja are those of this environment, as in the Makefile: with others everything would be compiled again.
ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "DVT_FAST_CUDA": "off",  # which takes minutes to compile
}


def python(code: str, *args: str, hide: str = "") -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter where the packages in `hide` cannot be imported."""
    hidden = f"import sys; sys.modules.update(dict.fromkeys({hide.split()!r}))\n"
    return subprocess.run([sys.executable, "-c", hidden + code, *args], capture_output=True, text=True, cwd=ROOT)


def test_import_is_fast_and_needs_no_torch():
    code = (
        "import time; start = time.perf_counter(); import dvt_fast; print(time.perf_counter() - start)\n"
        "assert not {'torch', 'timm', 'PIL', 'typer'} & set(sys.modules)"
    )
    runs = [python(code) for _ in range(3)]
    assert all(done.returncode == 0 for done in runs), runs[0].stderr
    assert min(float(done.stdout) for done in runs) < 0.3


def test_every_public_name_can_be_imported():
    assert len(dvt_fast.__all__) > 5
    for name in dvt_fast.__all__:
        assert getattr(dvt_fast, name) is not None


def test_no_module_hides_a_public_name():
    """Importing a submodule sets it as an attribute of the package, over a function of the same name."""
    modules = {path.stem for path in (ROOT / "dvt_fast").iterdir()}
    assert not modules & set(dvt_fast.__all__)


@pytest.mark.parametrize(
    "hide, command, package, extra",
    [
        ("typer", "doctor", "typer", "cli"),
        ("rich", "doctor", "rich", "cli"),
        ("torch", "decompose", "torch", "vit"),
        ("timm", "decompose", "timm", "vit"),
        ("PIL", "decompose", "PIL", "vit"),
    ],
)
def test_a_missing_extra_is_one_line(hide, command, package, extra, tmp_path):
    pil = pytest.importorskip("PIL.Image")
    pil.new("RGB", (40, 40)).save(tmp_path / "x.png")
    code = "sys.argv[0] = 'dvt-fast'; from dvt_fast.cli import main; main()"
    args = [command, str(tmp_path / "x.png"), "--out", str(tmp_path / "out")] if command == "decompose" else [command]
    done = python(code, *args, hide=hide)
    line = f"this needs the package '{package}', which is not installed: pip install 'dvt-fast[{extra}]'"
    assert (done.returncode, done.stderr) == (1, f"error: {line}\n")


def test_entry_point_names_what_exists():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"dvt-fast": "dvt_fast.cli:main"}
    assert project["project"]["dependencies"] == ["numpy>=1.24", "safetensors>=0.4"]
    tools = re.search(r"^BUILD_TOOLS := (.*)$", (ROOT / "Makefile").read_text(), re.M)[1]
    assert re.findall(r'"([^"]+)"', tools) == project["build-system"]["requires"]


def test_what_the_tests_and_benchmarks_import_is_declared_and_explained():
    tomllib = pytest.importorskip("tomllib")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    declared = {re.split(r"[<>=\[; ]", line)[0] for lines in extras.values() for line in lines} - {"dvt-fast"}
    explained = (ROOT / "docs" / "dependencies.md").read_text()
    assert not [name for name in declared if not re.search(rf"\b{name}\b", explained)]
    names = {"PIL": "pillow", "skimage": "scikit-image", "sklearn": "scikit-learn", "rerun": "rerun-sdk"}
    files = [path for folder in ("tests", "benchmarks", "tools") for path in (ROOT / folder).glob("*.py")]
    own = {path.stem for path in files} | {"dvt_fast", "numpy", "safetensors", "setuptools", *sys.stdlib_module_names}
    used = {
        module
        for path in files
        for module in re.findall(r"^\s*(?:from|import) (\w+)(?:[. ]|$)", path.read_text(), re.M)
    }
    rivals = {"minepy", "tensorrt", "tinycudann"}  # compared with where somebody has installed them
    assert not [name for name in rivals if not re.search(rf"\b{name}\b", explained)]
    assert {names.get(module, module) for module in used - own} <= declared | rivals


def test_changelog_knows_this_version():
    assert f"## {dvt_fast.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_wheel_is_complete(tmp_path):
    build = [sys.executable, "setup.py", "-q", "build", "--build-base", tmp_path / "build"]
    command = [*build, "bdist_wheel", "--dist-dir", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert sum(name.startswith("dvt_fast/_native.") and name.endswith(".so") for name in names) == 1
        sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "dvt_fast").rglob("*.py")}
        licences = {name.split(".dist-info/")[1] for name in names if ".dist-info/licenses/" in name}
        assert licences == {"licenses/LICENSE", "licenses/dvt_fast/assets/NOTICE.md"}
        assert {"dvt_fast/py.typed", "dvt_fast/assets/dvt_mini.safetensors"} | sources <= names
        assert not [
            name for name in names if name.split("/")[0] not in ("dvt_fast", wheel.name.split("-cp")[0] + ".dist-info")
        ]
    assert wheel.stat().st_size < 12e6


def test_sdist_can_be_built_from(tmp_path):
    command = [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc").rglob("*") if p.is_file()}
    assert {
        "CMakeLists.txt",
        "setup.py",
        "pyproject.toml",
        "LICENSE",
        "README.md",
        "dvt_fast/assets/NOTICE.md",
    } | sources <= names
    assert not [name for name in names if name.endswith((".so", ".o"))]


def test_install_keeps_the_torch_that_is_there():
    """`make` gives these lines to pip as constraints."""
    done = subprocess.run([sys.executable, "tools/torch_constraints.py"], capture_output=True, text=True, cwd=ROOT)
    kept = dict(line.split("==") for line in done.stdout.splitlines())
    assert set(kept) <= {"torch", "torchvision", "torchaudio"}
    try:
        installed = version("torch")
    except PackageNotFoundError:
        installed = None
    assert kept.get("torch") == installed
