"""Pairs made on a Ray cluster: a head and two workers as real processes, one of which is killed while it works."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from dataset_samples import TINY_ARGUMENTS, build, content, make_photos
from dvt_fast import DvtError, InputError, MissingExtraError, PairDataset
from dvt_fast.dataset import cluster as cluster_module
from dvt_fast.dataset.cluster import count_workers

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.usefixtures("one_torch_thread")
ROOT = Path(__file__).parents[1]
COUNT = 20


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("images") / "photos", COUNT)


@pytest.fixture(scope="module")
def undisturbed(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    build(photos, out)
    return content(out)


@pytest.fixture
def cluster():
    """A head that runs no actors, and two nodes of one core each."""
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            found.add_node(num_cpus=1)
        yield found
    finally:
        ray.shutdown()
        found.shutdown()


def test_an_actor_and_a_node_are_killed(cluster, photos, undisturbed, tmp_path):
    nodes = sorted(cluster.worker_nodes, key=lambda node: node.node_id)
    seen = []

    def kill_some(done, total, what):
        if done == 3:
            wait_for(lambda: len(living()) == 2)
            assert {actor["Address"]["NodeID"] for actor in living()} == {node.node_id for node in nodes}
            os.kill(living()[0]["Pid"], signal.SIGKILL)
        elif done == 12:
            seen.extend(actor["Address"]["NodeID"] for actor in living())
            cluster.remove_node(nodes[0], allow_graceful=False)

    summary = build(
        photos, tmp_path / "out", engine="ray", address=cluster.address, workers=None, retries=8, progress=kill_some
    )
    assert seen and set(seen) <= {node.node_id for node in nodes}
    # a pair that was written, and its worker killed before it could say so, is found
    assert (summary.made + summary.skipped, len(summary.failed)) == (COUNT, 1)
    assert content(tmp_path / "out") == undisturbed
    assert not ray.is_initialized()

    command = [sys.executable, "-m", "dvt_fast.cli", "dataset", str(photos), "--out", str(tmp_path / "out")]
    (tmp_path / "out" / next(name for name in undisturbed if "pairs" in name)).unlink()
    done = subprocess.run(
        [*command, *TINY_ARGUMENTS, "--engine", "ray", "--address", cluster.address],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout.startswith(f"{COUNT + 2} images: 1 done, {COUNT - 1} done before, 1 duplicates, 1 failed")
    # Ray may first tell, in its own time, of the node that was killed
    assert done.stderr.endswith(f"1 failed:\n  {photos}/bad.png: not an image that Pillow can read\n")
    assert content(tmp_path / "out") == undisturbed


def test_every_node_goes(cluster, photos, tmp_path, monkeypatch):
    """The run ends and says why; what is done stays."""
    monkeypatch.setattr(cluster_module, "PATIENCE", 3.0)

    def remove_all(done, total, what):
        if done == 2:
            wait_for(lambda: len(living()) == 2)
            actors = [actor["Pid"] for actor in living()]
            for node in list(cluster.worker_nodes):
                cluster.remove_node(node, allow_graceful=False)
            for pid in actors:  # they outlive their node for a moment, in which all these small images could be done
                kill(pid)

    with pytest.raises(DvtError, match=r"^the Ray cluster has no node left with 1 CPU for a worker: add one, and run"):
        build(
            photos,
            tmp_path / "out",
            engine="ray",
            address=cluster.address,
            workers=None,
            retries=1000,
            progress=remove_all,
        )
    assert len(PairDataset(tmp_path / "out")) >= 1  # of the two that were done, one may be the image that is none


def test_nothing_is_free_for_a_while(cluster, photos, tmp_path, monkeypatch, capsys):
    """Others have every core of the cluster: that is waited for, and said once."""
    monkeypatch.setattr(cluster_module, "PATIENCE", 0.5)

    class Holder:
        def ready(self):
            pass

    ray.init(address=cluster.address, log_to_driver=False)
    holders = [ray.remote(num_cpus=1)(Holder).remote() for _ in range(2)]
    ray.get([holder.ready.remote() for holder in holders])
    end = threading.Timer(4.0, lambda: [ray.kill(holder) for holder in holders])
    end.start()
    try:
        summary = build(photos / "p01.png", tmp_path / "out", engine="ray", workers=1)
    finally:
        end.join()
    assert summary.made == 1
    assert capsys.readouterr().err.count("waiting for 1 free CPU on the Ray cluster") == 1


def kill(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def living() -> list[dict]:
    """Ray's description of each actor that lives."""
    from ray._private.state import actors

    return [actor for actor in actors().values() if actor["State"] == "ALIVE"]


def test_no_cluster_at_that_address(photos, tmp_path):
    """Ray itself would try for ten minutes."""
    with pytest.raises(InputError, match=r"^no Ray cluster at 127.0.0.1:1: .*Connection refused$"):
        build(photos, tmp_path / "out", engine="ray", address="127.0.0.1:1", workers=2)


@pytest.mark.parametrize(
    "resources, workers, threads, device, expected",
    [
        ({"CPU": 9.0}, None, 2, "cpu", (4, 0.0)),
        ({"CPU": 9.0}, 3, 2, "cpu", (3, 0.0)),
        ({"CPU": 96.0, "GPU": 8.0}, None, 1, "cuda", (8, 1.0)),
        ({"CPU": 96.0, "GPU": 8.0}, 32, 1, "cuda", (32, 0.25)),
        ({"CPU": 96.0, "GPU": 8.0}, 4, 1, "cuda", (4, 1.0)),
    ],
)
def test_actors_and_their_share_of_a_gpu(resources, workers, threads, device, expected):
    assert count_workers(SimpleNamespace(cluster_resources=lambda: resources), workers, threads, device) == expected


@pytest.mark.parametrize(
    "resources, device, message",
    [
        ({"CPU": 8.0}, "cuda", "device 'cuda': no node of the Ray cluster has a GPU"),
        ({"CPU": 1.0}, "cpu", "2 threads a worker, and the Ray cluster has 1 cores"),
    ],
)
def test_a_cluster_that_cannot_do_it(resources, device, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        count_workers(SimpleNamespace(cluster_resources=lambda: resources), None, 2, device)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"workers": 0}, "workers 0 computes in this process, and engine 'ray' in actors: expected 1 or more, or None"),
        ({"workers": 1, "device": "cuda:1"}, "device 'cuda:1': Ray gives each actor its GPU, expected 'cuda'"),
    ],
)
def test_what_actors_cannot_be(photos, tmp_path, options, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        build(photos, tmp_path / "out", engine="ray", **options)
    assert not (tmp_path / "out").exists()


def test_without_ray(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"needs the package 'ray'.*dvt-fast\[train\]"):
        build(photos, tmp_path / "out", engine="ray", workers=2)
