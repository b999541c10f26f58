"""`solver="hashgrid"` on the device against the CPU's fitter and plain torch, on the same patches."""

import dataclasses

import numpy as np
import pytest

from cuda_samples import run_op, stored
from dvt_fast import _native
from dvt_fast.errors import Cancelled, InputError, NonFiniteError
from dvt_fast.solvers.hashgrid import HashgridOptions
from test_hashgrid_fitter import make_model, train

VIEWS, HEIGHT, WIDTH, CHANNELS = 9, 6, 7, 24
GROUPS = ("grid", "field", "artifacts", "residual")
MAPS = ("semantics", "artifact_map", "residual_map")
# The size of test_hashgrid_fitter.py, whose reference this takes.
OPTIONS = HashgridOptions(
    steps=50,
    batch=64,
    n_levels=5,
    n_features_per_level=4,
    log2_hashmap_size=8,
    base_resolution=4,
    max_resolution=40,
    loss_scale=4.0,
)
SMALL = dataclasses.replace(OPTIONS, steps=12, batch=24, n_levels=3)
pytestmark = pytest.mark.usefixtures("cuda")


def problem(dtype=np.float32):
    from test_hashgrid_fitter import problem

    return problem(dtype)


def samples(steps, options=OPTIONS, seed=1):
    return np.random.default_rng(seed).integers(0, VIEWS * HEIGHT * WIDTH, (steps, options.batch))


def cpu_fitter(options=OPTIONS):
    return _native.HashgridFitter(*problem(), options.native())


def arguments(options, features, coords, dtype, numbers, words):
    names = ("steps", "batch", "seed", "lr", "lr_final", "warmup", "loss_scale")
    given = {name: float(getattr(options, name)) for name in names}
    given |= {name: float(value) for name, value in options.grid_config().items()}
    return {"features": stored(features, dtype), "coords": coords}, given | numbers, {"dtype": dtype} | words


def shapes(options):
    fitter = cpu_fitter(options).parameters()
    return {name: (fitter[name].shape, "float32") for name in GROUPS}


def fit(
    options=OPTIONS, count=None, initial=None, sample=None, dtype="float32", data=None, compute="float32", **numbers
):
    """A run on the device: the loss of each step, the parameters and the maps."""
    features, coords = data or problem()
    count = options.steps if count is None else count
    tensors, numbers, words = arguments(options, features, coords, dtype, numbers, {"compute": compute})
    if initial is not None:
        tensors |= {f"initial_{name}": initial[name] for name in GROUPS}
    if sample is not None:
        tensors["samples"] = np.ascontiguousarray(sample, np.int64)
    maps = dict.fromkeys(MAPS, (features.shape[1:], "float32"))
    wanted = {"history": ((count,), "float32")} | shapes(options) | maps
    return run_op("hashgrid_fit", tensors, wanted, numbers | {"count": count}, words)


def device_gradients(parameters, sample, second_phase, options=OPTIONS, compute="float32", **numbers):
    tensors, numbers, words = arguments(options, *problem(), "float32", numbers, {"compute": compute})
    tensors |= {f"initial_{name}": parameters[name] for name in GROUPS} | {"samples": sample.astype(np.int64)}
    wanted = {"losses": ((4,), "float64")} | shapes(options)
    return run_op("hashgrid_gradients", tensors, wanted, numbers | {"second_phase": second_phase}, words)


def trained_parameters(options=OPTIONS, steps=20):
    """Parameters of some age, so that gradients are not those of a random start."""
    fitter = cpu_fitter(dataclasses.replace(options, steps=steps))
    fitter.run(steps)
    return fitter.parameters()


@pytest.mark.sanitizer
@pytest.mark.parametrize("second_phase", [False, True])
@pytest.mark.parametrize("deterministic", [0, 1])
@pytest.mark.parametrize(("compute", "tolerance"), [("float32", 1e-5), ("tf32", 3e-3), ("bfloat16", 3e-2)])
def test_gradients_are_the_cpus(second_phase, deterministic, compute, tolerance):
    parameters, sample = trained_parameters(), samples(1)[0]
    fitter = cpu_fitter()
    fitter.set_parameters(parameters)
    losses, expected = fitter.gradients(sample, second_phase)
    got = device_gradients(parameters, sample, second_phase, compute=compute, deterministic=deterministic)
    np.testing.assert_allclose(got["losses"], list(losses.values()), rtol=tolerance, atol=1e-7)
    for name in GROUPS:
        assert np.abs(got[name] - expected[name]).max() <= tolerance * np.abs(expected[name]).max(), name
        assert got[name].any() == expected[name].any()


