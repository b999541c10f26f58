"""Files of denoisers: ours and the reference's, in every wrapping; and what is refused."""

import json
import shutil

import numpy as np
import pytest

from dvt_fast import files
from dvt_fast import vit as vit_module
from dvt_fast.errors import InputError, NonFiniteError, OutputError, WeightsError

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
safetensors_torch = pytest.importorskip("safetensors.torch")
from safetensors import safe_open  # noqa: E402

from dvt_fast.denoiser import KINDS, Denoiser, checkpoint  # noqa: E402
from dvt_fast.denoiser.checkpoint import load_denoiser  # noqa: E402
from dvt_fast.vit import ViT  # noqa: E402

DIM, GRID = 64, (6, 6)
SEEN = {"name": "a", "weights": "random, seed 0", "size": [48, 48], "stride": [8, 8], "layer": 3, "norm": "none",
        "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}  # fmt: skip

# These inputs are so small that more threads only wait for one another.
pytestmark = pytest.mark.usefixtures("one_torch_thread")


def made(*args, **options):
    """A denoiser in which no parameter is as it was built."""
    denoiser = Denoiser(*(args or (DIM, GRID)), **options).eval()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in denoiser.parameters():
            value.copy_(0.2 * torch.randn(value.shape, generator=random))
    return denoiser


def assert_same(a, b):
    assert (a.kind, a.dim, a.grid, a.num_blocks, a.num_heads) == (b.kind, b.dim, b.grid, b.num_blocks, b.num_heads)
    assert a.state_dict().keys() == b.state_dict().keys()
    for key, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[key]), key


# Ours


