"""The engine file: what it describes is what timm and the denoiser compute, and what it cannot describe is refused."""

import copy
import json
import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from safetensors.torch import load, save  # noqa: E402

from dvt_fast.denoiser import KINDS, load_denoiser  # noqa: E402
from dvt_fast.engine.export import to_bytes  # noqa: E402
from dvt_fast.errors import InputError, NonFiniteError  # noqa: E402
from dvt_fast.reference.engine import evaluate  # noqa: E402
from dvt_fast.vit import ViT  # noqa: E402
from engine_samples import FAMILIES, distance, lively_denoiser, lively_vit, noise, read_header  # noqa: E402

TINY = "vit_tiny_patch16_224"
ROTARY = [name for name in FAMILIES if any(part in name for part in ("eva02", "rope", "pe_core", "dinov3", "sapiens2"))]
CONVOLUTIONS = ("conv1", "conv3")

# These inputs are so small that more threads only wait for one another.
pytestmark = pytest.mark.usefixtures("one_torch_thread")


def in_float64(vit, images):
    """`vit.features` in double precision, but for timm's own float32 in positions."""
    vit = copy.copy(vit)
    vit.model = copy.deepcopy(vit.model).double()
    with torch.no_grad():
        return vit._tokens(images.double())[0].reshape(len(images), *vit.grid, vit.dim)


