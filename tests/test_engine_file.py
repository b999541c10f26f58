"""The reader of engine files: every value arrives where it belongs, and every lie is one sentence."""

import json
import struct
import time

import numpy as np
import pytest

from dvt_fast import _native
from dvt_fast.errors import InputError, NonFiniteError
from dvt_fast.files import pack_safetensors
from engine_file_samples import arrays, as_dtype, assemble, from_dtype, header, pack, take_apart, with_field

ACTIVATIONS = ["gelu", "gelu_tanh", "quick_gelu", "silu", "relu"]
HEADER = header()
ARRAYS = arrays(HEADER)
FILE = pack(HEADER, ARRAYS)


def error(file: bytes) -> str:
    """The message with which a file is refused: one line."""
    with pytest.raises((InputError, NonFiniteError)) as caught:
        _native.check_engine_file(file)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_every_value_arrives(dtype):
    read = _native.check_engine_file(pack(HEADER, ARRAYS, dtype))
    assert set(read["arrays"]) == set(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(read["arrays"][name], from_dtype(as_dtype(array, dtype), dtype).ravel(), name)


def test_every_field_arrives():
    read = _native.check_engine_file(FILE)
    norms = {"layer": {"kind": "layer", "eps": np.float32(1e-6)}, "rms": {"kind": "rms", "eps": np.float32(1e-5)}}
    for name in ("vit", "denoiser"):
        expected = HEADER[name]
        rotary = expected["rotary"] and expected["rotary"] | {"pairs": 1}
        block = {key: norm and norms[norm["kind"]] for key, norm in expected["block"].items()}
        outer = {key: expected[key] and norms[expected[key]["kind"]] for key in ("norm", "norm_pre")}
        activation = ACTIVATIONS.index(expected["activation"])
        assert read[name] == expected | outer | {"rotary": rotary, "block": block, "activation": activation}
    assert read["patch_embed"] == HEADER["patch_embed"] | {"norm": norms["layer"]}
    assert json.loads(read["source"]) == HEADER["source"]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    read = _native.check_engine_file(pack(with_field(HEADER, "vit.activation", activation), ARRAYS))
    assert read["vit"]["activation"] == ACTIVATIONS.index(activation)


@pytest.mark.parametrize(("pairs", "number"), [("halves", 0), ("neighbours", 1)])
def test_rotary_pairs(pairs, number):
    read = _native.check_engine_file(pack(with_field(HEADER, "vit.rotary.pairs", pairs), ARRAYS))
    assert read["vit"]["rotary"]["pairs"] == number


def test_values_of_float16_are_exact():
    """Every finite float16, subnormal ones and both zeros included; the reader has its own conversion."""
    only = with_field(with_field(HEADER, "vit", None), "patch_embed", None)
    only["denoiser"] |= {"dim": 1024, "depth": 0, "pos_grid": [31, 2]}
    bits = np.arange(2**16, dtype=np.uint16)
    finite = bits[(bits & 0x7C00) != 0x7C00]
    values = finite.view(np.float16)
    read = _native.check_engine_file(pack(only, {"denoiser.pos_embed": values.reshape(62, 1024)}, "F16"))
    got = read["arrays"]["denoiser.pos_embed"]
    np.testing.assert_array_equal(got.view(np.uint32), values.astype(np.float32).view(np.uint32))


def test_optional_tensors_may_be_absent():
    needed = {name: array for name, array in ARRAYS.items() if not name.endswith((".bias", ".scale1", ".scale2"))}
    needed = {name: array for name, array in needed.items() if "norm" not in name}
    assert set(_native.check_engine_file(pack(HEADER, needed))["arrays"]) == set(needed)


@pytest.mark.parametrize("name", sorted(name for name in ARRAYS if name.startswith(("vit.", "patch_embed."))))
def test_a_tensor_that_is_missing_left_over_or_misshapen_is_named(name):
    others = {key: array for key, array in ARRAYS.items() if key != name}
    missing = pack(HEADER, others)
    if name.endswith((".bias", ".scale1", ".scale2")) or "norm" in name:
        assert name not in _native.check_engine_file(missing)["arrays"]
    else:
        assert f"tensor '{name}' is missing" in error(missing)
    assert f"tensor '{name}s' is not part of the model" in error(pack(HEADER, ARRAYS | {name + "s": ARRAYS[name]}))
    shape = list(ARRAYS[name].shape)
    wrong = pack(HEADER, ARRAYS | {name: ARRAYS[name][None]})
    assert error(wrong) == f"tensor '{name}' must have shape {shape}, got {[1, *shape]}"


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["vit.blocks.1.fc2.weight", "denoiser.blocks.0.scale2", "patch_embed.bias"])
def test_a_value_that_is_not_finite_is_named(name, value, dtype):
    for at in (0, -1):
        array = ARRAYS[name].copy()
        array.flat[at] = value
        with pytest.raises(NonFiniteError, match=f"^tensor '{name}' holds NaN or infinity$"):
            _native.check_engine_file(pack(HEADER, ARRAYS | {name: array}, dtype))