@pytest.mark.parametrize("num_blocks", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_goes_through_a_file(kind, num_blocks, tmp_path):
    denoiser = made(DIM, (3, 5), num_blocks, kind=kind, num_heads=4)
    denoiser.meta = {"vit": SEEN, "training": {"steps": 7, "loss": [0.5, 0.25]}}
    denoiser.save(tmp_path / "d.safetensors")
    loaded = Denoiser.from_checkpoint(str(tmp_path / "d.safetensors"))
    assert_same(denoiser, loaded)
    assert loaded.meta == denoiser.meta and not loaded.training
    assert loaded.to_bytes() == denoiser.to_bytes() == (tmp_path / "d.safetensors").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["d.safetensors"]


@pytest.mark.parametrize("dtype, tolerance", [("float32", 0), ("float16", 2**-11), ("bfloat16", 2**-8)])
def test_types(dtype, tolerance, tmp_path):
    denoiser = made()
    path = tmp_path / "no.suffix"
    denoiser.save(path, dtype)
    loaded = Denoiser.from_checkpoint(path)
    for key, value in denoiser.state_dict().items():
        found = loaded.state_dict()[key]
        assert found.dtype == torch.float32
        assert ((found - value).abs() <= tolerance * value.abs() + 1e-7).all(), key
    with safe_open(path, "pt") as file:
        assert {str(file.get_tensor(key).dtype) for key in file.keys()} == {f"torch.{dtype}"}  # noqa: SIM118
    x = np.random.default_rng(0).standard_normal((*GRID, DIM), np.float32)
    assert np.abs(loaded.denoise(x) - denoiser.denoise(x)).max() <= 40 * tolerance


def test_what_version_1_looks_like(tmp_path):
    """Files out there stay readable only while nothing of this changes."""
    denoiser = made(DIM, (3, 5), 2, num_heads=4)
    denoiser.meta = {"vit": SEEN, "training": {"steps": 7}}
    denoiser.save(tmp_path / "d")
    with safe_open(tmp_path / "d", "pt") as file:
        header, keys = json.loads(file.metadata()["dvt_fast"]), set(file.keys())
    assert header == {
        "format": "dvt_fast.denoiser",
        "version": 1,
        "kind": "block",
        "dim": 64,
        "grid": [3, 5],
        "num_blocks": 2,
        "num_heads": 4,
        "vit": SEEN,
        "training": {"steps": 7},
    }
    parts = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    tensors = {f"denoiser.{i}.{part}.{what}" for i in range(2) for part in parts for what in ("weight", "bias")}
    assert keys == tensors | {"pos_embed"}


def test_what_is_not_saved(tmp_path):
    denoiser = made()
    with pytest.raises(InputError, match="dtype must be one of float32, float16, bfloat16, got 'int8'"):
        denoiser.save(tmp_path / "d", "int8")
    with torch.no_grad():
        denoiser.pos_embed[0, 0, 0] = 1e5
    denoiser.to_bytes("bfloat16")
    denoiser.meta = {"vit": without(SEEN, "size")}
    with pytest.raises(InputError, match=r"meta\['vit'\] lacks size: give what ViT.describe\(\) says"):
        denoiser.save(tmp_path / "d")
    denoiser.meta = {}
    with pytest.raises(NonFiniteError, match="pos_embed holds numbers too large for float16: save as float32"):
        denoiser.save(tmp_path / "d", "float16")
    with torch.no_grad():
        denoiser.pos_embed[0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="pos_embed holds NaN or infinity: not saved"):
        denoiser.save(tmp_path / "d")
    assert not list(tmp_path.iterdir())
    with pytest.raises(OutputError, match="absent"):
        made().save(tmp_path / "absent" / "d")


# The reference's


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


WRAPPED = {
    "released": lambda s: {"denoiser": s, "optimizer": {"state": {0: {"step": 3}}, "param_groups": [{}]}, "step": 3},
    "with_vit": lambda s: {"model": s | {"vit.model.patch_embed.proj.weight": torch.zeros(2), "vit.model.x": s}},
    "distributed": lambda s: {"denoiser": prefixed("module.", s | {"vit.model.norm.weight": torch.zeros(2)})},
    "compiled": lambda s: {"state_dict": prefixed("_orig_mod.module.", s)},
    "lightning": lambda s: {"state_dict": prefixed("model.", s)},
    "plain": lambda s: s,
}


@pytest.mark.parametrize("num_blocks, kind", [(1, "block"), (3, "block"), (1, "block-nopos"), (2, "block-nopos")])
@pytest.mark.parametrize("wrapping", WRAPPED)
def test_the_references_files(wrapping, num_blocks, kind, tmp_path):
    """Width, heads, grid, number of blocks and kind are told from the tensors."""
    denoiser = made(128, (5, 5), num_blocks, kind=kind)
    torch.save(WRAPPED[wrapping](dict(denoiser.state_dict())), tmp_path / "ckpt.pth")
    loaded = Denoiser.from_checkpoint(tmp_path / "ckpt.pth", grid=None if kind == "block" else 5)
    assert_same(denoiser, loaded)
    assert loaded.num_heads == 2 and loaded.meta == {} and not loaded.training


def test_a_safetensors_of_the_references_tensors(tmp_path):
    denoiser = made()
    safetensors_torch.save_file(prefixed("module.", denoiser.state_dict()), tmp_path / "d.safetensors")
    assert_same(denoiser, Denoiser.from_checkpoint(tmp_path / "d.safetensors"))


def test_of_half_precision(tmp_path):
    denoiser = made()
    torch.save({"denoiser": denoiser.half().state_dict()}, tmp_path / "half.pth")
    assert_same(denoiser.float(), Denoiser.from_checkpoint(tmp_path / "half.pth"))


def test_an_oblong_grid_must_be_said(tmp_path):
    denoiser = made(DIM, (3, 5), num_heads=2)
    path = tmp_path / "oblong.pth"
    torch.save({"denoiser": denoiser.state_dict()}, path)
    with pytest.raises(WeightsError, match=r"its 15 positions are no square grid: say which it is with grid=\(h, w\)"):
        Denoiser.from_checkpoint(path)
    with pytest.raises(WeightsError, match="has 15 positions, which are no grid of 4 x 4"):
        Denoiser.from_checkpoint(path, grid=4)
    with pytest.raises(InputError, match="grid must be an int or a pair"):
        Denoiser.from_checkpoint(path, grid="3x5")
    assert_same(denoiser, Denoiser.from_checkpoint(path, grid=(3, 5), num_heads=2))
    assert Denoiser.from_checkpoint(path, grid=(3, 5)).num_heads == 1
    with pytest.raises(WeightsError, match=r"oblong\.pth: .*num_heads must divide dim, got dim 64 and num_heads 3"):
        Denoiser.from_checkpoint(path, grid=(3, 5), num_heads=3)


def test_what_our_file_says_is_not_overruled(tmp_path):
    made().save(tmp_path / "d")
    assert_same(made(), Denoiser.from_checkpoint(tmp_path / "d", grid=6, num_heads=1))
    with pytest.raises(WeightsError, match=r"is for grid \(6, 6\), as the file says, got grid \(4, 9\)"):
        Denoiser.from_checkpoint(tmp_path / "d", grid=(4, 9))
    with pytest.raises(WeightsError, match="is for num_heads 1, as the file says, got num_heads 2"):
        Denoiser.from_checkpoint(tmp_path / "d", num_heads=2)


# What is refused


class NotTensors:
    pass


def without(state, *keys):
    return {key: value for key, value in state.items() if key not in keys}


BAD = {
    "missing": (lambda s: without(s, "denoiser.attn.proj.bias"), r"missing denoiser\.attn\.proj\.bias"),
    "no_start": (lambda s: without(s, "denoiser.norm1.weight"), r"holds no denoiser: expected denoiser\.norm1\.weight"),
    "unexpected": (lambda s: s | {"denoiser.ls1.gamma": torch.zeros(DIM)}, r"unexpected denoiser\.ls1\.gamma"),
    "gap": (
        lambda s: (
            prefixed("denoiser.0.", {"norm1.weight": s["pos_embed"][0, 0]})
            | prefixed("denoiser.2.", {"norm1.weight": s["pos_embed"][0, 0]})
        ),
        r"missing denoiser\.0\.attn.* and 2\d more",
    ),
    "narrow": (
        lambda s: s | {"denoiser.norm1.weight": torch.zeros(32)},
        r"attn\.proj\.bias \(expected \[32\], got \[64",
    ),
    "no_width": (lambda s: s | {"denoiser.norm1.weight": torch.zeros(0)}, "dim must be an int of at least 1"),
    "positions": (lambda s: s | {"pos_embed": torch.zeros(1, 36, 65)}, r"pos_embed \(expected \[1, 36, 64\], got"),
    "rank": (
        lambda s: s | {"pos_embed": torch.zeros(36, DIM)},
        r"pos_embed \(expected \[1, 36, 64\], got \[36, 64\]",
    ),
    "infinite": (
        lambda s: s | {"pos_embed": torch.full((1, 36, DIM), torch.inf)},
        "pos_embed holds NaN or infinity",
    ),
    "vit": (lambda s: {"model": {"model.patch_embed.proj.weight": torch.zeros(2)}}, "holds a ViT, expected a denoiser"),
    "only_vit": (lambda s: {"denoiser": {"vit.model.norm.bias": torch.zeros(2)}}, "got nothing beside a ViT"),
    "code": (lambda s: {"denoiser": s, "args": NotTensors()}, "more than tensors"),
    "list": (lambda s: [s], "holds no weights"),
    "nothing": (lambda s: {"denoiser": {}}, "holds no weights"),
}


@pytest.mark.parametrize("kind", BAD)
def test_foreign_checkpoints(kind, tmp_path):
    make, message = BAD[kind]
    path = tmp_path / f"{kind}.pth"
    torch.save(make(dict(made().state_dict())), path)
    with pytest.raises(WeightsError, match=message) as caught:
        Denoiser.from_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ""])
