"""`Engine` and `Session`: shapes, strides, types, threads, what is refused; families of ViTs are in their own file."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import dvt_fast
from dvt_fast import DvtError, Engine, InputError, NonFiniteError, WeightsError, _native

torch = pytest.importorskip("torch")
GRIDS = [(8, 8), (5, 9), (1, 1), (16, 3), (23, 24)]


def random_denoiser(dim=96, grid=(8, 8), **options):
    denoiser = dvt_fast.Denoiser(dim, grid=grid, **options).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.normal_(0, 0.1, generator=generator)
    return denoiser


@pytest.fixture(scope="module")
def denoiser():
    return random_denoiser(num_heads=3, num_blocks=2)


@pytest.fixture(scope="module")
def vit():
    return dvt_fast.ViT("dvt_mini")


@pytest.fixture(scope="module")
def engine(vit):
    return Engine.from_vit(vit, random_denoiser(vit.dim, vit.grid))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def truth(denoiser, x, dtype=torch.float64):
    with torch.no_grad():
        clean = random_like(denoiser, dtype)(torch.from_numpy(np.atleast_1d(x)).to(dtype))
    return clean.double().numpy()


def random_like(denoiser, dtype):
    copy = dvt_fast.Denoiser(denoiser.dim, denoiser.grid, denoiser.num_blocks, kind=denoiser.kind, num_heads=3)
    copy.load_state_dict(denoiser.state_dict())
    return copy.eval().to(dtype)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("batch", [1, 4])
def test_error_is_at_most_twice_that_of_torch(isa, denoiser, grid, batch):
    x = normal(batch, *grid, denoiser.dim)
    expected = truth(denoiser, x)
    ours = Engine.load(denoiser).session(grid=grid, batch=batch).run(x)
    theirs = truth(denoiser, x, torch.float32)
    rms = [np.sqrt(np.mean((y - expected) ** 2)) for y in (ours, theirs)]
    assert rms[0] <= 2 * rms[1]
    assert np.abs(ours - expected).max() <= 2 * np.abs(theirs - expected).max() + 1e-7 * np.abs(expected).max()


@pytest.mark.parametrize("dtype, bits", [("float16", 11), ("bfloat16", 8)])
def test_narrow_weights(isa, denoiser, dtype, bits):
    x = normal(8, 8, denoiser.dim)
    expected = truth(denoiser, x[None])[0]
    got = Engine.load(denoiser, dtype=dtype).session(grid=(8, 8)).run(x)
    error = np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2))
    assert 2.0 ** -(bits + 6) < error < 2.0**-bits * 2


def test_any_strides_in_and_out(denoiser):
    session = Engine.load(denoiser).session(grid=(5, 7), batch=2)
    x = normal(2, 5, 7, denoiser.dim)
    expected = session.run(x)
    channels_first = np.ascontiguousarray(x.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    offset = np.full((2, 6, 9, denoiser.dim + 3), np.nan, np.float32)
    offset[:, 1:, 2:, 3:] = x
    for same in (channels_first, offset[:, 1:, 2:, 3:], x[::-1][::-1], x[:, ::-1, ::-1][:, ::-1, ::-1]):
        np.testing.assert_array_equal(session.run(same), expected)
    wide = np.full((2, 5, 7, 2 * denoiser.dim), 7, np.float32)
    assert session.run(x, wide[..., ::2]) is not None
    np.testing.assert_array_equal(wide[..., ::2], expected)
    assert (wide[..., 1::2] == 7).all()
    reversed_rows = np.empty_like(x)
    session.run(x, reversed_rows[:, ::-1])
    np.testing.assert_array_equal(reversed_rows[:, ::-1], expected)
    half = np.empty(x.shape, np.float16)
    session.run(x, half)
    np.testing.assert_array_equal(half, expected.astype(np.float16))
    narrow = x.astype(np.float16)
    np.testing.assert_array_equal(session.run(narrow), session.run(narrow.astype(np.float32)))


def test_kind_and_rank_of_the_result(denoiser):
    session = Engine.load(denoiser).session(grid=(5, 7))
    x = normal(5, 7, denoiser.dim)
    array = session.run(x)
    assert array.shape == x.shape and array.dtype == np.float32
    np.testing.assert_array_equal(session.run(x[None])[0], array)
    tensor = session.run(torch.from_numpy(x))
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_array_equal(tensor.numpy(), array)
    out = torch.empty(5, 7, denoiser.dim)
    assert session.run(torch.from_numpy(x), out) is out
    np.testing.assert_array_equal(out.numpy(), array)


def test_same_bits_with_any_number_of_threads_and_every_time(engine):
    frame = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    expected = engine.session(threads=1).run(frame)
    for threads in (2, 3, 5):
        session = engine.session(threads=threads)
        for _ in range(5):
            np.testing.assert_array_equal(session.run(frame), expected)


def test_two_threads_with_a_session_each(engine):
    frames = np.random.default_rng(0).integers(0, 256, (2, 20, 64, 64, 3), np.uint8)
    alone = [[engine.session(threads=2).run(frame) for frame in some[:3]] for some in frames]
    results = [[], []]

    def work(i):
        session = engine.session(threads=2)
        results[i] = [session.run(frame) for frame in frames[i]]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for i in range(2):
        assert len(results[i]) == 20
        for ours, expected in zip(results[i], alone[i]):
            np.testing.assert_array_equal(ours, expected)


def test_one_session_from_two_threads_is_refused_or_serves_one(engine):
    session = engine.session(threads=1)
    frame = np.zeros((64, 64, 3), np.uint8)
    expected = session.run(frame)
    refused, done = [], []

    def work():
        for _ in range(200):
            try:
                done.append(np.array_equal(session.run(frame), expected))
            except DvtError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(done) + len(refused) == 400 and all(done)
    assert all("serves one caller at a time" in text for text in refused)
    np.testing.assert_array_equal(session.run(frame), expected)


def test_vit_and_denoiser(vit, engine):
    x = torch.randn(1, 3, *vit.size, generator=torch.Generator().manual_seed(0))
    raw = np.empty((1, *vit.grid, vit.dim), np.float32)
    clean = engine.session(input="normalized").run(x, raw=raw)
    features = vit.features(x)
    np.testing.assert_allclose(raw, features.numpy(), atol=2e-5 * features.abs().max().item())
    expected = random_denoiser(vit.dim, vit.grid).denoise(features)
    np.testing.assert_allclose(clean, expected, atol=2e-5 * expected.abs().max().item())
    np.testing.assert_array_equal(Engine.from_vit(vit).session(input="normalized").run(x), raw)
    alone = engine.session(input="features", grid=vit.grid).run(raw)
    np.testing.assert_allclose(alone, clean, atol=1e-6 * expected.abs().max().item())


def test_pixels_are_prepared_as_the_vit_does_it(vit, engine):
    from PIL import Image

    frame = np.random.default_rng(0).integers(0, 256, (90, 131, 3), np.uint8)
    expected = engine.session(input="normalized").run(vit.transform(Image.fromarray(frame)).numpy())
    session = engine.session()
    np.testing.assert_allclose(session.run(frame), expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(session.run(frame[None])[0], expected, atol=1e-5 * np.abs(expected).max())
    floats = (frame / np.float32(255)).transpose(2, 0, 1)
    np.testing.assert_allclose(session.run(floats), expected, atol=0.05 * np.abs(expected).max())


def test_save_and_load(engine, tmp_path):
    path = tmp_path / "mini.safetensors"
    engine.save(path)
    frame = np.zeros((64, 64, 3), np.uint8)
    again = Engine.load(path)
    np.testing.assert_array_equal(again.session().run(frame), engine.session().run(frame))
    assert again.source["vit"]["name"] == "dvt_mini" and again.has_vit and again.has_denoiser
    assert repr(again) == f"Engine(ViT + denoiser, dim={engine.dim}, dtype='float32', device='cpu')"


def test_a_denoiser_file_is_an_engine(denoiser, tmp_path):
    denoiser.save(tmp_path / "denoiser.safetensors")
    x = normal(8, 8, denoiser.dim)
    expected = Engine.load(denoiser).session(grid=(8, 8)).run(x)
    np.testing.assert_array_equal(Engine.load(tmp_path / "denoiser.safetensors").session(grid=(8, 8)).run(x), expected)


def test_runs_without_torch(engine, tmp_path):
    engine.save(tmp_path / "mini.safetensors")
    code = (
        "import sys; sys.modules['torch'] = sys.modules['timm'] = sys.modules['PIL'] = None\n"
        "import numpy as np, dvt_fast\n"
        f"session = dvt_fast.Engine.load({str(tmp_path / 'mini.safetensors')!r}).session()\n"
        "print(session.run(np.zeros((64, 64, 3), np.uint8)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == str((*engine.session().grid, engine.dim)), done.stderr


def test_not_finite(denoiser):
    session = Engine.load(denoiser).session(grid=(5, 7))
    x = normal(5, 7, denoiser.dim)
    expected = session.run(x)
    for value in (np.nan, np.inf):
        bad = x.copy()
        bad[2, 3, 4] = value
        with pytest.raises(NonFiniteError, match=r"^the features hold NaN or infinity$"):
            session.run(bad)
        np.testing.assert_array_equal(session.run(x), expected)


def test_small_halves_and_large_results(denoiser):
    """Subnormal float16 is not lost where subnormal float32 counts as zero; what float16 cannot hold is told."""
    plain = dvt_fast.Denoiser(8, grid=(1, 3), kind="map")
    with torch.no_grad():
        plain.pos_embed.zero_()
    session = Engine.load(plain).session(grid=(1, 3))
    small = (np.arange(24).reshape(1, 3, 8) * 3e-6).astype(np.float16)
    np.testing.assert_array_equal(session.run(small), small.astype(np.float32))
    with pytest.raises(NonFiniteError):
        session.run(np.full((1, 3, 8), 1e5, np.float32), np.empty((1, 3, 8), np.float16))


def test_a_forked_process_is_told(denoiser):
    session = Engine.load(denoiser).session(grid=(5, 7), threads=2)
    x = normal(5, 7, denoiser.dim)
    expected = session.run(x)
    child = os.fork()
    if child == 0:
        try:
            session.run(x)
        except DvtError as error:
            anew = session.engine.session(grid=(5, 7), threads=2)
            told = "was forked: make another one here" in str(error) and np.array_equal(anew.run(x), expected)
            del session
            os._exit(0 if told else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(session.run(x), expected)


def test_lying_headers_are_one_line(tmp_path):
    deep = b"[" * 200_000
    (tmp_path / "deep.safetensors").write_bytes(len(deep).to_bytes(8, "little") + deep)
    with pytest.raises(WeightsError, match=r"deep.safetensors: "):
        Engine.load(tmp_path / "deep.safetensors")
    with pytest.raises(WeightsError, match=r"Is a directory"):
        Engine.load(tmp_path)


def test_saving_needs_the_file_that_was_loaded(engine, tmp_path):
    engine.save(tmp_path / "one.safetensors")
    again = Engine.load(tmp_path / "one.safetensors")
    again.save(tmp_path / "two.safetensors")
    assert (tmp_path / "two.safetensors").read_bytes() == (tmp_path / "one.safetensors").read_bytes()
    (tmp_path / "one.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"one.safetensors: what this engine was loaded from: No such file"):
        again.save(tmp_path / "three.safetensors")


def test_another_instruction_set_needs_another_model(denoiser):
    before = _native.active_isa()
    if before == "generic":
        pytest.skip("only one instruction set runs here")
    engine = Engine.load(denoiser)
    session = engine.session(grid=(5, 7))
    x = normal(5, 7, denoiser.dim)
    expected = session.run(x)
    _native.set_isa("generic")
    try:
        message = f"^the weights are packed for {before}, and generic is in use now: load the model again$"
        with pytest.raises(InputError, match=message):
            session.run(x)
        with pytest.raises(InputError, match=message):
            engine.session(grid=(5, 7))
    finally:
        _native.set_isa(before)
    np.testing.assert_array_equal(session.run(x), expected)


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, r"needs grid=\(h, w\)"),
        ({"grid": (0, 3)}, "needs a grid from 1 to 32768 patches a side, got 0 x 3"),
        ({"grid": (3,)}, r"grid must be \(height, width\), got \(3,\)"),
        ({"grid": (3, -1)}, "grid must be a whole number from 0 up, got -1"),
        ({"grid": (3, 4), "batch": 0}, "batch must be from 1 to 4096, got 0"),
        ({"grid": (3, 4), "threads": 0}, "threads must be from 1 to 1024, got 0"),
        ({"grid": (3, 4), "size": 224}, "takes a grid, and no image size"),
        ({"grid": (30000, 30000)}, "at most 1048576 patches"),
        ({"input": "image"}, "needs a ViT, and this engine has only a denoiser"),
        ({"input": "pixels"}, "input must be one of image, normalized, features, got 'pixels'"),
    ],
)
def test_sessions_that_cannot_be(denoiser, options, message):
    with pytest.raises(InputError, match=message):
        Engine.load(denoiser).session(**options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"size": 63}, "must fit whole patches"),
        ({"size": (64, 0)}, "must fit whole patches"),
        ({"size": 0}, "size must fit whole patches, got 0"),
        ({"size": 64, "grid": (3, 3)}, "make a grid of . x ., patches, and 3 x 3 was asked for|patches, and 3 x 3"),
        ({"max_source": (0, 10)}, "the largest source must be from 1 to 32768 pixels a side, got 0 x 10"),
    ],
)
def test_image_sessions_that_cannot_be(engine, options, message):
    with pytest.raises(InputError, match=message):
        engine.session(**options)


@pytest.mark.parametrize(
    "x, message",
    [
        (np.zeros((5, 7, 95), np.float32), r"features must have shape \[1, 5, 7, 96\]"),
        (np.zeros((2, 5, 7, 96), np.float32), r"features must have shape \[1, 5, 7, 96\]"),
        (np.zeros((7, 96), np.float32), r"features must have shape"),
        (np.zeros((5, 7, 96), np.int32), "input must be float32, float16 or uint8, got int32"),
        (np.zeros((5, 7, 96), np.uint8), "features must be floats, got uint8"),
        (np.zeros((5, 7, 96), ">f4"), "input must be in this machine's byte order"),
        (np.zeros((1, 1, 1, 1, 96), np.float32), "input must have 3 or 4 dimensions, got 5"),
        ([[["a"]]], "x must be a NumPy array"),
    ],
    ids=str,
)
def test_features_that_cannot_be(denoiser, x, message):
    session = Engine.load(denoiser).session(grid=(5, 7))
    with pytest.raises(InputError, match=message):
        session.run(x)
    assert np.isfinite(session.run(normal(5, 7, denoiser.dim))).all()


@pytest.mark.parametrize(
    "out, message",
    [
        (np.zeros((5, 7, 95), np.float32), r"output must have shape \[1, 5, 7, 96\]"),
        (np.zeros((5, 7, 96), np.float64), "output must be float32, float16 or uint8, got float64"),
        (np.zeros((5, 7, 96), np.uint8), "output must be of a floating type, got uint8"),
        (np.broadcast_to(np.float32(0), (5, 7, 96)), "out must be a writable NumPy array"),
        ([1], "out must be a writable NumPy array or CPU tensor, got list"),
    ],
    ids=str,
)
def test_outputs_that_cannot_be(denoiser, out, message):
    session = Engine.load(denoiser).session(grid=(5, 7))
    with pytest.raises(InputError, match=message):
        session.run(normal(5, 7, denoiser.dim), out)


def test_frames_that_cannot_be(engine):
    session = engine.session(max_source=(100, 100))
    for frame, message in (
        (np.zeros((64, 64, 4), np.uint8), r"uint8 images must have shape \[1, \*, \*, 3\]"),
        (np.zeros((0, 64, 3), np.uint8), r"uint8 images must have shape"),
        (np.zeros((64, 64, 3), np.float32), r"float32 images must have shape \[1, 3, \*, \*\]"),
        (np.zeros((64, 64, 3), np.float16), "images must be uint8 or float32, got float16"),
        (np.zeros((101, 64, 3), np.uint8), "101"),
    ):
        with pytest.raises(InputError, match=message):
            session.run(frame)
    with pytest.raises(InputError, match="raw features are those of a ViT"):
        grid = (4, 4)
        engine.session(input="features", grid=grid).run(
            normal(*grid, engine.dim), raw=np.empty((*grid, engine.dim), np.float32)
        )
    with pytest.raises(InputError, match="stream"):
        session.run(np.zeros((64, 64, 3), np.uint8), stream=1)


def test_files_that_cannot_be(tmp_path):
    with pytest.raises(WeightsError, match=r"absent.safetensors: No such file or directory"):
        Engine.load(tmp_path / "absent.safetensors")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"empty.safetensors: "):
        Engine.load(tmp_path / "empty.safetensors")
    with pytest.raises(InputError, match="dtype must be one of"):
        Engine.load(dvt_fast.Denoiser(64, (2, 2)), dtype="int8")
    with pytest.raises(InputError, match="device must be 'cpu', 'cuda' or 'cuda:N', got 'tpu'"):
        Engine.load(dvt_fast.Denoiser(64, (2, 2)), device="tpu")
