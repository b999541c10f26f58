"""Threads: the number is the caller's, nested and concurrent calls finish, and a forked child gets its own."""

import os
import threading

import numpy as np
import pytest

import dvt_fast
from dvt_fast import _native
from dvt_fast.errors import InputError


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