@pytest.mark.parametrize("content", ["absent", "empty", "text", "cut", "folder", "unreadable"])
def test_files_that_cannot_be_read(content, suffix, tmp_path, monkeypatch):
    path = tmp_path / f"{content}{suffix}"
    if content in ("cut", "unreadable"):
        made().save(path) if suffix != ".pth" else torch.save(made().state_dict(), path)
    if content == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif content == "unreadable":
        monkeypatch.setattr("builtins.open", lambda *args, **options: (_ for _ in ()).throw(PermissionError(13, "no")))
    elif content == "folder":
        path.mkdir()
    elif content != "absent":
        path.write_text("" if content == "empty" else "these are no weights")
    with pytest.raises(WeightsError) as caught:
        Denoiser.from_checkpoint(path)
    monkeypatch.undo()
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_every_cut_of_our_file_is_refused(tmp_path):
    data, path = made(8, (1, 2), kind="map").to_bytes(), tmp_path / "d"
    for length in range(1, len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(WeightsError):
            Denoiser.from_checkpoint(path)
    path.write_bytes(data)
    Denoiser.from_checkpoint(path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"version": 2}, r"version 2, and this dvt-fast reads up to 1: upgrade dvt-fast"),
        ({"format": "dvt_fast.vit"}, r"holds a dvt_fast\.vit, expected a dvt_fast\.denoiser"),
        ({"kind": "later"}, "unknown kind of denoiser 'later'"),
        ({"kind": ["block"]}, "what it describes is no denoiser"),
        ({"kind": "conv1"}, r"kind 'conv1': missing denoiser\.conv\.bias"),
        ({"kind": "map"}, "kind 'map': unexpected"),
        ({"dim": 32}, r"denoiser\.attn\.proj\.bias \(expected \[32\], got \[64\]\)"),
        ({"dim": "64"}, "dim must be an int"),
        ({"dim": 10**12}, "what it describes is no denoiser"),
        ({"dim": 10**6}, r"denoiser\.attn\.proj\.bias \(expected \[1000000\], got \[64\]\)"),
        ({"grid": [10**4, 10**5]}, r"pos_embed \(expected \[1, 1000000000, 64\], got \[1, 36, 64\]\)"),
        ({"grid": [10**30, 1]}, "what it describes is no denoiser"),
        ({"grid": [2**32, 2**31], "kind": "rotary"}, "what it describes is no denoiser"),
        ({"num_blocks": 2}, r"missing denoiser\.0"),
        ({"num_blocks": 10**9}, "says that it has 1000000000 blocks, and holds 13 tensors"),
        ({"num_blocks": 10**9, "kind": "map"}, "says that it has 1000000000 blocks"),
        ({"num_heads": 5}, "num_heads must divide dim"),
        ({"grid": [5, 5]}, r"pos_embed \(expected \[1, 25, 64\], got \[1, 36, 64\]\)"),
        ({"grid": 36}, "metadata does not describe a dvt_fast.denoiser of version 1"),
        ({"grid": [6, 6.0]}, "grid must be an int or a pair"),
        ({"vit": "dvt_mini"}, "metadata does not describe"),
        ({"vit": without(SEEN, "size", "mean")}, "what it says of the ViT it is for lacks size, mean$"),
        ({"vit": SEEN | {"weights": None}}, "what it says of the ViT it is for lacks weights$"),
        ({"vit": {}}, "what it says of the ViT it is for lacks name, weights, size"),
        (None, "metadata does not describe"),
        ("[]", "metadata does not describe"),
        ("{", "metadata does not describe"),
    ],
    ids=str,
)
def test_headers_that_cannot_be(change, message, tmp_path):
    denoiser, path = made(), tmp_path / "d"
    denoiser.save(path)
    with safe_open(path, "pt") as file:
        header, state = json.loads(file.metadata()["dvt_fast"]), denoiser.state_dict()
    text = change if isinstance(change, str) else json.dumps(header | change if change else {})
    safetensors_torch.save_file(state, path, metadata={"dvt_fast": text})
    with pytest.raises(WeightsError, match=message) as caught:
        Denoiser.from_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_other_files_of_ours_are_named(tmp_path):
    maps = files.pack_safetensors({"artifacts": np.zeros((*GRID, DIM), np.float32)}, "dvt_fast.artifact_map", 1)
    (tmp_path / "map").write_bytes(maps)
    with pytest.raises(WeightsError, match=r"holds a dvt_fast\.artifact_map, expected a dvt_fast\.denoiser"):
        Denoiser.from_checkpoint(tmp_path / "map")
    with pytest.raises(WeightsError, match=r"holds a dvt_fast\.vit, expected a dvt_fast\.denoiser"):
        Denoiser.from_checkpoint(vit_module.MINI_PATH)


