"""What goes wrong while a dataset is made, as it goes wrong in earnest: after the next run, the dataset is that of an
undisturbed one, byte for byte."""

import http.server
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dataset_samples import S3, TINY_ARGUMENTS, build, content, make_photos
from dvt_fast import DvtError, InputError, OutputError, PairDataset, check_dataset
from dvt_fast.dataset import store as store_module

pytestmark = pytest.mark.usefixtures("one_torch_thread")
ROOT = Path(__file__).parents[1]
COUNT = 20


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("images") / "photos", COUNT)


@pytest.fixture(scope="module")
def undisturbed(photos, tmp_path_factory):
    """What every file of the dataset should be."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    summary = build(photos, out)
    assert (summary.made, len(summary.failed)) == (COUNT, 1)
    return content(out)


def workers() -> list[int]:
    """The processes of the workers of a run in this process."""
    return [child.pid for child in multiprocessing.active_children()]


def children(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return found + [grandchild for child in found for grandchild in children(child)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def pairs_in(out: Path) -> list[Path]:
    return list(out.glob("pairs/*/*.safetensors"))


@pytest.fixture
def start(photos, tmp_path):
    """Starts the command on two workers, in a session of its own as a terminal would, and waits for a few pairs."""
    started = []

    def start():
        command = [sys.executable, "-m", "dvt_fast.cli", "dataset", str(photos), "--out", str(tmp_path / "out")]
        process = subprocess.Popen(
            [*command, *TINY_ARGUMENTS, "--workers", "2"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True,
        )  # fmt: skip
        started.append(process)
        wait_for(lambda: len(pairs_in(tmp_path / "out")) >= 3 or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_worker_is_killed(photos, undisturbed, tmp_path):
    killed, others = [], []

    def kill_one(done, total, what):
        if done == 5:
            killed.append(workers()[0])
            others.append(workers()[1])
            os.kill(killed[0], signal.SIGKILL)
        elif done == total:
            assert killed[0] not in workers() and others[0] in workers()  # the other one went on

    summary = build(photos, tmp_path / "out", workers=2, progress=kill_one)
    # a pair that was written, and its worker killed before it could say so, is found
    assert killed and (summary.made + summary.skipped, len(summary.failed)) == (COUNT, 1)
    assert content(tmp_path / "out") == undisturbed
    assert workers() == []


def test_every_worker_is_killed(photos, undisturbed, tmp_path):
    def kill_all(done, total, what):
        if done == 8:
            for pid in workers():
                os.kill(pid, signal.SIGKILL)

    build(photos, tmp_path / "out", workers=2, progress=kill_all)
    assert content(tmp_path / "out") == undisturbed


class KillsItsReader(http.server.BaseHTTPRequestHandler):
    """A web server whose image kills the worker that reads it."""

    reads = 0

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()

    def do_GET(self):
        type(self).reads += 1
        for pid in workers():
            os.kill(pid, signal.SIGKILL)

    def log_message(self, *_):
        pass


def test_an_image_that_kills_its_worker_fails_alone(photos, tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), KillsItsReader)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/poison.png"
    try:
        images = [photos / "p01.png", url, photos / "p02.png", photos / "p03.png"]
        summary = build(images, tmp_path / "out", workers=1, retries=1)
    finally:
        server.shutdown()
        server.server_close()
    assert KillsItsReader.reads >= 2
    assert (summary.made, summary.failed) == (3, [f"{url}: its worker died 2 times (SIGKILL)"])


def test_the_driver_is_killed(start, photos, undisturbed, tmp_path):
    process = start()
    (tmp_path / "out" / "pairs" / ".dvt-0123.tmp").write_bytes(b"half")  # as of a worker that was writing
    started = children(process.pid)
    assert len(started) >= 2
    process.kill()
    process.wait()
    wait_for(lambda: not any(map(alive, started)), seconds=10)  # no orphans
    done = len(pairs_in(tmp_path / "out"))
    assert 3 <= done < COUNT and not (tmp_path / "out" / "manifest.parquet").exists()
    summary = build(photos, tmp_path / "out")
    assert (summary.made, summary.skipped) == (COUNT - done, done)
    assert content(tmp_path / "out") == undisturbed


def test_ctrl_c_stops_at_once_and_leaves_nothing_behind(start, photos, undisturbed, tmp_path):
    process = start()
    started = children(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # every process of the terminal, as the key does
    begin = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - begin < 15  # of the 30 that all would take
    assert (process.returncode, out, err) == (130, "", "stopped; the same command goes on from here\n")
    wait_for(lambda: not any(map(alive, started)), seconds=15)
    # what was done is in the manifest, but for what the two workers had no time to say
    assert len(PairDataset(tmp_path / "out")) >= len(pairs_in(tmp_path / "out")) - 2 > 0
    assert not list((tmp_path / "out").rglob(".*"))
    build(photos, tmp_path / "out")
    assert content(tmp_path / "out") == undisturbed


def test_a_limit_on_the_size_of_files(photos, undisturbed, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"\.safetensors: cannot be written: File too large$"):
            build(photos, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert set(content(tmp_path / "out")) <= {"dataset.json", "manifest.parquet"}
    build(photos, tmp_path / "out")
    assert content(tmp_path / "out") == undisturbed


def test_a_full_disk(photos, undisturbed, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no permission to mount a small disk")
    try:
        with pytest.raises(OutputError, match=r"cannot be written: No space left on device$"):
            build(photos, disk / "out", workers=2)
        found = content(disk / "out")
        assert len(found) > 5 and all(undisturbed[name] == found[name] for name in found if "pairs" in name)
        subprocess.run(["mount", "-o", "remount,size=2m", str(disk)], check=True)
        summary = build(photos, disk / "out")
        assert summary.skipped >= 5
        assert content(disk / "out") == undisturbed
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_pairs_are_cut_and_lost(photos, undisturbed, tmp_path):
    out = tmp_path / "out"
    build(photos, out)
    files = sorted(pairs_in(out))
    os.truncate(files[0], 100)
    os.truncate(files[1], 0)
    files[2].unlink()
    report = check_dataset(out)
    assert (len(report.damaged), len(report.missing)) == (2, 1)
    summary = build(photos, out)
    assert (summary.made, summary.skipped) == (3, COUNT - 3)
    assert content(out) == undisturbed and check_dataset(out).good


def test_a_cut_pair_that_no_manifest_knows(photos, undisturbed, tmp_path):
    """What an object store would never show, and a network disk may."""
    build(photos, tmp_path / "out")
    (tmp_path / "out" / "manifest.parquet").unlink()
    os.truncate(pairs_in(tmp_path / "out")[0], 12_000)
    assert build(photos, tmp_path / "out").made == 1
    assert content(tmp_path / "out") == undisturbed


def test_workers_that_cannot_start(photos, tmp_path, monkeypatch):
    """A ViT whose weights are there for the driver and not for the workers."""
    import torch

    from dvt_fast import ViT, build_dataset
    from dvt_fast.dataset import build as build_module

    weights = tmp_path / "weights.pth"
    torch.save(ViT("vit_tiny_patch16_224", weights="random").model.state_dict(), weights)
    vit = {"name": "vit_tiny_patch16_224", "weights": str(weights), "size": 64}
    original = build_module._make_job

    def make_and_remove(*args, **plan):
        job = original(*args, **plan)
        weights.unlink()
        return job

    monkeypatch.setattr(build_module, "_make_job", make_and_remove)
    with pytest.raises(DvtError, match=r"weights.pth: no such file$"):
        build_dataset(photos, tmp_path / "out", vit, views="realtime", workers=2)
    assert workers() == []


def test_workers_with_another_vit(photos, tmp_path, monkeypatch):
    """The weights are replaced after the driver has described them."""
    import torch

    from dvt_fast import ViT, build_dataset
    from dvt_fast.dataset import build as build_module

    weights = tmp_path / "weights.pth"
    vit = {"name": "vit_tiny_patch16_224", "weights": str(weights), "size": 64}
    original = build_module._make_job

    def save(seed):
        torch.save(ViT("vit_tiny_patch16_224", weights="random", seed=seed).model.state_dict(), weights)

    def make_and_replace(*args, **plan):
        job = original(*args, **plan)
        save(1)
        return job

    save(0)
    monkeypatch.setattr(build_module, "_make_job", make_and_replace)
    with pytest.raises(InputError, match=r"the ViT of a worker: made with other settings: vit.fingerprint is"):
        build_dataset(photos, tmp_path / "out", vit, views="realtime", workers=1)
    assert not pairs_in(tmp_path / "out")


def test_a_script_without_a_guard_is_told_so(photos, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from dvt_fast import build_dataset\n"
        f"build_dataset({str(photos)!r}, {str(tmp_path / 'out')!r}, "
        "{'name': 'vit_tiny_patch16_224', 'weights': 'random', 'size': 64}, workers=1, retries=0)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert "the workers die as they start (exit code 1): a script that calls build_dataset needs" in done.stderr


@pytest.fixture(scope="module")
def s3():
    with S3() as server:
        yield server


def test_images_and_pairs_in_buckets(s3, photos, undisturbed, tmp_path):
    """The pairs are those of the folder, and a second run finds them."""
    images, out = s3.make_bucket(), s3.make_bucket()
    for name, data in content(photos).items():
        s3.client().put_object(Bucket=images, Key=f"photos/{name}", Body=data)
    summary = build(f"s3://{images}/photos", f"s3://{out}/some/where")
    assert summary.made == COUNT
    assert summary.failed == [f"s3://{images}/photos/bad.png: not an image that Pillow can read"]
    found = {name.removeprefix("some/where/"): data for name, data in s3.content(out).items()}
    assert found.keys() == undisturbed.keys()
    assert all(found[name] == data for name, data in undisturbed.items() if name != "manifest.parquet")
    assert build(f"s3://{images}/photos", f"s3://{out}/some/where").skipped == COUNT
    dataset = PairDataset(f"s3://{out}/some/where")
    assert dataset.read(3)[1].shape == (4, 4, 192) and dataset.open_image(3).size == (80, 60)
    assert check_dataset(f"s3://{out}/some/where").good


@pytest.mark.parametrize("workers, comes_back", [(2, "as it was"), (0, "empty")])
def test_the_bucket_is_removed_for_a_while(s3, photos, undisturbed, workers, comes_back):
    bucket = s3.make_bucket()
    kept = {}

    def remove(done, total, what):
        if done == 6:
            kept.update(s3.remove_bucket(bucket))

    message = rf"^s3://{bucket}/x/pairs/.*: cannot be written: The specified bucket does not exist$"
    with pytest.raises(OutputError, match=message):
        build(photos, f"s3://{bucket}/x", workers=workers, progress=remove)
    assert len(kept) > 5
    s3.make_bucket(bucket)
    if comes_back == "as it was":
        for name, data in kept.items():
            s3.client().put_object(Bucket=bucket, Key=name, Body=data)
    summary = build(photos, f"s3://{bucket}/x")
    assert summary.skipped == (len(kept) - 1 if comes_back == "as it was" else 0)
    assert {name.removeprefix("x/"): data for name, data in s3.content(bucket).items()} == undisturbed


def test_the_server_is_out_of_reach_for_a_while(s3, photos, undisturbed):
    """A second without it is waited for: the run does not end."""
    bucket = s3.make_bucket()

    def interrupt(done, total, what):
        if done == 6:
            s3.stop()
            threading.Timer(1.0, s3.start).start()

    build(photos, f"s3://{bucket}/x", progress=interrupt, storage_retries=5)
    assert {name.removeprefix("x/"): data for name, data in s3.content(bucket).items()} == undisturbed


def test_a_bucket_that_may_not_be_read(s3, photos):
    bucket = s3.make_bucket()
    build(photos / "p01.png", f"s3://{bucket}/x")
    with s3.closed_to_strangers():
        for read in (lambda: PairDataset(f"s3://{bucket}/x"), lambda: build(photos, f"s3://{bucket}/x")):
            with pytest.raises(InputError, match=rf"^s3://{bucket}/x/dataset.json: cannot be read: "):
                read()


def test_images_out_of_reach_end_the_run(s3, photos, tmp_path, monkeypatch):
    """The storage of the images fails, which is no fault of an image: none is marked as failed."""
    images = s3.make_bucket()
    for name in ("p01.png", "p02.png", "p03.png"):
        s3.client().put_object(Bucket=images, Key=name, Body=(photos / name).read_bytes())
    monkeypatch.setattr(store_module, "FIRST_WAIT", 0.01)
    try:
        with pytest.raises(InputError, match=rf"^s3://{images}/p02.png: cannot be read: Could not connect"):
            build(f"s3://{images}", tmp_path / "out", progress=lambda done, total, what: s3.stop())
    finally:
        s3.start()
    assert len(PairDataset(tmp_path / "out")) == 1
    summary = build(f"s3://{images}", tmp_path / "out")
    assert (summary.made, summary.skipped, summary.failed) == (2, 1, [])
