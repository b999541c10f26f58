"""The parts of training by themselves: schedule, order, split, reader, checkpoints, log."""

import json
import threading

import numpy as np
import pytest
from PIL import Image

from dvt_fast.errors import InputError, NonFiniteError
from dvt_fast.training.options import TrainingOptions
from dvt_fast.training.order import Order, held_out
from dvt_fast.training.schedule import ema_decay, learning_rate, scaled_rate
from dvt_fast.views import WHOLE, view_coords

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")
pytest.importorskip("tensorboard")

from dvt_fast.training.checkpoint import Store, differences  # noqa: E402
from dvt_fast.training.crops import box_of, crop_pixels, crop_semantics  # noqa: E402
from dvt_fast.training.data import Reader, Source, half  # noqa: E402
from dvt_fast.training.monitor import LOG, Monitor, draw  # noqa: E402

# The schedule


@pytest.mark.parametrize("steps, warmup", [(1000, 0.15), (7, 0.3), (10, 0.0), (3, 0.15), (20, 0.95)])
def test_learning_rate_is_the_reference_s(steps, warmup):
    n = round(warmup * steps)
    i = np.arange(steps - n)
    falling = 1e-6 + 0.5 * (2e-3 - 1e-6) * (1 + np.cos(np.pi * i / (steps - n)))
    expected = np.concatenate([np.linspace(0, 2e-3, n), falling])
    found = [learning_rate(step, steps, 2e-3, 1e-6, warmup) for step in range(steps)]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=0)


def test_scaled_rate_and_average():
    assert scaled_rate(2e-3, 256) == 2e-3 and scaled_rate(2e-3, 64) == pytest.approx(1e-3)
    decays = [ema_decay(step, 0.99) for step in range(2000)]
    assert decays[0] == 0.1 and max(decays) == decays[-1] == 0.99 and decays == sorted(decays)
    assert ema_decay(5, 0.0) == 0.0


# The order