HUGE = 2**63 - 1
LIES = [
    ("vit", None, "must have patch_embed where there is a vit, and only there"),
    ("patch_embed", None, "must have patch_embed where there is a vit, and only there"),
    ("source", ..., "source is missing"),
    ("source", "x", "source must be an object"),
    ("more", 1, "has the field 'more', which version 1 of dvt_fast.engine does not know"),
    ("vit.more", 1, "vit has the field 'more'"),
    ("vit.block.norm3", None, "vit.block has the field 'norm3'"),
    ("vit", [], "vit must be an object"),
    ("vit.dim", ..., "vit.dim is missing"),
    ("vit.dim", 0, "vit.dim must be a whole number from 1 to 65536, got '0'"),
    ("vit.dim", HUGE, f"vit.dim must be a whole number from 1 to 65536, got '{HUGE}'"),
    ("vit.dim", 8.0, "vit.dim must be a whole number from 1 to 65536, got '8.0'"),
    ("vit.dim", "8", "vit.dim must be a whole number from 1 to 65536, got '\"8\"'"),
    ("vit.dim", 10**30, "vit.dim must be a whole number from 1 to 65536"),
    ("vit.heads", -1, "vit.heads must be"),
    ("vit.head_dim", HUGE, "vit.head_dim must be"),
    ("vit.head_dim", 6, "vit.rotary needs a head_dim that 4 divides, got 6"),
    ("vit.hidden", 0, "vit.hidden must be"),
    ("vit.depth", HUGE, "vit.depth must be a whole number from 0 to 512"),
    ("vit.depth", 512, "tensor 'vit.blocks.2.qkv.weight' is missing"),
    ("vit.depth", 1, "tensor 'vit.blocks.1.attention_norm.bias' is not part of the model"),
    ("vit.activation", "tanh", "vit.activation must be one of gelu, gelu_tanh, quick_gelu, silu, relu, got '\"tanh\"'"),
    ("vit.gated", 1, "vit.gated must be true or false"),
    ("vit.gated", False, "tensor 'vit.blocks.0.fc1.weight' must have shape [12, 8], got [24, 8]"),
    ("vit.pos_grid", [5], "vit.pos_grid must be a list of 2 numbers"),
    ("vit.pos_grid", [0, 3], "vit.pos_grid must be a whole number from 1 to 1024, got '0'"),
    ("vit.pos_grid", [HUGE, HUGE], "vit.pos_grid must be a whole number from 1 to 1024"),
    ("vit.pos_grid", None, "tensor 'vit.pos_embed' is not part of the model"),
    ("vit.extra_tokens", HUGE, "vit.extra_tokens must be"),
    ("vit.extra_tokens", 0, "tensor 'vit.extra_tokens' is not part of the model"),
    ("vit.norm", {"kind": "batch", "eps": 1e-6}, "vit.norm.kind must be one of layer, rms, got '\"batch\"'"),
    ("vit.norm", {"kind": "layer"}, "vit.norm.eps is missing"),
    ("vit.norm", {"kind": "layer", "eps": -1e-6}, "vit.norm.eps must be a number from 0 to 1, got '-1e-06'"),
    ("vit.norm", {"kind": "rms", "eps": 0.1}, "tensor 'vit.norm.bias' is not part of the model"),
    ("vit.norm", None, "tensor 'vit.norm.bias' is not part of the model that the header describes; 2 such in all"),
    ("vit.rotary.pairs", "rows", "vit.rotary.pairs must be one of halves, neighbours"),
    ("vit.rotary.reference", [-1, 1], "vit.rotary.reference must be a number from 0 to 1e+06, got '-1'"),
    ("vit.rotary.offset", 1e300, "vit.rotary.offset must be a number from -1e+06 to 1e+06, got '1e+300'"),
    ("vit.rotary.shift", None, "vit.rotary.shift is missing"),
    ("vit.rotary", None, "tensor 'vit.rotary.bands' is not part of the model"),
    ("patch_embed.patch", [0, 3], "patch_embed.patch must be a whole number from 1 to 256"),
    ("patch_embed.stride", [3, 3], "patch_embed.stride must be at most the patch, 2, got 3"),
    ("patch_embed.stride", [1, 0], "patch_embed.stride must be a whole number"),
    ("patch_embed.stride", ..., "patch_embed.stride is missing"),
    ("patch_embed.image_size", [6, 10], "patch_embed.image_size must fit whole patches of 3 with stride 3, got 10"),
    ("patch_embed.image_size", [1, 9], "patch_embed.image_size must fit whole patches"),
    ("patch_embed.image_size", [1026, 9], "patch_embed.image_size must make at most 1024 patches"),
    ("patch_embed.image_size", [HUGE, 9], "patch_embed.image_size must be a whole number"),
    ("patch_embed.std", [1, 1, 0], "patch_embed.std must be a number from 1e-06"),
    ("patch_embed.mean", [1, 1], "patch_embed.mean must be a list of 3 numbers"),
    ("denoiser.dim", 9, "tensor 'denoiser.pos_embed' must have shape [16, 9]"),
    ("format", "dvt_fast.denoiser", "must say format 'dvt_fast.engine', got '\"dvt_fast.denoiser\"'"),
    ("format", ..., "not an engine file"),
    ("version", 2, "dvt_fast.engine version 2, and this library reads up to version 1: update it"),
    ("version", 0, "version must be a whole number from 1"),
    ("version", ..., "version is missing"),
]


