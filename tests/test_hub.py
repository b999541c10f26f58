"""Weights of ViTs and denoisers by name: from a cache of the hub made here, from a small hub, and with no network."""

import copy
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dvt_fast import hub, vit_weights
from dvt_fast import vit as vit_module
from dvt_fast.errors import InputError, WeightsError
from dvt_fast.vit import ViT

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
huggingface_hub = pytest.importorskip("huggingface_hub")
safetensors_torch = pytest.importorskip("safetensors.torch")

from dvt_fast.denoiser import Denoiser, load_denoiser  # noqa: E402

COMMIT = "0123456789abcdef0123456789abcdef01234567"

# These inputs are so small that more threads only wait for one another.
pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Puts files where the hub's client keeps what it has fetched; asking the network is a failure."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "_reachable", lambda endpoint: pytest.fail("the network was asked for a cached file"))

    def put(repo, file, commit=COMMIT):
        folder = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
        path = folder / "snapshots" / commit / file
        path.parent.mkdir(parents=True, exist_ok=True)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(COMMIT)
        return path

    return put


@pytest.fixture(scope="module")
def vit():
    return ViT("test_vit", weights="random", seed=7)


def test_a_file_of_a_repository(cache, vit):
    state = vit.model.state_dict()
    torch.save(state, cache("someone/vits", "sub/folder/w.pth"))
    safetensors_torch.save_file(state, cache("someone/vits", "w.safetensors"))
    torch.save(ViT("test_vit", weights="random").model.state_dict(), cache("someone/vits", "w.pth", "f" * 40))
    for name in ("hf://someone/vits/sub/folder/w.pth", "hf://someone/vits/w.safetensors"):
        loaded = ViT("test_vit", weights=name)
        assert loaded.describe()["weights"] == name and loaded.fingerprint == vit.fingerprint
    other = ViT("test_vit", weights=f"hf://someone/vits@{'f' * 40}/w.pth")
    assert other.fingerprint == ViT("test_vit", weights="random").fingerprint != vit.fingerprint


def test_the_embedded_models_format_from_a_repository(cache):
    embedded = ViT("dvt_mini")
    cache("someone/minis", "mini.safetensors").symlink_to(vit_module.MINI_PATH)
    assert ViT("dvt_mini", weights="hf://someone/minis/mini.safetensors").fingerprint == embedded.fingerprint


@pytest.mark.parametrize("folder", ["voc_distilled", "imgnet_distilled"])
@pytest.mark.parametrize("name", ["test_vit", "test_vit.r160_in1k"])
def test_distilled_by_a_short_name(folder, name, cache, vit):
    """The file is named after the model's full name in timm; inside is the state of a wrapper around the model."""
    state = {f"model.{key}": value for key, value in vit.model.state_dict().items()}
    torch.save({"model": state, "optimizer": {"step": 3}}, cache("jjiaweiyang/DVT", f"{folder}/test_vit.r160_in1k.pth"))
    loaded = ViT(name, weights=folder)
    assert loaded.fingerprint == vit.fingerprint
    assert loaded.describe()["weights"] == f"hf://jjiaweiyang/DVT/{folder}/test_vit.r160_in1k.pth"


@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch14_dinov2.lvd142m",
        "vit_base_patch14_reg4_dinov2.lvd142m",
        "deit3_base_patch16_224.fb_in1k",
        "vit_base_patch16_clip_384.laion2b_ft_in12k_in1k",
        "vit_base_patch16_224.dino",
        "vit_base_patch16_224.mae",
        "eva02_base_patch16_clip_224.merged2b",
        "vit_base_patch16_384.augreg_in21k_ft_in1k",
    ],
)
def test_every_published_distilled_vit(name, cache, monkeypatch):
    """The ViTs of the reference's table, cut to one block; their checkpoints are models made with `num_classes=0`."""
    create, built = timm.create_model, []

    def one_block(wanted, **options):
        if not built:
            built.append(create(wanted, depth=1, **options))
        return copy.deepcopy(built[0])

    monkeypatch.setattr(timm, "create_model", one_block)
    made = ViT(name, weights="random")
    for value in made.model.state_dict().values():
        value.add_(1)  # so that nothing in it is as it was built
    state = {f"model.{key}": value for key, value in made.model.state_dict().items()}
    torch.save({"model": state}, cache("jjiaweiyang/DVT", f"voc_distilled/{name}.pth"))
    assert ViT(name, weights="voc_distilled", size=made.patch_size[0] * 4).fingerprint == made.fingerprint


@pytest.mark.parametrize("name", ["hf://", "hf://someone", "hf://someone/vits", "hf://someone//w.pth", "hf:///vits/w"])
def test_a_name_without_its_parts(name, cache):
    with pytest.raises(WeightsError, match="expected hf://OWNER/REPOSITORY/path") as caught:
        ViT("test_vit", weights=name)
    assert repr(name) in str(caught.value)