# With a ViT


@pytest.fixture(scope="module")
def vit():
    return ViT("test_vit", weights="random", layer=3, norm=False)


@pytest.fixture
def fitting(vit):
    denoiser = made(vit.dim)
    denoiser.meta = {"vit": json.loads(json.dumps(vit.describe()))}
    return denoiser


def test_check_takes_the_vit_at_any_size(fitting, vit, tmp_path):
    fitting.check(vit)
    fitting.check(ViT("test_vit", weights="random", layer=3, norm=False, size=(64, 96), stride=8))
    torch.save(vit.model.state_dict(), tmp_path / "renamed.pth")
    fitting.check(ViT("test_vit", weights=tmp_path / "renamed.pth", layer=3, norm=False))
    made(vit.dim).check(ViT("test_vit", weights="random", seed=5))  # it does not say what it is for


@pytest.mark.parametrize(
    "options, message",
    [
        ({"layer": 2, "norm": False}, "layer 3, and this one has 2"),
        ({"layer": 3, "norm": True}, "norm 'none', and this one has 'final'"),
        (
            {"layer": 3, "norm": False, "seed": 1},
            r"weights 'random, seed 0' of fingerprint \w{16}, and this one",
        ),
    ],
    ids=str,
)
def test_check_refuses_another_vit(options, message, fitting):
    with pytest.raises(InputError, match=f"the denoiser was trained for a ViT with {message}") as caught:
        fitting.check(ViT("test_vit", weights="random", **options))
    assert "\n" not in str(caught.value)


