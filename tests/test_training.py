"""`train` on a planted problem: what it learns, that it repeats and resumes to the bit, and how it stops."""

import json
import os
import resource
import shutil

import numpy as np
import pytest

from dvt_fast import Denoiser
from dvt_fast.errors import Cancelled, InputError, NonFiniteError, OutputError
from training_samples import PlantedPairs

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")
pytest.importorskip("tensorboard")

from dvt_fast.training import sources, train  # noqa: E402
from dvt_fast.training.order import held_out  # noqa: E402

# These tensors are so small that more threads only wait for one another.
pytestmark = pytest.mark.usefixtures("one_torch_thread")

SHORT = {"steps": 40, "batch": 6, "every": 10, "held_out": 0.2, "blr": 1e-2, "memory": 10**9, "variants": 1}


@pytest.fixture(scope="module")
def pairs():
    return PlantedPairs()


def log_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def cosine(a, b):
    a, b = (x.astype(np.float64) for x in (a, b))
    return float(((a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))).mean())


# What it learns


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """The block and the map, trained on 100 planted images: (pairs, held-out images, {kind: (denoiser, summary)})."""
    pairs, trained = PlantedPairs(n=100), {}
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for kind in ("block", "map"):
        out = tmp_path_factory.mktemp(kind)
        summary = train(pairs, out, kind=kind, **(SHORT | {"steps": 300, "batch": 16, "every": 100}))
        trained[kind] = Denoiser.from_checkpoint(out / "denoiser.safetensors"), summary
    torch.set_num_threads(before)
    return pairs, held_out([record.hash for record in pairs.records], 0.2), trained


def test_the_block_beats_raw_and_every_map(learned):
    pairs, chosen, trained = learned
    rest = [i for i in range(len(pairs)) if i not in chosen]
    subtracted = pairs.raw[chosen] - (pairs.raw[rest] - pairs.clean[rest]).mean(0)
    block, trained_map = (trained[kind][0].denoise(pairs.raw[chosen]) for kind in ("block", "map"))
    raw, plain, learned_map, clean = (
        cosine(x, pairs.clean[chosen]) for x in (pairs.raw[chosen], subtracted, trained_map, block)
    )
    assert raw < 0.8 and 0.9 < plain < 0.93  # what depends on the content stays
    assert abs(learned_map - plain) < 0.005
    assert clean > 0.98
    assert trained["block"][1].score == pytest.approx({"before": raw, "after": clean}, abs=1e-3)


def test_the_file_says_what_it_is(learned):
    pairs, chosen, trained = learned
    denoiser, summary = trained["block"]
    assert (denoiser.dim, denoiser.grid, denoiser.kind) == (16, (4, 5), "block")
    assert denoiser.meta["vit"] == pairs.settings["vit"]
    training = denoiser.meta["training"]
    assert training["steps"] == 300 and training["start"] == "artifacts" and training["dataset"]["dtype"] == "float16"
    assert training["data"] | {"images": 100 - len(chosen), "held_out": len(chosen)} == training["data"]
    assert training["options"]["seed"] == 0 and training["score"] == summary.score
    assert (summary.images, summary.held_out, summary.step) == (100 - len(chosen), len(chosen), 300)
    assert summary.file.endswith("denoiser.safetensors") and summary.failed == [] and not summary.stopped_early


def test_the_start_reaches_artifacts_that_steps_do_not(tmp_path):
    """Artifacts of hundreds: Adam moves a weight by about the learning rate a step."""
    far = PlantedPairs()
    far.raw[:, 0, 0] += 300
    scores = {
        start: train(far, tmp_path / start, start=start, **SHORT).score["after"] for start in ("artifacts", "random")
    }
    chosen = held_out([record.hash for record in far.records], 0.2)
    first = Denoiser.from_checkpoint(tmp_path / "artifacts" / "denoiser.safetensors").denoise(far.raw[chosen])[:, 0, 0]
    assert scores["artifacts"] > scores["random"] + 0.03
    assert np.abs(first - far.clean[chosen][:, 0, 0]).mean() < 5


@pytest.mark.parametrize("kind", ["block-nopos", "rotary", "registers", "conv1", "conv3"])
def test_every_kind_learns(kind, pairs, tmp_path):
    summary = train(pairs, tmp_path, kind=kind, **(SHORT | {"steps": 150, "every": 150}))
    assert summary.score["after"] > summary.score["before"] + 0.01
    assert Denoiser.from_checkpoint(summary.file).kind == kind