def test_other_names_that_cannot_be(cache):
    with pytest.raises(WeightsError, match="there is no voc_distilled for 'dvt_mini'"):
        ViT("dvt_mini", weights="voc_distilled")
    with pytest.raises(WeightsError, match=r"could not get hf://some one/v!ts/w\.pth \(HFValidationError") as caught:
        ViT("test_vit", weights="hf://some one/v!ts/w.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("folder", ["voc_denoised", "imgnet_denoised"])
def test_published_denoisers_by_name(folder, cache, vit):
    state, file = Denoiser(vit.dim, (6, 6)).state_dict(), f"{folder}/test_vit.r160_in1k.pth"
    torch.save({"denoiser": state, "step": 1}, cache("jjiaweiyang/DVT", file))
    for loaded in (
        Denoiser.from_pretrained("jjiaweiyang/DVT", file),
        load_denoiser(folder, vit),
        load_denoiser(f"hf://jjiaweiyang/DVT/{file}", vit),
    ):
        assert vit_weights.fingerprint(loaded.state_dict()) == vit_weights.fingerprint(state)
    for options in ({"layer": 2}, {"norm": False}):
        with pytest.raises(InputError, match=f"{folder} is for the last block after the final norm: use layer=-1"):
            load_denoiser(folder, ViT("test_vit", weights="random", **options))


def test_names_that_have_no_denoiser(cache, monkeypatch, vit):
    with pytest.raises(InputError, match="voc_distilled is a ViT that needs no denoiser"):
        load_denoiser("voc_distilled", vit)
    with pytest.raises(WeightsError, match="there is no voc_denoised for 'dvt_mini'"):
        load_denoiser("voc_denoised", ViT("dvt_mini"))
    monkeypatch.setattr(hub, "_reachable", lambda endpoint: False)
    with pytest.raises(WeightsError, match=r"no network: .* hf://jjiaweiyang/DVT/voc_denoised/test_vit.*: give the"):
        load_denoiser("voc_denoised", vit)
    with pytest.raises(WeightsError, match=r"no network: .* hf://jjiaweiyang/DVT/a\.pth: give the path of a file"):
        Denoiser.from_pretrained("jjiaweiyang/DVT", "a.pth")


def test_a_damaged_file_in_the_cache(cache):
    cache("someone/vits", "w.pth").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(WeightsError, match=r"w\.pth: cannot be read as weights") as caught:
        ViT("test_vit", weights="hf://someone/vits/w.pth")
    assert "\n" not in str(caught.value)


def test_offline_by_wish(cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"HF_HUB_OFFLINE is set, and hf://a/b/w\.pth is not in the cache: give"):
        ViT("test_vit", weights="hf://a/b/w.pth")


# In processes of their own: the hub's client reads its settings when it is imported.


def fetch(name, home, endpoint):
    clean = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    clean |= {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    clean["PYTHONPATH"] = os.pathsep.join(sys.path)
    code = "import sys; from dvt_fast import hub; print(hub.fetch(sys.argv[1], otherwise='do something else'))"
    return subprocess.run([sys.executable, "-c", code, name], env=clean, capture_output=True, text=True, timeout=60)


def test_no_network_is_one_line_at_once(tmp_path):
    done = fetch("hf://someone/vits/w.pth", tmp_path, "http://127.0.0.1:9")
    assert done.returncode != 0 and "Retrying" not in done.stderr
    expected = "no network: http://127.0.0.1:9 cannot be reached for hf://someone/vits/w.pth: do something else"
    assert done.stderr.strip().splitlines()[-1] == f"dvt_fast.errors.WeightsError: {expected}"


@pytest.fixture
def server():
    """A hub of one file, on this machine: its address, and the paths that were asked for."""
    asked, content = [], b"the weights"

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            found = self.path == "/someone/vits/resolve/main/sub/w.pth"
            self.send_response(200 if found else 404)
            self.send_header("X-Repo-Commit", COMMIT)
            if found:
                self.send_header("ETag", '"abc"')
            else:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", str(len(content) if found else 0))
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}", asked
        running.shutdown()


def test_fetched_once_and_then_from_the_cache(server, tmp_path):
    endpoint, asked = server
    done = fetch("hf://someone/vits/sub/w.pth", tmp_path, endpoint)
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    assert path.name == "w.pth" and path.read_bytes() == b"the weights" and asked
    asked.clear()
    again = fetch("hf://someone/vits/sub/w.pth", tmp_path, "http://127.0.0.1:9")
    assert again.stdout.strip() == str(path) and not asked
    absent = fetch("hf://someone/vits/absent.pth", tmp_path, endpoint)
    last = absent.stderr.strip().splitlines()[-1]
    assert "WeightsError: could not get hf://someone/vits/absent.pth (" in last and last.endswith("do something else")