def test_check_refuses_another_name_and_another_width(fitting, vit):
    with pytest.raises(InputError, match="for features of 32 channels, those of test_vit have 64"):
        made(32, GRID).check(vit)
    fitting.meta["vit"]["name"] = "dvt_mini"
    with pytest.raises(InputError, match="a ViT with name 'dvt_mini', and this one has 'test_vit'"):
        fitting.check(vit)


def test_load_denoiser_from_a_path(fitting, vit, tmp_path):
    fitting.save(tmp_path / "d.safetensors")
    for spec in (tmp_path / "d.safetensors", str(tmp_path / "d.safetensors")):
        assert_same(load_denoiser(spec, vit), fitting)
    with pytest.raises(InputError, match="trained for a ViT with layer 3"):
        load_denoiser(tmp_path / "d.safetensors", ViT("test_vit", weights="random"))
    with pytest.raises(WeightsError, match="absent: no such file"):
        load_denoiser(tmp_path / "absent", vit)


@pytest.mark.parametrize("norm, name", [(False, "dvt_mini_denoiser"), (True, "dvt_mini_denoiser_norm")])
def test_load_denoiser_that_comes_with_the_mini(norm, name, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "ASSETS", tmp_path)
    mini = ViT("dvt_mini", norm=norm)
    with pytest.raises(WeightsError, match=f"{name}.safetensors: no such file"):
        load_denoiser(None, mini)
    denoiser = made(mini.dim)
    denoiser.meta = {"vit": mini.describe()}
    denoiser.save(tmp_path / f"{name}.safetensors")
    assert_same(load_denoiser(None, mini), denoiser)
    with pytest.raises(InputError, match="a ViT with layer"):
        load_denoiser(None, ViT("dvt_mini", norm=norm, layer=0))


def test_no_denoiser_comes_with_other_vits(vit):
    with pytest.raises(InputError, match="no denoiser comes with test_vit: give a file, or one of voc_denoised"):
        load_denoiser(None, vit)


def test_a_denoiser_and_a_vit_are_not_taken_for_one_another(tmp_path, vit):
    torch.save({"model": prefixed("model.", vit.model.state_dict())}, tmp_path / "vit.pth")
    with pytest.raises(WeightsError, match="holds a ViT, expected a denoiser: give it as the weights of the ViT"):
        load_denoiser(tmp_path / "vit.pth", vit)
    made(vit.dim).save(tmp_path / "d.safetensors")
    shutil.copy(tmp_path / "d.safetensors", tmp_path / "copy.pth")
    for name in ("d.safetensors", "copy.pth"):
        with pytest.raises(WeightsError, match="holds a denoiser, expected a ViT"):
            ViT("test_vit", weights=tmp_path / name)