def test_log_and_board(learned, tmp_path, pairs):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = []
    train(pairs, tmp_path, **SHORT, log_every=5, watch=seen.append)
    log = log_of(tmp_path)
    assert log == seen
    steps = [line for line in log if "loss" in line]
    assert [line["step"] for line in steps] == list(range(5, 41, 5))
    assert [line["step"] for line in log if "held_out_cosine" in line] == [10, 20, 30, 40]
    for line in steps:
        assert line["loss"] == pytest.approx(line["mse"] + 1 - line["cosine"], abs=1e-5)
        assert line["grad_norm"] > 0 and line["images_per_second"] > 0
    assert steps[-1]["lr"] < max(line["lr"] for line in steps) <= 1e-2 * (6 / 256) ** 0.5
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    scalars = {name: [event.step for event in board.Scalars(name)] for name in board.Tags()["scalars"]}
    assert scalars.keys() == {
        "train/loss", "train/mse", "train/cosine", "train/lr", "train/grad_norm", "train/images_per_second",
        "held_out/cosine", "held_out/cosine_before",
    }  # fmt: skip
    assert scalars["train/loss"] == [line["step"] for line in steps] and scalars["held_out/cosine"] == [10, 20, 30, 40]
    pictures = board.Images("held_out/before_target_after")
    assert [event.step for event in pictures] == [10, 20, 30, 40] and pictures[0].width == 3 * 5 * 32


# The same bits


def files_of(out):
    return {path.name: path.read_bytes() for path in out.iterdir() if path.suffix == ".safetensors"}