def change_header(data, change):
    """The file with another header."""
    header, _ = read_header(data)
    change(header)
    return save(load(data), metadata={"dvt_fast": json.dumps(header)})


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name):
    """Another size than the model's own, with overlapping patches: the file says what timm computes."""
    patch = int(name.split("patch")[1][:2])
    vit = lively_vit(name, size=(3 * patch, 4 * patch), stride=patch // 2)
    images = noise(2, 3, *vit.size)
    data = to_bytes(vit, None)
    header, _ = read_header(data)

    truth = in_float64(vit, images)
    raw, features = evaluate(data, images)
    assert raw is features and features.shape == (2, 5, 7, vit.dim)
    assert distance(features, truth) < 1e-6  # timm's positions are float32
    assert distance(evaluate(data, images, dtype=torch.float32)[0], vit.features(images)) < 1e-5
    if header["vit"]["pos_grid"]:
        assert tuple(header["vit"]["pos_grid"]) == vit.loaded_grid != vit.grid
    assert (header["vit"]["rotary"] is not None) == (name in ROTARY)


@pytest.mark.parametrize("name", ROTARY)
def test_rotary_positions_matter(name):
    """That `test_family` tells one kind of rotary positions from another."""
    patch = int(name.split("patch")[1][:2])
    vit = lively_vit(name, size=(3 * patch, 5 * patch))
    images = noise(1, 3, *vit.size)
    data = to_bytes(vit, None)
    truth, _ = evaluate(data, images)
    for key, value in [("offset", 3.0), ("reference", [7, 3]), ("pairs", None)]:
        rotary = read_header(data)[0]["vit"]["rotary"]
        if value is None:
            value = "neighbours" if rotary["pairs"] == "halves" else "halves"
        other = change_header(data, lambda header: header["vit"]["rotary"].update({key: value}))  # noqa: B023
        assert distance(evaluate(other, images)[0], truth) > 1e-3, key


@pytest.mark.parametrize("name", ["vit_medium_patch16_gap_240", "deit3_small_patch16_224", "aimv2_large_patch14_224"])
def test_exact_at_the_own_size(name):
    """Where nothing is resampled, and no token is added to its position, which the exporter does in float32."""
    vit = lively_vit(name)
    images = noise(1, 3, *vit.size)
    assert distance(evaluate(to_bytes(vit, None), images)[0], in_float64(vit, images)) < 1e-13


@pytest.mark.parametrize("name", [TINY, "eva02_tiny_patch14_224", "vit_small_patch16_rope_224"])
def test_other_sessions_than_the_size_of_the_vit(name):
    """Positions are kept as they were loaded: a file made at one size gives what timm gives at another."""
    patch = int(name.split("patch")[1][:2])
    data = to_bytes(lively_vit(name, size=(2 * patch, 6 * patch)), None)
    other = lively_vit(name, size=(5 * patch, 3 * patch))
    images = noise(1, 3, *other.size)
    assert distance(evaluate(data, images)[0], in_float64(other, images)) < 1e-6


@pytest.mark.parametrize(
    "options",
    [{"layer": 0}, {"layer": -2, "norm": False}, {"norm": False, "stride": (4, 16)}, {"mean": (0, 0, 0), "size": 224}],
    ids=str,
)
def test_settings_of_the_vit(options):
    vit = lively_vit(TINY, blocks=3, **({"size": (48, 64)} | options))
    images = noise(1, 3, *vit.size)
    data = to_bytes(vit, None)
    header, tensors = read_header(data)
    assert distance(evaluate(data, images)[0], in_float64(vit, images)) < 1e-6
    assert header["vit"]["depth"] == vit.layer + 1
    assert {name.split(".")[2] for name in tensors if ".blocks." in name} == {str(i) for i in range(vit.layer + 1)}
    assert (header["vit"]["norm"] is None) == (not vit.norm) == ("vit.norm.weight" not in tensors)
    described = {key: tuple(header["patch_embed"][key]) for key in ("patch", "stride", "image_size", "mean", "std")}
    assert described == {
        "patch": (16, 16),
        "stride": vit.stride,
        "image_size": vit.size,
        "mean": vit.mean,
        "std": vit.std,
    }
    assert header["source"] == {"vit": vit.describe(), "denoiser": None}


@pytest.mark.parametrize(
    "changed",
    [
        {"qk_norm": True, "norm_layer": "rmsnorm", "scale_attn_norm": True, "scale_mlp_norm": True},
        {"act_layer": "relu", "qkv_bias": False, "proj_bias": False, "init_values": 0.1},
        {"act_layer": "silu", "mlp_layer": timm.layers.GluMlp, "mlp_ratio": 3},
        {"mlp_layer": timm.layers.SwiGLU, "num_heads": 6, "final_norm": False},
        {"embed_norm_layer": "layernorm", "pre_norm": True, "reg_tokens": 3, "pos_embed": "none"},
    ],
    ids=lambda changed: ",".join(changed),
)
def test_options_of_timm(changed):
    vit = lively_vit(TINY, size=(48, 64), changed=changed)
    images = noise(1, 3, *vit.size)
    assert distance(evaluate(to_bytes(vit, None), images)[0], in_float64(vit, images)) < 1e-6


def test_a_trained_position_embedding():
    """One that was trained after timm has resampled it is kept at that size."""
    vit = lively_vit("deit3_small_patch16_224", size=(48, 64))
    vit.model.pos_embed.add_(0.1 * noise(*vit.model.pos_embed.shape))
    images = noise(1, 3, *vit.size)
    data = to_bytes(vit, None)
    assert read_header(data)[0]["vit"]["pos_grid"] == [3, 4]
    assert distance(evaluate(data, images)[0], in_float64(vit, images)) < 1e-13


def test_dvt_mini_with_its_denoiser():
    vit = ViT("dvt_mini", size=(96, 128))
    denoiser = load_denoiser(None, vit)
    images = noise(2, 3, *vit.size)
    data = to_bytes(vit, denoiser)
    raw, clean = evaluate(data, images, dtype=torch.float32)
    features = vit.features(images)
    assert distance(raw, features) < 1e-5
    assert distance(clean, denoiser.denoise(features)) < 1e-5
    assert distance(clean, raw) > 0.1
    nothing, alone = evaluate(data, features, input="features", dtype=torch.float32)
    assert nothing is None and distance(alone, denoiser.denoise(features)) < 1e-5
    source = read_header(data)[0]["source"]
    assert source["vit"] == vit.describe()
    assert source["denoiser"]["vit"]["fingerprint"] == vit.fingerprint
    assert source["denoiser"]["grid"] == list(denoiser.grid)


@pytest.mark.parametrize("size", [(5, 4), (6, 9)])
@pytest.mark.parametrize("num_blocks", [1, 3])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in CONVOLUTIONS])
def test_kinds_of_denoisers(kind, num_blocks, size):
    denoiser = lively_denoiser(kind, num_blocks=num_blocks)
    features = noise(2, *size, 48)
    data = to_bytes(None, denoiser)
    header, _ = read_header(data)
    assert (header["vit"], header["patch_embed"]) == (None, None)
    assert header["denoiser"]["depth"] == (0 if kind == "map" else num_blocks)
    clean = evaluate(data, features, input="features")[1]
    with torch.no_grad():
        assert distance(clean, copy.deepcopy(denoiser).double()(features.double())) < 1e-6
    assert (
        distance(evaluate(data, features, input="features", dtype=torch.float32)[1], denoiser.denoise(features)) < 1e-5
    )


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutional_denoisers_are_refused(kind):
    with pytest.raises(InputError, match=f"of kind '{kind}': convolutions are not supported by the engine"):
        to_bytes(None, lively_denoiser(kind))