@pytest.mark.parametrize(("path", "value", "message"), LIES, ids=[f"{p}={str(v)[:20]}" for p, v, _ in LIES])
def test_a_field_that_cannot_be_is_named(path, value, message):
    assert message in error(pack(with_field(HEADER, path, value), ARRAYS))


def test_vit_and_denoiser_must_fit():
    other = with_field(HEADER, "denoiser.dim", 9)
    assert "denoiser.dim must be the vit's, 8, got 9" in error(pack(other, arrays(other)))


def test_a_model_must_be_there():
    nothing = with_field(with_field(with_field(HEADER, "vit", None), "patch_embed", None), "denoiser", None)
    assert "must have a vit, a denoiser or both" in error(pack(nothing, {}))


def test_a_denoiser_alone_and_a_vit_alone():
    alone = with_field(with_field(HEADER, "vit", None), "patch_embed", None)
    read = _native.check_engine_file(pack(alone, arrays(alone)))
    assert read["vit"] is None
    assert read["patch_embed"] is None
    assert read["denoiser"]["depth"] == 1
    alone = with_field(HEADER, "denoiser", None)
    assert _native.check_engine_file(pack(alone, arrays(alone)))["denoiser"] is None


def test_a_map_of_positions_alone_needs_no_heads():
    bare = with_field(with_field(HEADER, "vit", None), "patch_embed", None)
    bare["denoiser"] |= {"depth": 0, "heads": 0, "head_dim": 0, "hidden": 0}
    read = _native.check_engine_file(pack(bare, arrays(bare)))
    assert set(read["arrays"]) == {"denoiser.pos_embed"}


def test_a_file_that_is_cut_anywhere_is_refused():
    for end in [*range(0, len(FILE), 97), len(FILE) - 1]:
        message = error(FILE[:end])
        if end >= 8:
            assert "cut" in message or "must lie within" in message