@pytest.mark.parametrize("second_phase", [False, True])
def test_one_step_moves_parameters_as_the_cpu_does(second_phase):
    """Wherever the gradient is above rounding; with eps = 1e-15 rounding noise itself makes a full step."""
    options = dataclasses.replace(OPTIONS, steps=1 if second_phase else 2, warmup=0.0)
    parameters, sample = trained_parameters(), samples(1)
    fitter = cpu_fitter(options)
    fitter.set_parameters(parameters)
    _, grads = fitter.gradients(sample[0], second_phase)
    fitter.run(1, samples=sample)
    expected = fitter.parameters()
    moved = fit(options, 1, parameters, sample)
    for name in GROUPS:
        gradient = np.abs(grads[name])
        if name == ("artifacts" if second_phase else "residual"):
            np.testing.assert_array_equal(moved[name], parameters[name])
        certain = gradient > 1e-5 * gradient.max()
        np.testing.assert_allclose(moved[name][certain], expected[name][certain], rtol=1e-6, atol=1e-7, err_msg=name)
        if name == "grid":
            # Untouched entries move by their weight decay alone, in the CPU's own arithmetic.
            np.testing.assert_allclose(moved[name][gradient == 0], expected[name][gradient == 0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("compute", "tolerance"), [("float32", 1e-3), ("tf32", 2e-2)])
def test_fifty_steps_have_the_losses_of_plain_torch(compute, tolerance):
    start, sample = cpu_fitter().parameters(), samples(50)
    got = fit(sample=sample, initial=start, compute=compute)["history"]
    expected = train(make_model(start), sample, OPTIONS)
    np.testing.assert_allclose(got, expected, rtol=tolerance)
    assert got[24] < 0.7 * got[0]


def test_random_patches_and_initial_values_are_the_cpus():
    fitter = cpu_fitter(SMALL)
    start = fitter.parameters()
    fitter.run(12)
    got = fit(SMALL)
    np.testing.assert_allclose(got["history"], fitter.loss_history, rtol=1e-3)
    untouched = fit(SMALL, 0)
    for name in GROUPS:
        np.testing.assert_array_equal(untouched[name], start[name])
    semantics, artifacts, residual = fitter.decomposition()
    for name, expected in zip(MAPS, (semantics, artifacts, residual)):
        assert np.abs(got[name] - expected).max() < 0.05 * np.abs(expected).max(), name


def test_graphs_windows_and_pauses_change_no_bit():
    """In the deterministic mode; what is replayed when, by whom and in which run does not matter."""
    expected = fit(SMALL, deterministic=1, graph_steps=0, sweep_steps=1000)
    assert all(np.isfinite(value).all() for value in expected.values())
    for changes in (
        {"graph_steps": 3},
        {"graph_steps": 5, "sweep_steps": 3},
        {"graph_steps": 2, "parts": 5},
        {"graph_steps": 4, "fits": 2},
    ):
        got = fit(SMALL, **({"deterministic": 1, "sweep_steps": 7} | changes))
        for name in expected:
            np.testing.assert_array_equal(got[name], expected[name], err_msg=f"{changes} {name}")


def test_given_patches_in_parts_are_those_at_once():
    sample = samples(12, SMALL)
    expected = fit(SMALL, sample=sample, deterministic=1)
    got = fit(SMALL, sample=sample, deterministic=1, parts=4)
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name)


def test_untouched_entries_are_the_cpus_bits():
    """Entries that no patch reads decay alone, in the same arithmetic on the CPU and on the device."""
    if _native.isa_problem("avx2"):
        pytest.skip("the generic instruction set has no fused multiply-adds")
    options = dataclasses.replace(SMALL, log2_hashmap_size=12, max_resolution=60)
    sample = np.full((12, options.batch), 5)
    fitter = cpu_fitter(options)
    start = fitter.parameters()
    fitter.run(12, samples=sample)
    expected, got = fitter.parameters()["grid"], fit(options, sample=sample)["grid"]
    features = options.n_features_per_level
    _, grads = cpu_fitter(options).gradients(sample[0], False)
    read = np.repeat(grads["grid"].reshape(-1, features).any(1), features)
    assert read.any() and not read.all()
    np.testing.assert_array_equal(got[~read], expected[~read])
    assert (expected[~read] != start["grid"][~read]).mean() > 0.9


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_features_are_read_as_their_float32_values(dtype):
    from cuda_samples import rounded

    features, coords = problem()
    narrow = fit(SMALL, data=(features, coords), dtype=dtype, deterministic=1)
    wide = fit(SMALL, data=(rounded(features, dtype), coords), deterministic=1)
    for name in narrow:
        np.testing.assert_array_equal(narrow[name], wide[name], err_msg=name)


def test_ragged_sizes():
    """Channels, widths and batches that are no multiples of anything."""
    features, coords = problem()
    options = dataclasses.replace(SMALL, batch=19, hidden_dim=None, n_features_per_level=2)
    features = np.ascontiguousarray(features[..., :21])
    fitter = _native.HashgridFitter(features, coords, options.native())
    fitter.run(12)
    tensors, numbers, words = arguments(options, features, coords, "float32", {"count": 12}, {"compute": "float32"})
    sizes = {name: (value.shape, "float32") for name, value in fitter.parameters().items()}
    maps = dict.fromkeys(MAPS, (features.shape[1:], "float32"))
    got = run_op("hashgrid_fit", tensors, {"history": ((12,), "float32")} | sizes | maps, numbers, words)
    np.testing.assert_allclose(got["history"], fitter.loss_history, rtol=1e-3)