@pytest.fixture(scope="module")
def undisturbed(pairs, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    train(pairs, out, workers=0, **SHORT)
    torch.set_num_threads(before)
    return out


@pytest.mark.parametrize(
    "changes", [{}, {"workers": 3}, {"memory": 0}, {"memory": 5000, "workers": 2}, {"log_every": 3}]
)
def test_the_same_bits_again(changes, pairs, undisturbed, tmp_path):
    """However samples are read and kept."""
    train(pairs, tmp_path, **({"workers": 0} | SHORT | changes))
    assert files_of(tmp_path) == files_of(undisturbed)
    assert sorted(files_of(tmp_path)) == [
        "checkpoint-00000030.safetensors", "checkpoint-00000040.safetensors", "denoiser.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize("stops, workers", [([7], 0), ([10], 2), ([13, 14, 33], 2), ([40], 0), ([1, 39], 3)])
def test_a_resumed_run_equals_one_that_never_stopped(stops, workers, pairs, undisturbed, tmp_path):
    resumed = []
    for stop in stops:
        with pytest.raises(Cancelled):
            train(pairs, tmp_path, workers=workers, progress=lambda done, total, what, stop=stop: done != stop, **SHORT)
    resumed = train(pairs, tmp_path, workers=workers, **SHORT).resumed_from
    # a stop at a step comes before the checkpoint of that step
    assert resumed == ((stops[-1] - 1) // 10 * 10 or None)
    assert files_of(tmp_path) == files_of(undisturbed)
    numbers = ("step", "loss", "mse", "cosine", "lr", "grad_norm", "held_out_cosine")
    assert [{n: line.get(n) for n in numbers} for line in log_of(tmp_path)] == [
        {n: line.get(n) for n in numbers} for line in log_of(undisturbed)
    ]


def test_a_finished_run_is_not_run_again(pairs, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    (tmp_path / "denoiser.safetensors").unlink()
    steps = []
    summary = train(pairs, tmp_path, progress=lambda *args: steps.append(args), **SHORT)
    assert steps == [] and summary.step == summary.resumed_from == 40
    assert files_of(tmp_path) == files_of(undisturbed)
    assert summary.score == Denoiser.from_checkpoint(summary.file).meta["training"]["score"]


def test_the_order_of_the_dataset_means_nothing(pairs, undisturbed, tmp_path):
    turned = PlantedPairs()
    turned.records = turned.records[::-1]
    turned.raw, turned.clean = turned.raw[::-1], turned.clean[::-1]
    train(turned, tmp_path, **SHORT)
    assert files_of(tmp_path) == files_of(undisturbed)


def test_start_over(pairs, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    summary = train(pairs, tmp_path, resume=False, **(SHORT | {"steps": 10, "seed": 1}))
    assert summary.resumed_from is None
    assert sorted(files_of(tmp_path)) == ["checkpoint-00000010.safetensors", "denoiser.safetensors"]
    assert [line["step"] for line in log_of(tmp_path)] == [10, 10]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"batch": 4}, "options.batch is 6 there and 4 here"),
        ({"steps": 80}, "options.steps is 40 there and 80 here"),
        ({"kind": "conv1"}, "denoiser.kind is 'block' there and 'conv1' here"),
        ({"start": "random"}, "denoiser.start is 'artifacts' there and 'random' here"),
        ({"precision": "bf16"}, "options.precision is 'fp32' there and 'bf16' here"),
        ({"data": PlantedPairs(n=41)}, "settings: the images are not the same, 40 there and 41 here: give"),
        ({"data": PlantedPairs(grid=(5, 4))}, r"vit.grid is \[4, 5\] there and \[5, 4\] here"),
        ({"data": PlantedPairs(dim=32)}, "vit.dim is 16 there and 32 here"),
    ],
)
def test_a_run_of_other_settings_is_refused(changes, message, pairs, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    before = files_of(tmp_path)
    arguments = SHORT | changes
    with pytest.raises(InputError, match=message) as caught:
        train(arguments.pop("data", pairs), tmp_path, **arguments)
    assert "\n" not in str(caught.value) and "--no-resume" in str(caught.value)
    assert files_of(tmp_path) == before


# Precision


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_is_close(precision, pairs, undisturbed, tmp_path):
    with pytest.raises(Cancelled):
        train(pairs, tmp_path, precision=precision, progress=lambda done, *_: done < 25, **SHORT)
    summary = train(pairs, tmp_path, precision=precision, **SHORT)
    assert summary.resumed_from == 20
    exact = Denoiser.from_checkpoint(undisturbed / "denoiser.safetensors")
    mixed = Denoiser.from_checkpoint(summary.file)
    expected, found = (denoiser.denoise(pairs.raw[:8]) for denoiser in (exact, mixed))
    assert np.abs(found - expected).max() > 0
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected - pairs.raw[:8])
    uninterrupted = train(pairs, tmp_path / "again", precision=precision, **SHORT)
    assert (
        files_of(tmp_path)["checkpoint-00000040.safetensors"]
        == (files_of(tmp_path / "again")["checkpoint-00000040.safetensors"])
    )
    assert uninterrupted.score == summary.score


def test_features_keep_their_bits_under_mixed_precision(pairs, tmp_path):
    """The map adds to the raw features and nothing else: 16 bits in between would show."""
    plain = train(pairs, tmp_path / "fp32", kind="map", **SHORT)
    mixed = train(pairs, tmp_path / "bf16", kind="map", precision="bf16", **SHORT)
    assert mixed.score == plain.score


# Stopping


def test_early_stop(pairs, tmp_path):
    """A learning rate of nothing: the first score is never beaten."""
    still = SHORT | {"blr": 1e-30, "final_lr": 0.0, "steps": 1000, "patience": 3}
    summary = train(pairs, tmp_path, **still)
    assert summary.stopped_early and summary.step == 40
    again = train(pairs, tmp_path, **still)
    assert again.stopped_early and again.step == again.resumed_from == 40
    assert sorted(files_of(tmp_path)) == [
        "checkpoint-00000010.safetensors", "checkpoint-00000030.safetensors", "checkpoint-00000040.safetensors",
        "denoiser.safetensors",
    ]  # fmt: skip


def test_early_stop_gives_the_best(pairs, tmp_path):
    """A learning rate that spoils a good start."""
    from safetensors.numpy import load_file

    summary = train(pairs, tmp_path, kind="map", **(SHORT | {"blr": 20.0, "clip": 0.0, "steps": 400, "patience": 2}))
    scores = {line["step"]: line["held_out_cosine"] for line in log_of(tmp_path) if "held_out_cosine" in line}
    best = max(scores, key=scores.get)
    assert summary.stopped_early and summary.step == best + 20 < 400
    assert summary.score["after"] == pytest.approx(scores[best], abs=1e-5)
    kept = load_file(tmp_path / f"checkpoint-{best:08d}.safetensors")["ema.pos_embed"]
    assert (load_file(summary.file)["pos_embed"] == kept).all()


def test_patience_needs_held_out_images(pairs, tmp_path):
    with pytest.raises(InputError, match="patience needs held-out images"):
        train(pairs, tmp_path, **(SHORT | {"held_out": 0, "patience": 2}))
    assert train(pairs, tmp_path, **(SHORT | {"held_out": 0, "steps": 5})).score is None


@pytest.mark.parametrize(
    "held_out, message, kept",
    [
        (0.0, r"the loss is not finite at step 2, with image-\d+\.png, image-\d+\.png, image-\d+\.png and 3 more", 2),
        (0.2, "the averaged weights of step 2 give features that are not finite", 1),
    ],
)
def test_weights_that_blow_up(held_out, message, kept, pairs, tmp_path):
    with pytest.raises(NonFiniteError, match=message) as caught:
        train(pairs, tmp_path, **(SHORT | {"blr": 1e30, "clip": 0.0, "every": 1, "held_out": held_out, "warmup": 0.05}))
    last = f"checkpoint-{kept:08d}.safetensors"
    assert f": stopped, the last good checkpoint is {tmp_path}/{last}; a lower blr" in str(caught.value)
    assert sorted(files_of(tmp_path))[-1] == last and "\n" not in str(caught.value)


def test_the_images_of_such_a_loss_are_named(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "half", lambda features, what: np.ascontiguousarray(features, np.float16))
    spoilt = PlantedPairs()
    chosen = held_out([record.hash for record in spoilt.records], 0.2)
    bad = next(i for i in range(len(spoilt)) if i not in chosen)
    spoilt.raw[bad, 1, 1, 1] = np.nan
    with pytest.raises(NonFiniteError, match=rf"the loss is not finite at step \d+, with image-{bad}\.png: stopped"):
        train(spoilt, tmp_path, **SHORT, start="random")


@pytest.mark.parametrize("part", ["raw", "clean"])
def test_a_pair_that_is_not_finite_is_named(part, tmp_path):
    spoilt = PlantedPairs()
    getattr(spoilt, part)[3, 0, 0, 0] = np.inf
    with pytest.raises(NonFiniteError, match=r"image-3\.png: .* holds NaN or infinity"):
        train(spoilt, tmp_path, **SHORT)
    assert files_of(tmp_path) == {}


def test_features_of_the_wrong_width(tmp_path):
    wrong = PlantedPairs()
    wrong.dim = 24
    with pytest.raises(InputError, match=r"its pair holds semantics of shape \[4, 5, 16\], expected \[4, 5, 24\]"):
        train(wrong, tmp_path, **SHORT)


@pytest.mark.parametrize("full", ["log.jsonl", "tensorboard", "checkpoint-00000030.safetensors"])
def test_a_full_disk_keeps_the_last_checkpoint(full, pairs, tmp_path, capfd):
    """From step 25 on no file may grow beyond the size that `full` has reached: for it alone that is too little."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(done, total, what):
        if done == 25:
            log, board = tmp_path / "log.jsonl", next((tmp_path / "tensorboard").iterdir())
            sizes = [path.stat().st_size for path in (log, board, tmp_path / "checkpoint-00000020.safetensors")]
            assert 2 * sizes[0] < sizes[1] and 2 * sizes[1] < sizes[2]
            limit = dict(zip(["log.jsonl", "tensorboard", "checkpoint-00000030.safetensors"], sizes))[full]
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit - 1, limits[1]))

    try:
        with pytest.raises(OutputError, match=f"{full}: cannot be written: File too large") as caught:
            train(pairs, tmp_path, progress=fill, **SHORT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value) and capfd.readouterr().err == ""  # no traceback of a thread either
    assert sorted(files_of(tmp_path)) == ["checkpoint-00000010.safetensors", "checkpoint-00000020.safetensors"]
    assert train(pairs, tmp_path, **SHORT).resumed_from == 20


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"device": "tpu"}, "device must be cpu, cuda or cuda:N, got 'tpu'"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used: torch .* sees"),
        ({"start": "zero"}, "start must be 'artifacts' or 'random', got 'zero'"),
        ({"kind": "blok"}, "unknown kind of denoiser 'blok'"),
        ({"num_heads": 3}, "num_heads must divide dim"),
        ({"on_the_fly": True}, "on_the_fly needs vit"),
        ({"held_out": 0.999999}, "no image is left to train on"),
        ({"blr": -1}, "blr must be positive"),
        ({"nonsense": 1}, "unknown option 'nonsense' of training"),
    ],
)
def test_arguments_that_cannot_be(changes, message, pairs, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        train(pairs, tmp_path, **(SHORT | changes))
    assert "\n" not in str(caught.value) and files_of(tmp_path) == {}


def test_a_folder_that_cannot_be_written(pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="out must be a folder, got 's3://bucket/run', a URL"):
        train(pairs, "s3://bucket/run", **SHORT)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file, expected a folder"):
        train(pairs, tmp_path / "file", **SHORT)
    if os.geteuid():
        (tmp_path / "closed").mkdir(mode=0o555)
        with pytest.raises(OutputError, match="cannot be written to"):
            train(pairs, tmp_path / "closed", **SHORT)


def test_two_runs_in_one_folder(pairs, tmp_path):
    caught = []

    def second(done, total, what):
        if done == 5:
            with pytest.raises(OutputError, match="another run is writing to it") as error:
                train(pairs, tmp_path, **SHORT)
            caught.append(error)

    train(pairs, tmp_path, progress=second, **SHORT)
    assert len(caught) == 1