def test_bytes_after_the_tensors_are_refused():
    assert "the tensors must fill the data" in error(FILE + b"\0")


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


CONTAINER_LIES = [
    ({"x": entry(offsets=(0, 4))}, 4, "must have 8 bytes for F32 [2], got 4"),
    ({"x": entry(offsets=(0, 8))}, 4, "must lie within the 4 bytes of data, got data_offsets [0, 8]"),
    ({"x": entry(offsets=(8, 0))}, 8, "must lie within the 8 bytes of data, got data_offsets [8, 0]"),
    ({"x": entry(offsets=(-8, 0))}, 8, "data_offsets of two whole numbers of at least 0"),
    ({"x": entry(offsets=(0, 8, 8))}, 8, "data_offsets of two whole numbers"),
    ({"x": entry(offsets=(0, 2**64))}, 8, "data_offsets of two whole numbers"),
    ({"x": entry(offsets=(2**62, 2**62 + 8))}, 8, "must lie within the 8 bytes of data"),
    ({"x": entry(shape=(2**40, 2**40))}, 8, "too many elements: [1099511627776, 1099511627776]"),
    ({"x": entry(shape=(2**62, 4))}, 8, "too many elements"),
    ({"x": entry(shape=(2**61,))}, 8, "too many elements"),
    ({"x": entry(shape=(-2,))}, 8, "a shape of at most 8 whole numbers of at least 0"),
    ({"x": entry(shape=(1.5,))}, 8, "a shape of at most 8 whole numbers of at least 0"),
    ({"x": entry(shape=[1] * 9)}, 8, "a shape of at most 8 whole numbers of at least 0"),
    ({"x": entry(), "y": entry(offsets=(4, 12))}, 12, "tensor 'y' must start at byte 8 of the data"),
    ({"x": entry(), "y": entry()}, 8, "must start at byte 8 of the data"),
    ({"x": entry(), "y": entry(offsets=(12, 20))}, 20, "tensor 'y' must start at byte 8 of the data"),
    ({"x": entry(offsets=(4, 12))}, 12, "tensor 'x' must start at byte 0 of the data"),
    ({"x": entry()}, 12, "the tensors must fill the data, 12 bytes, and they end at 8"),
    ({}, 1, "the tensors must fill the data, 1 bytes, and they end at 0"),
    ({"x": entry(dtype="I64")}, 8, "must have dtype F32, F16 or BF16, got 'I64'"),
    ({"x": entry(dtype="f32")}, 8, "must have dtype F32, F16 or BF16, got 'f32'"),
    ({"x": entry() | {"more": 1}}, 8, "must have dtype, shape and data_offsets"),
    ({"x": []}, 8, "must have dtype, shape and data_offsets"),
    ({"x": {"dtype": 1, "shape": [2], "data_offsets": [0, 8]}}, 8, "must have a dtype"),
    ({"__metadata__": []}, 0, "__metadata__ must be an object"),
    ({"__metadata__": {"x": 1}}, 0, "__metadata__ must hold strings, got another kind for 'x'"),
    ({"__metadata__": {"x": "1"}}, 0, "its metadata has no 'dvt_fast'"),
    ({}, 0, "its metadata has no 'dvt_fast'"),
    ([], 0, "its header must be a JSON object"),
    ("{}, {}", 0, "expected the end of the text"),
    (" {}", 0, "its header must be a JSON object"),
    ('{"x": 1, "x": 1}', 0, "the key 'x' comes twice"),
    ('{"x": 1,}', 0, "expected a key"),
    ('{"x": [1,]}', 0, "expected a value"),
    ('{"x": 01}', 0, "expected ',' or '}'"),
    ('{"x": .5}', 0, "expected a value"),
    ('{"x": 1.}', 0, "expected a digit"),
    ('{"x": 1e}', 0, "expected a digit"),
    ('{"x": -}', 0, "expected a digit"),
    ('{"x": NaN}', 0, "expected a value"),
    ('{"x": tru', 0, "expected a value"),
    ('{"x": "', 0, "expected the end of a string"),
    ('{"x": "\\x"}', 0, "expected an escape sequence"),
    ('{"x": "\\u12g4"}', 0, "expected an escape sequence"),
    ('{"x": "\\u12', 0, "expected an escape sequence"),
    ('{"x": "\n"}', 0, "expected control characters to be escaped"),
    ('{"x" 1}', 0, "expected ':'"),
    ('{"x": {"a": 1]}', 0, "expected ',' or '}'"),
    ("", 0, "expected a value"),
    ("[" * 10**6, 0, "expected at most 32 levels"),
    ('{"x":' * 10**5, 0, "expected at most 32 levels"),
    ('{"x": [' + "0," * 10**6 + "0]}", 0, "expected at most 262144 values"),
]