@pytest.mark.parametrize("n", [1, 7, 100])
def test_each_epoch_has_each_sample_once(n):
    order = Order(n, seed=3)
    epochs = [[order[epoch * n + i][0] for i in range(n)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == (4 if n > 1 else 1)


def test_order_depends_on_seed_and_number_alone():
    numbers = [5, 999, 0, 341, 998, 5]
    assert [Order(100, 1)[p] for p in numbers] == [Order(100, 1)[p] for p in reversed(numbers)][::-1]
    assert [Order(100, 1)[p] for p in range(100)] != [Order(100, 2)[p] for p in range(100)]
    # what NumPy promises to keep: were it to change, a resumed run would see other samples
    assert [Order(10, 0)[p][0] for p in range(10)] == list(np.argsort(np.random.PCG64([0, 0]).random_raw(10)))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_a_batch(world):
    order, whole = Order(10, 0), []
    for rank in range(world):
        whole += order.batch(3, 8, rank, world)
    assert whole == [order[p] for p in range(24, 32)]


def test_every_variant_has_its_turn():
    order = Order(10, 0, variants=4)
    for epoch in range(8):
        samples = [order[p] for p in range(10 * epoch, 10 * epoch + 10)]
        assert sorted(np.bincount([variant for _, variant in samples])) == [2, 2, 3, 3]
    assert sorted(order[p] for p in range(40)) == [(item, variant) for item in range(10) for variant in range(4)]
    assert not any(Order(500, 0)[p][1] for p in range(500))


def hashes(n, seed=0):
    return [
        f"{value:064x}"
        for value in (int.from_bytes(np.random.default_rng([seed, i]).bytes(32), "big") for i in range(n))
    ]


def test_held_out_stays_put():
    few, many = hashes(200), hashes(1000)
    small, large = set(held_out(few, 0.1)), set(held_out(many, 0.1))
    assert small == {i for i in large if i < 200}
    assert 60 < len(large) < 140
    shuffled = many[::-1]
    assert {many[i] for i in large} == {shuffled[i] for i in held_out(shuffled, 0.1)}


def test_held_out_at_least_one():
    few = hashes(3)
    assert held_out(few, 1e-9) == [min(range(3), key=few.__getitem__)]
    assert held_out(few, 0) == [] and held_out(hashes(1), 0.05) == []
    many = hashes(1000)
    ordered = [many[i] for i in held_out(many, 0.3)]
    assert ordered == sorted(ordered)


# Crops


def test_views_of_an_image_are_its_own():
    boxes = {(hash, variant): box_of(hash, variant) for hash in hashes(50) for variant in range(8)}
    crops = np.array([box for (_, variant), box in boxes.items() if variant])
    assert len({tuple(box) for box in crops}) == len(crops) and all(box_of(*key) == box for key, box in boxes.items())
    assert {boxes[hash, 0] for hash in hashes(50)} == {WHOLE}
    x, y, w, h, mirrored = crops.T
    assert min(x.min(), y.min()) >= 0 and max((x + w).max(), (y + h).max()) <= 1 + 1e-12
    assert (w * h).min() > 0.27 and (w * h).max() <= 1 and 0.4 < mirrored.mean() < 0.6
    # what NumPy promises to keep: were it to change, a resumed run would see other samples
    assert box_of("00", 1) == pytest.approx((0.0188, 0.0526, 0.9766, 0.945, 1), abs=1e-4)


@pytest.mark.parametrize("mirrored", [0.0, 1.0])
def test_semantics_of_a_crop(mirrored):
    """What is linear in the place is known everywhere between the centres of the outer patches."""
    box = (0.2, 0.3, 0.6, 0.5, mirrored)
    whole, crop = (view_coords(np.array([b, WHOLE]), (6, 5))[0] for b in (WHOLE, box))
    field = np.stack([whole[..., 0], whole[..., 1], 2 - 3 * whole[..., 0] + whole[..., 1]], -1)
    expected = np.stack([crop[..., 0], crop[..., 1], 2 - 3 * crop[..., 0] + crop[..., 1]], -1)
    found = crop_semantics(field.astype(np.float32), box, (6, 5))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert crop_semantics(field.astype(np.float16), box, (6, 5)).dtype == np.float16
    assert crop_semantics(field, WHOLE, (6, 5)) is field
    # nothing is made up beyond them
    outer = crop_semantics(field.astype(np.float32), (0.0, 0.0, 0.9, 1.0, mirrored), (6, 5))
    assert field.min() - 1e-5 <= outer.min() and outer.max() <= field.max() + 1e-5


@pytest.mark.parametrize("grid", [(1, 1), (1, 4)])
def test_semantics_of_one_patch(grid):
    field = np.arange(grid[1] * 2, dtype=np.float32).reshape(*grid, 2)
    assert np.isfinite(crop_semantics(field, (0.1, 0.2, 0.5, 0.6, 1.0), grid)).all()


def test_pixels_of_a_crop():
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    image = Image.fromarray(pixels)
    assert (crop_pixels(image, (0.5, 0.25, 0.5, 0.5, 0.0), (20, 30)) == pixels[10:30, 30:]).all()
    mirrored = crop_pixels(image, (0.5, 0.25, 0.5, 0.5, 1.0), (20, 30))
    assert (mirrored == pixels[10:30, 30:][:, ::-1]).all() and mirrored.flags.c_contiguous


# Options


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("steps", 0, "steps must be a whole number of at least 1"),
        ("batch", 2.5, "batch must be a whole number"),
        ("blr", 0, "blr must be positive, got 0"),
        ("blr", float("nan"), "blr must be positive, got nan"),
        ("warmup", 1, "warmup must be at least 0 and below 1"),
        ("ema", 1.0, "ema must be at least 0 and below 1"),
        ("clip", -1, "clip must not be negative"),
        ("precision", "fp64", "precision must be 'fp32', 'bf16' or 'fp16', got 'fp64'"),
        ("held_out", "half", "held_out must be a number"),
        ("variants", 0, "variants must be a whole number of at least 1"),
        ("stesp", 3, "unknown option 'stesp' of training; expected one of steps, batch"),
    ],
)
def test_bad_options(name, value, message):
    with pytest.raises(InputError, match=message):
        TrainingOptions.read({name: value})


# The reader


