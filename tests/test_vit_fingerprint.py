"""The fingerprint of a ViT: it stands for the weights that its features depend on, for all of them and for no other."""

import copy

import numpy as np
import pytest

from dvt_fast import vit_weights
from dvt_fast.artifact_map import ArtifactMap
from dvt_fast.errors import InputError
from dvt_fast.vit import ViT, difference

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

# Of the tensors in the test that uses it: descriptions in files stay comparable only while this is what comes out.
GOLDEN = "318fbd6c94682530"

# These inputs are so small that more threads only wait for one another.
pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.mark.parametrize("layer, norm", [(2, False), (2, True), (-1, True), (-1, False)])
def test_it_changes_exactly_where_the_features_do(layer, norm):
    """Every parameter and buffer in turn is replaced by others."""
    vit = ViT("test_vit", weights="random", layer=layer, norm=norm)
    x = torch.randn(1, 3, *vit.size, generator=torch.Generator().manual_seed(0))
    features, fingerprint, changed = vit.features(x), vit.fingerprint, set()
    for key, value in vit.model.state_dict().items():
        before = value.clone()
        value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
        other = copy.copy(vit)
        del other.__dict__["fingerprint"]  # the one that was found before
        assert (other.fingerprint != fingerprint) == (not torch.equal(vit.features(x), features)), key
        changed |= {key} if other.fingerprint != fingerprint else set()
        value.copy_(before)
    assert {"pos_embed", "cls_token", "patch_embed.proj.weight", "blocks.2.mlp.fc2.bias"} <= changed
    assert ("norm.weight" in changed, "blocks.3.norm1.weight" in changed) == (norm, layer == -1)


def test_it_is_the_same_at_any_size():
    """As a position embedding is resampled to the size, it is taken from before."""
    made = {"own": {}, "larger": {"size": 224}, "oblong": {"size": (96, 160)}, "dense": {"stride": 8}}
    vits = [ViT("test_vit", weights="random", **options) for options in made.values()]
    assert len({vit.model.pos_embed.shape for vit in vits}) == 4
    assert len({vit.fingerprint for vit in vits}) == 1 and len({vit.describe()["fingerprint"] for vit in vits}) == 1
    assert ViT("test_vit", weights="random", seed=1).fingerprint != vits[0].fingerprint


def test_it_is_the_same_from_a_file_of_any_name(tmp_path):
    vit = ViT("test_vit", weights="random")
    torch.save(vit.model.state_dict(), tmp_path / "a.pth")
    torch.save({"model": {key: value.half() for key, value in vit.model.state_dict().items()}}, tmp_path / "half.pth")
    assert ViT("test_vit", weights=tmp_path / "a.pth").fingerprint == vit.fingerprint
    assert ViT("test_vit", weights=tmp_path / "half.pth").fingerprint != vit.fingerprint


def test_files_keep_it_so_it_must_not_change():
    state = {"b": torch.arange(6, dtype=torch.float32).reshape(2, 3), "a": torch.tensor(3), "empty": torch.zeros(0, 2)}
    assert vit_weights.fingerprint(state) == GOLDEN
    assert vit_weights.fingerprint(dict(reversed(state.items()))) == GOLDEN
    strided = state | {"b": state["b"].T.contiguous().T}
    assert vit_weights.fingerprint(strided) == GOLDEN
    others = [
        {"a": state["a"], "b": state["b"]},
        state | {"b": state["b"].reshape(3, 2)},
        state | {"b": state["b"].view(torch.int32)},
        state | {"b": state["b"].to(torch.bfloat16)},
        {"c" if key == "b" else key: value for key, value in state.items()},
    ]
    assert len({GOLDEN, *map(vit_weights.fingerprint, others)}) == 6


def test_two_descriptions():
    made = {"name": "a", "weights": "x.pth", "fingerprint": "0123", "layer": 3}
    same = ("name", "weights", "layer")
    assert difference(made, made | {"weights": "renamed.pth"}, same) is None
    assert difference(made, made | {"layer": 5}, same) == "layer 3, and this one has 5"
    expected = "weights 'x.pth' of fingerprint 0123, and this one has 'x.pth' of fingerprint 4567"
    assert difference(made, made | {"fingerprint": "4567"}, same) == expected
    old = {key: value for key, value in made.items() if key != "fingerprint"}
    assert difference(old, made, same) is None and difference(made, old, same) is None
    assert difference(old, made | {"weights": "y.pth"}, same) == "weights 'x.pth', and this one has 'y.pth'"


def test_an_artifact_map_of_other_weights_is_refused(tmp_path):
    """Weights of one name and other values; a map from before there were fingerprints loads, and is known by name."""
    vit, other = (ViT("test_vit", weights="random", seed=seed) for seed in (0, 1))
    for folder, one in (("a", vit), ("b", other)):
        (tmp_path / folder).mkdir()
        torch.save(one.model.state_dict(), tmp_path / folder / "w.pth")
    vit, other = (ViT("test_vit", weights=tmp_path / folder / "w.pth") for folder in "ab")
    known = ArtifactMap(np.zeros((*vit.grid, vit.dim), np.float32), {"vit": vit.describe()})
    known.save(tmp_path / "map.safetensors")
    known = ArtifactMap.load(tmp_path / "map.safetensors")
    known.check(vit)
    expected = r"weights 'w\.pth' of fingerprint \w{16}, and this one has 'w\.pth' of fingerprint"
    with pytest.raises(InputError, match=expected) as caught:
        known.check(other)
    assert "\n" not in str(caught.value)
    del known.meta["vit"]["fingerprint"]
    known.save(tmp_path / "old.safetensors")
    old = ArtifactMap.load(tmp_path / "old.safetensors")
    old.check(vit)
    old.check(other)
    with pytest.raises(InputError, match=r"weights 'w\.pth', and this one has 'random, seed 0'"):
        old.check(ViT("test_vit", weights="random"))
