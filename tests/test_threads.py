"""Threads: the number is the caller's, concurrent calls finish, a forked child has its own, errors reach the caller."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import dvt_fast
from dvt_fast import _native
from dvt_fast.errors import DvtError, InputError


@pytest.fixture(autouse=True)
def restore():
    yield
    _native.set_num_threads(0)


def product(seed=0):
    rng = np.random.default_rng(seed)
    a, b = (rng.standard_normal((200, 200)).astype(np.float32) for _ in range(2))
    return _native.gemm(a, b), a.astype(float) @ b


def test_the_number_is_what_was_set():
    dvt_fast.set_num_threads(3)
    assert dvt_fast.get_num_threads() == 3
    found, expected = product()
    assert np.abs(found - expected).max() < 1e-3
    with pytest.raises((InputError, ValueError)):
        dvt_fast.set_num_threads(-1)


def test_callers_on_many_threads_do_not_wait_for_each_other():
    dvt_fast.set_num_threads(2)
    wrong = []

    def work(seed):
        for k in range(20):
            found, expected = product(seed + k)
            if np.abs(found - expected).max() > 1e-3:
                wrong.append(seed)

    workers = [threading.Thread(target=work, args=(100 * i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert not wrong and not any(worker.is_alive() for worker in workers)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_computes():
    dvt_fast.set_num_threads(2)
    product()  # the parent's pool exists
    child = os.fork()
    if child == 0:
        found, expected = product(1)
        os._exit(0 if np.abs(found - expected).max() < 1e-3 else 1)
    for _ in range(600):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        threading.Event().wait(0.05)
    else:
        os.kill(child, 9)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize("who", ["worker", "caller"])
def test_an_exception_in_a_task_reaches_the_caller(who):
    """Whichever thread throws: not the end of the process, and the pool works on, with all its threads."""
    dvt_fast.set_num_threads(3)
    for _ in range(3):
        with pytest.raises(DvtError, match=r"^not enough memory: \S+ MB more were needed$"):
            _native.throw_in_task(who)
        assert _native.throw_in_task("nobody") == 3  # none of them believes itself inside a task
    found, expected = product()
    assert np.abs(found - expected).max() < 1e-3


@pytest.mark.parametrize("n", [1025, 2**40, 2**70])
def test_too_many_threads_are_refused(n):
    before = dvt_fast.get_num_threads()
    with pytest.raises(InputError, match=r"^the number of threads must be 1 to 1024, or 0 for the default, got \d+$"):
        _native.set_num_threads(n)
    assert dvt_fast.get_num_threads() == before


def run_python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    setup = "import numpy as np\nfrom dvt_fast import _native\na = np.ones((300, 300), np.float32)\n"
    return subprocess.run([sys.executable, "-c", setup + code], capture_output=True, text=True, env=os.environ | env)


def test_threads_that_cannot_be_started_are_one_error():
    """A limited address space has no room for the stacks of 1024 threads; fewer then work."""
    code = """
import resource, dvt_fast
_native.set_num_threads(2)
_native.gemm(a, a)
used = 4096 * int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (used + 512 * 2**20,) * 2)
_native.set_num_threads(1024)
for _ in range(2):
    try:
        _native.gemm(np.ones((3000, 300), np.float32), a)
    except dvt_fast.DvtError as error:
        print(error)
_native.set_num_threads(3)
print(_native.throw_in_task("nobody"), np.array_equal(_native.gemm(a, a), 300 * a))
"""
    done = run_python(code)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert len(lines) == 3 and lines[2] == "3 True"
    assert all(line.startswith("cannot start 1024 threads: ") for line in lines[:2])


@pytest.mark.parametrize("text", ["many", "0", "-2", "2.5", "1025", "99999999999999999999", "3 "])
def test_a_wrong_environment_variable_is_an_error_until_a_number_is_set(text):
    expected = f"DVT_FAST_NUM_THREADS must be a whole number from 1 to 1024, got '{text}'"
    for code in ("_native.gemm(a, a)", "_native.num_threads()"):
        done = run_python(code, DVT_FAST_NUM_THREADS=text)
        assert done.returncode == 1 and done.stderr.splitlines()[-1].endswith(f"InputError: {expected}")
    done = run_python("_native.set_num_threads(2); print(_native.gemm(a, a)[0, 0])", DVT_FAST_NUM_THREADS=text)
    assert done.stdout == "300.0\n", done.stderr


def test_the_environment_variable_is_the_default():
    assert run_python("print(_native.num_threads())", DVT_FAST_NUM_THREADS="7").stdout == "7\n"
    empty = run_python("print(_native.num_threads(), _native.gemm(a, a)[0, 0])", DVT_FAST_NUM_THREADS="")
    assert empty.stdout == f"{len(os.sched_getaffinity(0))} 300.0\n"