class Counted(Source):
    """Samples that say which they are, and how often each was loaded."""

    def __init__(self, n, fail_at=None):
        self.names = self.hashes = [str(i) for i in range(n)]
        self.loads, self.fail_at, self.threads, self.lock = [], fail_at, set(), threading.Lock()

    def load(self, items):
        with self.lock:
            self.loads += items
            self.threads.add(threading.current_thread().name)
        if any(item == self.fail_at for item, _ in items):
            raise InputError(f"item {self.fail_at} is bad")
        return [{"raw": np.full((2, 3), item + variant / 4, np.float16)} for item, variant in items]


def batches(n, size, steps):
    order = Order(n, 0, variants=2)
    return [order.batch(step, size) for step in range(steps)]


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("memory", [0, 60, 10**6])
def test_batches_do_not_depend_on_workers_or_memory(workers, memory):
    wanted = batches(10, 4, 12)
    reader = Reader(Counted(10), memory, workers)
    found = list(reader.stream(wanted))
    assert len(found) == 12
    for batch, items in zip(found, wanted):
        assert batch["raw"].dtype == torch.float16 and batch["raw"].shape == (4, 2, 3)
        assert batch["raw"][:, 0, 0].tolist() == [item + variant / 4 for item, variant in items]


def test_what_is_kept_is_loaded_once():
    wanted = batches(10, 5, 20)
    everything, something, nothing = Counted(10), Counted(10), Counted(10)
    for source, memory in ((everything, 20 * 12), (something, 7 * 12 + 11), (nothing, 11)):
        list(Reader(source, memory, 0).stream(wanted))
    distinct = len({item for batch in wanted for item in batch})
    assert len(everything.loads) == distinct
    assert len(nothing.loads) == sum(len(set(batch)) for batch in wanted)
    assert len(everything.loads) < len(something.loads) < len(nothing.loads)
    assert min(something.loads.count(item) for item in something.loads) == 1


def test_an_item_twice_in_a_batch():
    batch = Reader(Counted(3), 0, 0).read([(1, 0), (1, 0), (2, 2)])
    assert batch["raw"][:, 0, 0].tolist() == [1, 1, 2.5]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_with_its_batch_and_ends_the_threads(workers):
    before = threading.active_count()
    stream = Reader(Counted(10, fail_at=7), 0, workers).stream([[(i, 0)] for i in range(10)])
    found = []
    with pytest.raises(InputError, match="item 7 is bad"):
        for batch in stream:
            found.append(int(batch["raw"][0, 0, 0]))
    assert found == list(range(7)) and threading.active_count() == before


def test_a_stream_that_is_left_ends_its_threads():
    source = Counted(10)
    before = threading.active_count()
    stream = Reader(source, 0, 2).stream([(i, 0)] for i in range(10))
    next(stream)
    stream.close()
    assert threading.active_count() == before and len(source.loads) <= 4  # in use, and one a thread ahead


def test_half():
    values = np.random.default_rng(0).standard_normal((50, 40)).astype(np.float32) * np.float32(10) ** np.arange(
        -9, 11
    ).repeat(2)
    values = values.clip(-65000, 65000)
    for given in (values, values[::-1, ::2], np.float32([65519, -0.0, 1e-9]), values.astype(np.float16), values[:0]):
        found = half(given, "x")
        assert found.dtype == np.float16 and found.flags.c_contiguous and (found == given.astype(np.float16)).all()
    with pytest.raises(NonFiniteError, match=r"a\.png: raw holds NaN or infinity"):
        half(np.float32([1, np.nan]), "a.png: raw")
    with pytest.raises(NonFiniteError, match=r"a\.png: raw holds NaN or infinity"):
        half(np.float32([[-np.inf], [0]]), "a.png: raw")
    with pytest.raises(NonFiniteError, match=r"a\.png: raw is beyond float16"):
        half(np.float32([1, 65520]), "a.png: raw")


# Checkpoints


def store_with(tmp_path, steps, settings=None, keep=()):
    store = Store(tmp_path, settings or {"batch": 4})
    for step in steps:
        store.write(step, {"model.x": np.full(3, step, np.float32)}, keep=keep, position=4 * step)
    return store


def test_the_last_two_and_the_best_are_kept(tmp_path):
    store = store_with(tmp_path, [5, 10, 15, 20, 25], keep=[10])
    assert store.steps() == [10, 20, 25] and store.newest() == 25
    header, arrays = store.read(10)
    assert (header["step"], header["position"]) == (10, 40) and arrays["model.x"].tolist() == [10, 10, 10]
    assert sorted(path.name for path in tmp_path.iterdir())[0] == "checkpoint-00000010.safetensors"
    store.clear()
    assert store.newest() is None


