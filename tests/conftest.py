"""Fixtures that several tests share."""

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images and weights beside the checkout; tests that need it are skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no real images and weights at ../shared/data")
    return SHARED_DATA


@pytest.fixture(params=["generic", "avx2", "avx512"])
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


@pytest.fixture(scope="module")
def one_torch_thread():
    """Runs a module's tests with one thread of torch."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
