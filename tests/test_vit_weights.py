"""Where a ViT's weights come from: files of every kind, the hub, the embedded model; and what is refused."""

import json
import os
import subprocess
import sys

import pytest

from dvt_fast import vit as vit_module
from dvt_fast.errors import WeightsError
from dvt_fast.vit import ViT

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
safetensors_torch = pytest.importorskip("safetensors.torch")

TINY = "vit_tiny_patch16_224"

# These inputs are so small that more threads only wait for one another.
pytestmark = pytest.mark.usefixtures("one_torch_thread")


def noise(vit):
    return torch.randn(1, 3, *vit.size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def small_state():
    """timm's test_vit, built once: (name, state dict)."""
    return "test_vit", ViT("test_vit", weights="random", seed=7).model.state_dict()


WRAPPED = {
    "plain.pth": lambda state: state,
    "model.pth": lambda state: {"model": state, "epoch": 3},
    "lightning.ckpt": lambda state: {"state_dict": {"model." + k: v for k, v in state.items()}},
    "dino.pth": lambda state: {
        "student": {},
        "teacher": {f"module.backbone.{k}": v for k, v in state.items()} | {"module.head.mlp.0.weight": torch.zeros(2)},
    },
    "distilled.pth": lambda state: {"denoiser": {"model." + k: v for k, v in state.items()}, "step": 3},
    "compiled.pt": lambda state: {"_orig_mod." + k: v for k, v in state.items()},
    "classifier.pth": lambda state: state | {"head.weight": torch.zeros(10, 64), "head.bias": torch.zeros(10)},
    "half.pth": lambda state: {k: v.half() for k, v in state.items()},
}


@pytest.mark.parametrize("kind", ["weights.safetensors", "weights.bin", *WRAPPED])
def test_weights_from_files(kind, small_state, tmp_path):
    name, state = small_state
    if kind in WRAPPED:
        torch.save(WRAPPED[kind](state), tmp_path / kind)
    else:
        safetensors_torch.save_file(state, tmp_path / kind)
    vit = ViT(name, weights=tmp_path / kind)
    tolerance = 1e-3 if kind == "half.pth" else 0
    for key, value in vit.model.state_dict().items():
        assert (value - state[key]).abs().max() <= tolerance, key
    assert vit.describe()["weights"] == kind


def test_weights_of_another_grid_are_resampled(small_state, tmp_path):
    name, state = small_state
    larger = ViT(name, weights="random", seed=7, size=192)
    torch.save(larger.model.state_dict(), tmp_path / "larger.pth")
    vit = ViT(name, weights=tmp_path / "larger.pth")
    assert vit.model.pos_embed.shape == state["pos_embed"].shape


def test_official_names_are_converted(tmp_path):
    """DINOv2's own release: registers by another name, and a mask token."""
    name = "vit_small_patch14_reg4_dinov2"
    vit = ViT(name, weights="random", size=70, norm=False)
    state = dict(vit.model.state_dict())
    official = {k: v for k, v in state.items() if k not in ("reg_token", "cls_token", "pos_embed")}
    official |= {
        "register_tokens": state["reg_token"],
        "cls_token": state["cls_token"],
        "mask_token": torch.zeros(1, 384),
    }
    official["pos_embed"] = torch.cat([torch.zeros(1, 1, 384), state["pos_embed"]], 1)
    torch.save(official, tmp_path / "dinov2_vits14_reg4_pretrain.pth")
    loaded = ViT(name, weights=tmp_path / "dinov2_vits14_reg4_pretrain.pth", size=70, norm=False)
    x = noise(vit)
    assert (loaded.features(x) - vit.features(x)).abs().max() < 0.05  # the position embedding went 5 -> 37 -> 5


def without(state, *keys):
    return {k: v for k, v in state.items() if k not in keys}


class NotTensors:
    pass


BAD_WEIGHTS = {
    "missing": (lambda s: without(s, "norm.weight", "blocks.0.attn.qkv.bias"), "missing blocks.0.attn.qkv.bias, norm"),
    "unexpected": (lambda s: s | {"blocks.99.norm1.bias": torch.zeros(1)}, "unexpected blocks.99.norm1.bias"),
    "shape": (lambda s: s | {"norm.weight": torch.zeros(3)}, r"norm.weight \(expected \[64\], got \[3\]\)"),
    "rank": (lambda s: s | {"norm.weight": torch.zeros(64, 1)}, r"norm.weight \(expected \[64\], got \[64, 1\]\)"),
    "patch": (lambda s: s | {"patch_embed.proj.weight": torch.zeros(64, 3, 8, 8)}, "patch_embed.proj.weight .expected"),
    "code": (lambda s: {"model": s, "args": NotTensors()}, "more than tensors"),
    "denoiser": (lambda s: {"denoiser": {"denoiser.norm1.bias": torch.zeros(64)}}, "holds a denoiser, expected a ViT"),
    "list": (lambda s: [1, 2], "holds no weights"),
    "empty_dict": (lambda s: {}, "holds no weights"),
}


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_weights_that_do_not_fit(kind, small_state, tmp_path):
    make, message = BAD_WEIGHTS[kind]
    path = tmp_path / f"{kind}.pth"
    torch.save(make(dict(small_state[1])), path)
    with pytest.raises(WeightsError, match=message) as caught:
        ViT(small_state[0], weights=path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", ["absent", "empty", "text", "cut", "folder"])
def test_weights_that_cannot_be_read(content, suffix, small_state, tmp_path):
    path = tmp_path / f"{content}{suffix}"
    if content == "cut":
        (torch.save if suffix == ".pth" else safetensors_torch.save_file)(small_state[1], path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif content == "folder":
        path.mkdir()
    elif content != "absent":
        path.write_text("" if content == "empty" else "these are no weights")
    with pytest.raises(WeightsError) as caught:
        ViT(small_state[0], weights=path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)


def test_no_network_is_one_line_at_once(tmp_path):
    """The hub cannot be reached: said in seconds, not after a minute of retries."""
    code = f"from dvt_fast.vit import ViT\nViT({TINY!r})"
    clean = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    clean |= {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    clean["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "WeightsError: no network" in last and "weights='random'" in last
    assert "Retrying" not in done.stderr


def test_no_pretrained_weights_anywhere():
    with pytest.raises(WeightsError, match="timm has no pretrained weights for test_vit_relpos"):
        ViT("test_vit_relpos")


# The embedded model


@pytest.fixture(scope="module")
def mini_file(tmp_path_factory):
    """A small file in the format of the embedded model."""
    config = {
        "img_size": 224,
        "patch_size": 16,
        "embed_dim": 64,
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 3.0,
        "class_token": True,
    }
    torch.manual_seed(0)
    model = timm.models.vision_transformer.VisionTransformer(**config, num_classes=0, global_pool="")
    header = {"format": "dvt_fast.vit", "version": 1, "config": config, "mean": [0.5] * 3, "std": [0.25] * 3}
    path = tmp_path_factory.mktemp("mini") / "mini.safetensors"
    state = {key: value.half() for key, value in model.state_dict().items()}
    safetensors_torch.save_file(state, path, metadata={"dvt_fast": json.dumps(header)})
    return path, model.eval(), header, state


def test_mini(mini_file):
    path, model, _, _ = mini_file
    vit = ViT("dvt_mini", weights=path, size=96)
    assert (vit.dim, vit.depth, vit.grid, vit.n_prefix) == (64, 2, (6, 6), 1)
    assert vit.mean == (0.5, 0.5, 0.5) and vit.std == (0.25, 0.25, 0.25)
    model = ViT("dvt_mini", weights=path)
    x = noise(model)
    with torch.no_grad():
        expected = mini_file[1].forward_features(x)[:, 1:]
    assert (model.features(x).flatten(1, 2) - expected).abs().max() < 0.02  # the file has float16


def test_the_embedded_mini():
    if not vit_module.MINI_PATH.is_file():
        pytest.skip("the embedded model is not in this checkout")
    vit = ViT("dvt_mini")
    assert vit.patch_size == (16, 16) and vit.describe()["weights"] == "pretrained"
    assert torch.isfinite(vit.features(noise(vit))).all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": "other"}, "expected dvt_fast.vit version 1"),
        ({"version": 2}, "version 2"),
        ({"config": {"embed_dim": 64}}, "config keys"),
        ({"mean": None}, "metadata"),
        (None, "metadata"),
    ],
)
def test_mini_with_another_header(change, message, mini_file, tmp_path):
    _, _, header, state = mini_file
    metadata = {"dvt_fast": json.dumps(header | change)} if change else {"other": "x"}
    safetensors_torch.save_file(state, tmp_path / "bad.safetensors", metadata=metadata)
    with pytest.raises(WeightsError, match=message):
        ViT("dvt_mini", weights=tmp_path / "bad.safetensors")