def test_nothing_is_written_of_what_is_not_finite(tmp_path):
    store = store_with(tmp_path, [5])
    with pytest.raises(NonFiniteError, match=r"model.x holds NaN or infinity"):
        store.write(6, {"model.x": np.float32([np.nan])}, keep=[])
    assert store.steps() == [5]


def test_other_settings_are_refused_by_name(tmp_path):
    made = {"vit": {"layer": 11, "name": "a"}, "batch": 4, "old": True}
    store_with(tmp_path, [5], made)
    with pytest.raises(InputError) as caught:
        Store(tmp_path, {"vit": {"layer": 10, "name": "a"}, "batch": 8, "new": None}).newest()
    message = str(caught.value)
    assert "checkpoint-00000005.safetensors is of a training with other settings: " in message
    for difference in (
        "vit.layer is 11 there and 10 here",
        "batch is 4 there and 8 here",
        "new is absent there and None",
    ):
        assert difference in message
    assert "old is True there and absent here" in message and "vit.name" not in message and "\n" not in message
    assert Store(tmp_path, made).newest() == 5


def test_settings_compare_as_they_come_back(tmp_path):
    assert store_with(tmp_path, [5], {"grid": (3, 4)}).newest() == 5
    assert differences({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2}]}) == []


@pytest.mark.parametrize("damage", ["cut", "foreign", "newer"])
def test_a_checkpoint_that_cannot_be_used(damage, tmp_path):
    store = store_with(tmp_path, [5, 10])
    path = store.path(10)
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "foreign":
        path.write_bytes(data.replace(b"dvt_fast.training", b"dvt_fast.drawings"))
    else:
        path.write_bytes(data.replace(b'\\"version\\": 1', b'\\"version\\": 2'))
    message = {"cut": "not a readable", "foreign": "not a dvt_fast.training", "newer": "version 2, expected version 1"}
    with pytest.raises(InputError, match=message[damage]) as caught:
        store.newest()
    assert str(path) in str(caught.value) and ("without this file" in str(caught.value)) == (damage == "cut")
    path.unlink()
    assert store.newest() == 5


def test_what_a_killed_writer_left_is_deleted(tmp_path):
    store = store_with(tmp_path, [5])
    (tmp_path / ".dvt-0123456789abcdef.tmp").write_bytes(b"half a checkpoint")
    (tmp_path / "notes.tmp").write_text("mine")
    store.tidy()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-00000005.safetensors", "notes.tmp"]


# The log


def test_a_resumed_log_has_each_step_once(tmp_path):
    with Monitor(tmp_path, 0) as monitor:
        for step in (10, 20, 30):
            monitor.log(step, {"loss": step / 3})
    with open(tmp_path / LOG, "a") as file:
        file.write('{"step": 40, "lo')  # killed in the middle
    seen = []
    with Monitor(tmp_path, 20, watch=seen.append) as monitor:
        monitor.log(30, {"loss": 1.0})
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30]
    assert lines[0]["loss"] == pytest.approx(10 / 3) and lines[2:] == seen == [{"step": 30, "loss": 1.0}]


def test_other_processes_write_no_log(tmp_path):
    with Monitor(tmp_path, 0, active=False) as monitor:
        monitor.log(1, {"loss": 1.0})
        monitor.panel(1, *np.zeros((3, 1, 2, 2, 4), np.float32))
    assert list(tmp_path.iterdir()) == []


def test_panel():
    rng = np.random.default_rng(0)
    target = rng.standard_normal((2, 4, 5, 8)).astype(np.float32)
    before = target + rng.standard_normal((4, 5, 8)).astype(np.float32)
    picture = draw(before, target, target)
    side = 160 // 5
    assert picture.dtype == np.uint8 and picture.shape == (2 * 4 * side, 3 * 5 * side, 3)
    raw, wanted, became = np.split(picture, 3, axis=1)
    assert (wanted == became).all() and (raw != wanted).any()
    assert (picture[:side, :side] == picture[0, 0]).all()
