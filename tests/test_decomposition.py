"""The object that holds a result: querying, saving and loading it, and what it refuses."""

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dvt_fast.decomposition import PARTS, Decomposition
from dvt_fast.errors import InputError, NonFiniteError, OutputError
from dvt_fast.files import write_together
from samples import make_decomposition as make


def test_save_and_load_give_the_same(tmp_path):
    d = make()
    d.save(tmp_path / "d.safetensors")
    loaded = Decomposition.load(tmp_path / "d.safetensors")
    for part in PARTS:
        np.testing.assert_array_equal(getattr(loaded, part), getattr(d, part))
    assert loaded.meta == d.meta
    coords = np.random.default_rng(1).random((8, 2), np.float32)
    np.testing.assert_array_equal(loaded.query(coords), d.query(coords))
    assert os.listdir(tmp_path) == ["d.safetensors"]


def test_file_is_plain_safetensors(tmp_path):
    d = make()
    d.save(tmp_path / "d.safetensors")
    arrays = load_file(tmp_path / "d.safetensors")
    assert set(arrays) == {*PARTS, "field.nodes"}
    np.testing.assert_array_equal(arrays["semantics"], d.semantics)
    raw = (tmp_path / "d.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    ours = json.loads(header["__metadata__"]["dvt_fast"])
    assert (ours["format"], ours["version"]) == ("dvt_fast.decomposition", 1)


def test_query_is_the_field_at_its_nodes():
    d = make()
    y, x = np.meshgrid(np.linspace(0, 1, 6), np.linspace(0, 1, 7), indexing="ij")
    np.testing.assert_allclose(d.query(np.stack([x, y], -1)), d.field.nodes, atol=1e-5)
    assert d.query([[0.0, 0.0]]).shape == (1, 5)


def test_tensors_stay_tensors(tmp_path):
    torch = pytest.importorskip("torch")
    d = make(kind=torch.from_numpy)
    values = d.query(torch.rand(2, 3, 2))
    assert isinstance(values, torch.Tensor) and values.shape == (2, 3, 5) and values.dtype == torch.float32
    d.save(tmp_path / "d.safetensors")
    np.testing.assert_array_equal(Decomposition.load(tmp_path / "d.safetensors").raw, d.raw.numpy())


@pytest.mark.parametrize(
    "coords, message",
    [
        (np.zeros((2, 3)), r"coords must have shape \[\.\.\., 2\], got \[2, 3\]"),
        (np.array(0.5), r"coords must have shape"),
        (np.array([0.5, 1.1]), r"coords must be in \[0, 1\], got 0.5 to 1.1"),
        (np.array([-0.1, 0.5]), r"coords must be in \[0, 1\]"),
        (np.array([np.nan, 0.5]), r"coords must be in \[0, 1\]"),
    ],
)
def test_query_refuses(coords, message):
    with pytest.raises(InputError, match=message):
        make().query(coords)


def test_parts_of_different_shapes_are_refused():
    d = make()
    with pytest.raises(InputError, match=r"artifacts must have raw's shape \[3, 4, 5\], got \[2, 4, 5\]"):
        Decomposition(d.raw, d.semantics, d.artifacts[:2], d.residual, d.field)


def test_nan_is_not_written(tmp_path):
    d = make()
    d.residual[1, 2, 3] = np.nan
    with pytest.raises(NonFiniteError, match="residual holds NaN"):
        d.save(tmp_path / "d.safetensors")
    assert not os.listdir(tmp_path)


def test_missing_folder_and_folder_as_file(tmp_path):
    with pytest.raises(OutputError, match=r"none/d.safetensors: cannot be written: No such file or directory"):
        make().save(tmp_path / "none" / "d.safetensors")
    (tmp_path / "d.safetensors").mkdir()
    with pytest.raises(OutputError, match="Is a directory"):
        make().save(tmp_path / "d.safetensors")
    assert os.listdir(tmp_path) == ["d.safetensors"]


def test_full_disk_keeps_the_old_file(tmp_path):
    """A limit on the size of files stands for the full disk: the write fails in the middle in the same way."""
    path = tmp_path / "d.safetensors"
    make(seed=1).save(path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"d.safetensors: cannot be written: File too large"):
            make(40, 40, 8).save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["d.safetensors"]


def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make().save(tmp_path / "d.safetensors")
    assert not os.listdir(tmp_path)


def test_files_that_belong_together_change_together(tmp_path, monkeypatch):
    old = {tmp_path / name: b"old" for name in ("a", "b", "c")}
    write_together(old)
    written, fsync = [], os.fsync

    def full_at_the_third(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full_at_the_third)
    with pytest.raises(OutputError, match="c: cannot be written: No space left on device") as caught:
        write_together(dict.fromkeys(old, b"new"))
    assert caught.value.errno == errno.ENOSPC
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == old


def header(**changes) -> dict[str, str]:
    values = {"format": "dvt_fast.decomposition", "version": 1, "meta": {}, "field": {"kind": "bilinear_grid"}}
    return {"dvt_fast": json.dumps(values | changes)}


@pytest.mark.parametrize(
    "metadata, message",
    [
        (None, "not a dvt_fast.decomposition file"),
        ({"dvt_fast": "{"}, "not a dvt_fast.decomposition file"),
        (header(format="dvt_fast.artifact_map"), "not a dvt_fast.decomposition file"),
        (header(version=2), "version 2, expected version 1"),
        (header(meta=None), "lacks 'field' or 'meta'"),
        (header(field={"kind": "spline"}), "unknown field 'spline'; expected one of bilinear_grid, hash_grid"),
        (header(), "holds no 'raw'"),
    ],
)
def test_load_refuses_other_files(tmp_path, metadata, message):
    path = tmp_path / "other.safetensors"
    save_file({"x": np.zeros(3, np.float32)}, path, metadata=metadata)
    with pytest.raises(InputError, match=message) as caught:
        Decomposition.load(path)
    assert str(path) in str(caught.value)


def test_load_refuses_what_is_no_safetensors(tmp_path):
    make().save(tmp_path / "whole.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-100])
    for path, message in ((cut, "not a readable"), (tmp_path / "none", "no such file"), (tmp_path, "a folder")):
        with pytest.raises(InputError, match=message):
            Decomposition.load(path)


def test_loading_needs_neither_torch_nor_pillow(tmp_path):
    make().save(tmp_path / "d.safetensors")
    code = (
        "import sys; sys.modules.update(torch=None, PIL=None)\n"
        "from dvt_fast import Decomposition\n"
        "d = Decomposition.load(sys.argv[1]); print(d.query([[0.5, 0.5]]).shape, d)"
    )
    run = [sys.executable, "-c", code, str(tmp_path / "d.safetensors")]
    done = subprocess.run(run, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout == "(1, 5) Decomposition(3x4 patches, 5 channels, solver='direct')\n", done.stderr