@pytest.mark.parametrize(
    ("entries", "size", "message"), CONTAINER_LIES, ids=[str(lie[0])[:40] for lie in CONTAINER_LIES]
)
def test_a_container_that_lies_is_refused(entries, size, message):
    assert message in error(assemble(entries, bytes(size)))


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 2**32, 4 * 2**20 + 1])
def test_a_header_beyond_all_measure_is_refused(length):
    told = error(struct.pack("<Q", length) + b"{}")
    assert told == "not one of our safetensors files, as dvt-fast export writes them"


def test_a_header_longer_than_the_file_is_refused():
    assert error(struct.pack("<Q", 3) + b"{}") == "the file is cut: its header has 3 bytes, and 2 are there"


@pytest.mark.parametrize(
    "raw", [b"\xff", b"\xc3", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe0\x9f\xbf", b"\xf0\x8f\xbf\xbf"]
)
def test_text_that_is_not_utf8_is_refused(raw):
    text = b'{"' + raw + b'": 1}'
    assert "expected UTF-8" in error(struct.pack("<Q", len(text)) + text)


def test_metadata_that_is_not_json_is_refused():
    assert "its metadata 'dvt_fast' is not JSON at byte 0" in error(pack("nothing", {}))
    assert "not an engine file" in error(pack("[]", {}))
    assert "not an engine file" in error(pack("null", {}))


def test_names_of_files_survive():
    """Python writes half a surrogate pair for a byte of a file name that is not UTF-8; other names pass through."""
    for name in ["caf\udce9.safetensors", '名前 \x00\n"\\/🦉', "é" * 1000]:
        source = {"vit": {"name": name}, "denoiser": None}
        read = _native.check_engine_file(pack(with_field(HEADER, "source", source), ARRAYS))
        assert json.loads(read["source"]) == source


def test_a_name_in_a_message_stays_short_and_on_one_line():
    message = error(pack(HEADER, ARRAYS | {"a\nb\x00" + "é" * 500: np.zeros(1, np.float32)}))
    assert message.startswith("tensor 'a?b?ééé")
    assert "...' is not part of the model" in message


def test_files_of_the_package_are_read():
    """The library that writes our files sorts tensors and pads the header, as this reader's own samples do not."""
    fields = {key: value for key, value in HEADER.items() if key not in ("format", "version")}
    written = pack_safetensors(ARRAYS, "dvt_fast.engine", 1, **fields)
    read = _native.check_engine_file(written)
    assert set(read["arrays"]) == set(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(read["arrays"][name], array.ravel())


def test_tensors_of_any_alignment():
    entries, data = take_apart(FILE)
    for spaces in range(4):
        text = json.dumps(entries) + " " * spaces
        read = _native.check_engine_file(assemble(text, data))
        np.testing.assert_array_equal(read["arrays"]["vit.norm.bias"], ARRAYS["vit.norm.bias"])


def test_a_small_vit_is_read_at_once():
    """The 5.5 million values of a ViT-Ti; the limit is ten times what it takes, as the machine may be busy."""
    large = with_field(HEADER, "denoiser", None)
    large["vit"] |= {"dim": 192, "heads": 3, "head_dim": 64, "hidden": 512, "depth": 12, "rotary": None}
    file = pack(large, arrays(large))
    assert len(file) > 20e6
    start = time.perf_counter()
    _native.check_engine_file(file)
    assert time.perf_counter() - start < 0.5
