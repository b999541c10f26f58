"""Fixtures that several tests share."""

import contextlib
import shutil
import signal
import sys
from pathlib import Path

import pytest

# Files whose tests wait for a clock, or start processes that keep all cores busy. `make test` runs the others in
# several processes at once, and these by themselves afterwards.
ALONE = {
    "test_bindings",
    "test_capi_robot_loop",
    "test_dataset_faults",
    "test_dataset_files",
    "test_dataset_ray",
    "test_denoiser",
    "test_engine_file",
    "test_look_page",
    "test_packaging",
    "test_rerun_sink",
    "test_speed",
    "test_store",
    "test_stream",
    "test_threads",
    "test_video_camera",
}
# A shell has what it starts in the background ignore Ctrl-C, and so would the programs that the tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images and weights beside the checkout; tests that need it are skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no real images and weights at ../shared/data")
    return SHARED_DATA


@pytest.fixture(params=["generic", "avx2", "avx512", "neon"])
def isa(request):
    """Runs a test once an instruction set, with that set forced."""
    from dvt_fast import _native

    problem = _native.isa_problem(request.param)
    if problem:
        pytest.skip(f"{request.param}: {problem}")
    before = _native.active_isa()
    _native.set_isa(request.param)
    yield request.param
    _native.set_isa(before)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem in ALONE:
            item.add_marker(pytest.mark.alone)


def pytest_collection_finish(session):
    """A process takes one CUDA library, the first time that any test asks what there is: so it is chosen before all."""
    if session.config.option.collectonly or not any("cuda" in getattr(i, "fixturenames", ()) for i in session.items):
        return
    from cuda_samples import prepare

    with contextlib.suppress(AssertionError):  # of a build that failed: the fixture tries again, and says why
        prepare()


@pytest.fixture(scope="session")
def cuda():
    """Makes device="cuda" usable: on the device, or in the emulator, which is built first. See cuda_samples.py."""
    from cuda_samples import prepare

    return prepare()


@pytest.fixture
def emulator(cuda):
    """The emulated device, to be changed; skipped on a real one."""
    if not cuda.emulated:
        pytest.skip("a real device neither fails nor shrinks on demand")
    from cuda_samples import Emulator

    device = Emulator(cuda.library)
    device.reset()
    yield device
    device.restore()


@pytest.fixture
def program(monkeypatch, capfd, tmp_path):
    """Runs `dvt-fast` in this process and in `tmp_path`, as its entry point does: (exit code, stdout, stderr)."""
    from dvt_fast.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*args) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dvt-fast", *map(str, args)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run


@pytest.fixture(scope="module")
def one_torch_thread():
    """Runs a module's tests with one thread of torch."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def dataset_photos(tmp_path_factory) -> Path:
    """12 distinct images, a duplicate, a second one of the first's name, and one that is none. Not to be changed."""
    from dataset_samples import make_photos

    return make_photos(tmp_path_factory.mktemp("images") / "photos")


@pytest.fixture(scope="session")
def finished_dataset(dataset_photos, tmp_path_factory) -> Path:
    """A dataset of `dataset_photos`. Not to be changed."""
    from dataset_samples import build

    out = tmp_path_factory.mktemp("finished") / "out"
    build(dataset_photos, out)
    return out


@pytest.fixture
def dataset_copies(dataset_photos, tmp_path) -> tuple[Path, Path]:
    """A copy of `dataset_photos`, and its dataset: both to be changed."""
    from dataset_samples import build

    images, out = tmp_path / "photos", tmp_path / "out"
    shutil.copytree(dataset_photos, images)
    build(images, out)
    return images, out
