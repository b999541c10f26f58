"""Pairs made on a Ray cluster: a head and two workers as real processes, one of which is killed while it works."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dataset_samples import TINY_ARGUMENTS, build, content, make_photos
from dvt_fast import InputError, MissingExtraError
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
            os.kill(living()[0]["Pid"], signal.SIGKILL)
        elif done == 12:
            seen.extend(actor["Address"]["NodeID"] for actor in living())
            cluster.remove_node(nodes[0], allow_graceful=False)

    summary = build(photos, tmp_path / "out", engine="ray", address=cluster.address, workers=None, progress=kill_some)
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
    assert done.stderr == f"1 failed:\n  {photos}/bad.png: not an image that Pillow can read\n"  # and no word of Ray's
    assert content(tmp_path / "out") == undisturbed


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


def test_without_ray(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"needs the package 'ray'.*dvt-fast\[train\]"):
        build(photos, tmp_path / "out", engine="ray", workers=2)