@pytest.mark.parametrize(
    "name, changed, layer",
    [
        ("beit_base_patch16_224", {}, "blocks.0.attn: Attention of timm.models.beit "),
        ("samvit_base_patch16", {"global_attn_indexes": (1,)}, "blocks.0.attn: Attention of timm.models.vision_transf"),
        ("test_vit_relpos", {}, "blocks.0.attn: RelPosAttention of "),
        ("vit_dwee_patch16_reg1_gap_256", {}, "blocks.0.attn: DiffAttention of "),
        ("vit_pwee_patch16_reg1_gap_256", {}, "blocks.0: ParallelScalingBlock of "),
        ("vit_small_patch16_18x2_224", {}, "blocks.0: ParallelThingsBlock of "),
        ("vit_base_patch16_rpn_224", {}, "blocks.0: ResPostBlock of "),
        ("vit_small_patch16_rope_mixed_224", {}, "rope: RotaryEmbeddingMixed of "),
        (TINY, {"norm_layer": "simplenorm"}, "blocks.0.norm1: SimpleNorm of "),
        (TINY, {"act_layer": "tanh"}, "blocks.0.mlp.act: "),
        (TINY, {"mlp_layer": timm.layers.GatedMlp}, "blocks.0.mlp: GatedMlp of "),
    ],
)
def test_what_does_not_fit_is_refused_by_name(name, changed, layer):
    vit = lively_vit(name, changed=changed)
    with pytest.raises(InputError) as refused:
        to_bytes(vit, None)
    assert str(refused.value).startswith(f"{name}: {layer}")
    assert str(refused.value).endswith("is not supported by the engine")


def test_parameters_that_are_not_understood_are_refused():
    """A layer of a known class with a weight more than the engine knows computes something else."""
    vit = lively_vit(TINY)
    vit.model.blocks[1].attn.gate = torch.nn.Linear(192, 192)
    with pytest.raises(InputError, match=r"blocks\.1\.attn\.gate\.bias \(and 1 more\): a parameter"):
        to_bytes(vit, None)
    vit = lively_vit(TINY)
    vit.model.blocks[1].temperature = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(InputError, match=r"blocks\.1\.temperature: a parameter of this name is not supported"):
        to_bytes(vit, None)
    vit.layer = 0  # before that block
    assert to_bytes(vit, None)


def test_blocks_that_differ_are_refused():
    vit = lively_vit(TINY)
    vit.model.blocks[1].mlp.act = torch.nn.ReLU()
    with pytest.raises(InputError, match=r"blocks\.1\.mlp: activation relu, where the blocks before have gelu, is not"):
        to_bytes(vit, None)