def test_planted_problem_reaches_the_cpus_score():
    """F and G of a planted problem, which the CPU finds to some correlation, are found as well on the device."""
    rng = np.random.default_rng(0)
    steps = np.stack(np.meshgrid(np.linspace(0, 1, WIDTH), np.linspace(0, 1, HEIGHT)), -1)
    coords = rng.random((VIEWS, 1, 1, 2)) * 0.5 + 0.5 * steps
    coords[-1] = steps
    f = np.sin(coords @ (rng.standard_normal((2, CHANNELS)) * 4) + rng.random(CHANNELS) * 6)
    g = 0.5 * rng.standard_normal((HEIGHT, WIDTH, CHANNELS))
    data = (f + g).astype(np.float32), coords.astype(np.float32)
    options = dataclasses.replace(OPTIONS, steps=120, batch=48)

    def score(semantics, artifacts):
        def correlation(a, b):
            a, b = (x - x.mean((0, 1)) for x in (a, b))
            return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())

        return np.array([correlation(semantics, f[-1]), correlation(artifacts, g)])

    fitter = _native.HashgridFitter(*data, options.native())
    fitter.run(options.steps)
    semantics, artifacts, _ = fitter.decomposition()
    expected = score(semantics, artifacts)
    assert (expected > 0.6).all()
    for compute in ("tf32", "bfloat16"):
        got = fit(options, data=data, compute=compute)
        assert (score(got["semantics"], got["artifact_map"]) > expected - 0.02).all(), compute


def test_progress_is_reported_between_graphs_and_can_cancel():
    def make():
        return _native.CudaHashgridFitter(*problem(), SMALL.native(), deterministic=True, graph_steps=2)

    calls, whole = [], make()
    whole.run(12, report_every=1, progress=lambda step, steps, loss: calls.append((step, steps, loss)))
    assert [call[:2] for call in calls] == [(step, 12) for step in (2, 4, 6, 8, 10, 12)]
    np.testing.assert_allclose([call[2] for call in calls], whole.loss_history[1::2], rtol=1e-6)
    assert whole.device_bytes > 4 * 3 * sum(len(values) for values in whole.parameters().values())

    stopped = make()
    with pytest.raises(Cancelled, match="cancelled at step 4 of 12"):
        stopped.run(12, report_every=1, progress=lambda step, steps, loss: step < 4)
    assert 4 <= stopped.step < 12 and len(stopped.loss_history) == stopped.step  # one more graph was on its way
    stopped.run(12)
    assert stopped.step == 12
    for name, expected in whole.parameters().items():
        np.testing.assert_array_equal(stopped.parameters()[name], expected, err_msg=name)
    points = problem()[1][-1].reshape(-1, 2)
    semantics = whole.decomposition()[0].reshape(-1, CHANNELS)
    np.testing.assert_array_equal(whole.query(points), semantics)
    few = np.concatenate([points] * 2)[:70]  # more than a batch
    np.testing.assert_array_equal(whole.query(few)[: len(points)], semantics)


def test_official_size_on_the_device(cuda):
    """The paper's recipe on 768 channels: a few steps of both phases have the CPU's losses; the same bits twice."""
    if cuda.emulated:
        pytest.skip("a device's work: minutes in the emulator")
    rng = np.random.default_rng(0)
    options = HashgridOptions(steps=8)
    coords = rng.random((6, 37, 37, 2), np.float32)
    features = rng.standard_normal((6, 37, 37, 768)).astype(np.float16)
    fitter = _native.HashgridFitter(features, coords, options.native())
    fitter.run(8)
    for compute, tolerance in (("float32", 1e-3), ("tf32", 5e-3), ("bfloat16", 3e-2)):
        made = [
            _native.CudaHashgridFitter(
                features, coords, options.native(), compute=compute, deterministic=True, graph_steps=steps
            )
            for steps in (0, 2)
        ]
        for each in made:
            each.run(8)
        np.testing.assert_allclose(made[0].loss_history, fitter.loss_history, rtol=tolerance, err_msg=compute)
        for name, expected in made[0].parameters().items():
            np.testing.assert_array_equal(made[1].parameters()[name], expected, err_msg=f"{compute} {name}")


def test_bad_numbers_are_named_as_the_cpu_names_them():
    features, coords = problem()
    bad = features.copy()
    bad[3, 2, 5, 7] = np.nan
    with pytest.raises(NonFiniteError, match="at view 3, row 2, column 5, channel 7"):
        fit(SMALL, data=(bad, coords))
    with pytest.raises(NonFiniteError, match=r"the loss is (inf|nan) at step 1 of 12"):
        fit(SMALL, data=(features * np.float32(1e25), coords), graph_steps=2)
    outside = coords.copy()
    outside[0, 0, 0, 0] = 1.5
    with pytest.raises(InputError, match=r"coords must be in \[0, 1\], got 1.5"):
        fit(SMALL, data=(features, outside))
    with pytest.raises(InputError, match=r"samples must be in \[0, 378\), got 378"):
        fit(SMALL, sample=np.full((12, SMALL.batch), 378))
    with pytest.raises(InputError, match="compute must be tf32, bfloat16 or float32, got float8"):
        fit(SMALL, compute="float8")