def test_subclasses_are_refused():
    """They may compute something else with the same weights."""

    class Doubled(timm.models.vision_transformer.Block):
        def forward(self, x, **options):
            return 2 * super().forward(x, **options)

    vit = lively_vit(TINY, changed={"block_fn": Doubled})
    with pytest.raises(InputError, match=r"blocks\.0: .*Doubled of .* is not supported"):
        to_bytes(vit, None)


def test_the_document_names_every_field_and_tensor():
    text = (Path(__file__).parents[1] / "docs" / "engine_file.md").read_text()

    def fields(value):
        for key, inner in value.items():
            yield f'"{key}":'
            if isinstance(inner, dict) and key != "source":
                yield from fields(inner)

    names = set()
    for data in [
        *(to_bytes(lively_vit(name), None) for name in FAMILIES),
        to_bytes(None, lively_denoiser("registers")),
    ]:
        header, tensors = read_header(data)
        names |= {*fields(header)}
        for name in tensors:
            layer = re.sub(r"\.\d+\.", ".I.", name.removeprefix("vit.").removeprefix("denoiser."))
            names.add("`" + re.sub(r"\.(weight|bias)$", "", layer))
    assert len(names) > 50
    assert [name for name in names if name not in text] == []


@pytest.mark.parametrize("dtype, stored", [("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16")])
def test_types_of_weights(dtype, stored):
    """Weights of linear layers are stored in the type that was asked for, all else in float32."""
    vit = lively_vit("eva02_tiny_patch14_224", size=(42, 56))
    denoiser = lively_denoiser(dim=vit.dim)
    data = to_bytes(vit, denoiser, dtype)
    _, tensors = read_header(data)
    layers = ("patch_embed.weight", "qkv.weight", "proj.weight", "fc1.weight", "fc2.weight")
    assert {name: type for name, type in tensors.items() if type != "F32" or name.endswith(layers)} == {
        name: stored for name in tensors if name.endswith(layers)
    }
    images = noise(1, 3, *vit.size)
    truth = evaluate(to_bytes(vit, denoiser), images)
    bound = {"float32": 0, "float16": 2e-3, "bfloat16": 2e-2}[dtype]
    assert all(distance(half, whole) <= bound for half, whole in zip(evaluate(data, images), truth))


def test_weights_that_are_no_numbers():
    denoiser = lively_denoiser()
    denoiser.denoiser.mlp.fc1.weight.data[3, 4] = 1e6
    assert to_bytes(None, denoiser, "bfloat16")
    with pytest.raises(NonFiniteError, match=r"denoiser\.blocks\.0\.fc1\.weight holds numbers too large for .*float16"):
        to_bytes(None, denoiser, "float16")
    denoiser.pos_embed.data[0, 2, 1] = float("nan")
    with pytest.raises(NonFiniteError, match=r"denoiser\.pos_embed holds NaN"):
        to_bytes(None, denoiser)


def test_wrong_arguments():
    with pytest.raises(InputError, match="a ViT, a denoiser or both"):
        to_bytes(None, None)
    with pytest.raises(InputError, match="dtype must be one of float32, float16, bfloat16, got 'int8'"):
        to_bytes(None, lively_denoiser(), "int8")
    with pytest.raises(InputError, match="for features of 48 channels"):
        to_bytes(lively_vit(TINY), lively_denoiser())


def test_a_real_vit(shared_data):
    """Trained weights have outliers that random ones lack."""
    vit = ViT(TINY, shared_data / "weights" / "vit_tiny_patch16_224_augreg.safetensors", size=(160, 224))
    images = vit.transform(shared_data / "images" / "n01843383_toucan.jpg")[None]
    data = to_bytes(vit, None)
    assert distance(evaluate(data, images)[0], in_float64(vit, images)) < 1e-6
    assert distance(evaluate(data, images, dtype=torch.float32)[0], vit.features(images)) < 1e-5
