"""`solver="hashgrid"` against the paper's recipe in plain torch, which uses torch's dense Adam."""

import dataclasses

import numpy as np
import pytest
import torch

from dvt_fast import _native, errors
from dvt_fast.reference import HashGridEncoding, Recipe, Stage1Model, Trainer, learning_rate
from dvt_fast.solvers.gauge import gauge
from dvt_fast.solvers.hash_grid_field import HashGridField
from dvt_fast.solvers.hashgrid import HashgridOptions, solve_hashgrid
from dvt_fast.solvers.patches import patch_means

VIEWS, HEIGHT, WIDTH, CHANNELS = 9, 6, 7, 24
# Dense and hashed levels; few enough parameters that torch's dense Adam is quick.
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
GROUPS = ("grid", "field", "artifacts", "residual")


def problem(dtype=np.float32, seed=0):
    """Views of a smooth f at random places, plus a G by patch and noise."""
    rng = np.random.default_rng(seed)
    corner, size = rng.random((VIEWS, 1, 1, 2)) * 0.5, 0.5
    steps = np.stack(np.meshgrid(np.linspace(0, 1, WIDTH), np.linspace(0, 1, HEIGHT)), -1)
    coords = corner + size * steps
    coords[-1] = steps
    waves = rng.standard_normal((2, CHANNELS)) * 4
    f = np.sin(coords @ waves + rng.random(CHANNELS) * 6)
    features = f + 0.5 * rng.standard_normal((HEIGHT, WIDTH, CHANNELS)) + 0.05 * rng.standard_normal(f.shape)
    return features.astype(dtype), coords.astype(np.float32)


def samples(steps, seed=1):
    return np.random.default_rng(seed).integers(0, VIEWS * HEIGHT * WIDTH, (steps, OPTIONS.batch))


def make_fitter(options=OPTIONS, **changes):
    return _native.HashgridFitter(*problem(), dataclasses.replace(options, **changes).native())


def groups_of(model):
    """The reference's parameters, a list a group, in the order of the native flat arrays."""
    parts = (model.field.encoding, model.field.mlp, model.artifacts, model.residual)
    return {name: list(part.parameters()) for name, part in zip(GROUPS, parts)}


def flat(tensors):
    return torch.cat([torch.zeros_like(t).flatten() if t is None else t.detach().flatten() for t in tensors]).numpy()


def make_model(parameters, dtype=torch.float32, options=OPTIONS):
    """The reference in the state of the native parameters."""
    model = Stage1Model(HashGridEncoding(**options.grid_config(), dtype=dtype), HEIGHT * WIDTH, CHANNELS)
    for name, tensors in groups_of(model).items():
        torch.nn.utils.vector_to_parameters(torch.from_numpy(parameters[name]).to(dtype), tensors)
    return model


def recipe_of(options):
    return Recipe(**{f.name: getattr(options, f.name) for f in dataclasses.fields(Recipe)})


def train(model, sample, options):
    """The reference's losses over the steps of `sample` [steps, batch], which move the model."""
    features, coords = (torch.from_numpy(a) for a in problem())
    trainer = Trainer(model, features, coords, recipe_of(options))
    return [trainer.take(torch.from_numpy(s)) for s in sample]


def trained_parameters(steps=20):
    """Parameters of some age, so that gradients are not those of a random start."""
    fitter = make_fitter(steps=steps)
    fitter.run(steps)
    return fitter.parameters()


@pytest.mark.parametrize("second_phase", [False, True])
def test_gradients_are_those_of_double_precision(isa, second_phase):
    parameters, sample = trained_parameters(), samples(1)[0]
    fitter = make_fitter()
    fitter.set_parameters(parameters)
    losses, grads = fitter.gradients(sample, second_phase)

    model, index = make_model(parameters, torch.float64), torch.from_numpy(sample)
    features, coords = (torch.from_numpy(a).double() for a in problem())
    raw, points = features.flatten(0, 2)[index], coords.flatten(0, 2)[index]
    loss = model.loss(raw, points, index % (HEIGHT * WIDTH), second_phase, recipe_of(OPTIONS))
    (OPTIONS.loss_scale * loss).backward()
    total = losses["mse"] + losses["cosine"] + 0.1 * losses["residual_mse"] + 0.02 * losses["residual_l1"]
    assert total == pytest.approx(loss.item(), rel=1e-6)
    for name, tensors in groups_of(model).items():
        expected = flat([p.grad if p.grad is not None else torch.zeros_like(p) for p in tensors])
        assert np.abs(grads[name] - expected).max() <= 1e-5 * np.abs(expected).max(), name
        assert expected.any() == (name != ("artifacts" if second_phase else "residual"))


@pytest.mark.parametrize("second_phase", [False, True])
def test_one_step_moves_parameters_as_torch_does(isa, second_phase):
    """Wherever the gradient is above rounding; with eps = 1e-15 rounding noise itself makes a full step."""
    options = dataclasses.replace(OPTIONS, steps=1 if second_phase else 2, warmup=0.0)
    parameters, sample = trained_parameters(), samples(1)
    fitter = make_fitter(options)
    fitter.set_parameters(parameters)
    _, grads = fitter.gradients(sample[0], second_phase)
    fitter.run(1, samples=sample)
    moved = fitter.parameters()

    model = make_model(parameters)
    train(model, sample, options)
    for name, tensors in groups_of(model).items():
        expected, gradient = flat(tensors), np.abs(grads[name])
        if name == ("artifacts" if second_phase else "residual"):
            np.testing.assert_array_equal(moved[name], parameters[name])
        # A first step is lr * sign(g): equal where the sign is certain, and then to a rounding of the parameter.
        certain = gradient > 1e-5 * gradient.max()
        np.testing.assert_allclose(moved[name][certain], expected[certain], rtol=1e-6, atol=1e-7, err_msg=name)
        if name == "grid":
            # Untouched entries move by their weight decay alone, which has no rounding noise.
            np.testing.assert_allclose(moved[name][gradient == 0], expected[gradient == 0], rtol=1e-6, atol=1e-7)


def test_fifty_steps_have_torchs_losses(isa):
    fitter = make_fitter()
    start, sample = fitter.parameters(), samples(50)
    fitter.run(50, samples=sample)
    np.testing.assert_allclose(fitter.loss_history, train(make_model(start), sample, OPTIONS), rtol=1e-3)
    # A fit that stood still would pass: both phases must have learnt something.
    assert fitter.loss_history[24] < 0.7 * fitter.loss_history[0]
    assert fitter.losses["residual_mse"] > 0


def test_learning_rates_are_the_references():
    options = dataclasses.replace(OPTIONS, steps=300)
    got = [options.native().learning_rate(s) for s in range(300)]
    np.testing.assert_allclose(got, [learning_rate(recipe_of(options), s) for s in range(300)], rtol=1e-12)
    assert got[0] == pytest.approx(0.01 / 30) and max(got) == got[30] == pytest.approx(0.01)
    assert 0.001 <= got[-1] < 0.00101


def test_bits_do_not_depend_on_the_number_of_threads(isa):
    results = []
    try:
        for threads in (1, 2, 3):
            _native.set_num_threads(threads)
            fitter = make_fitter(seed=3)
            fitter.run(50)
            results.append(fitter.parameters() | {"losses": fitter.loss_history})
    finally:
        _native.set_num_threads(0)
    for name, value in results[0].items():
        assert all(np.array_equal(value, other[name]) for other in results), name


def test_seeds_differ():
    a, b = (make_fitter(seed=seed) for seed in (0, 1))
    assert not np.array_equal(a.parameters()["grid"], b.parameters()["grid"])
    a.run(3)
    b.run(3)
    assert not np.array_equal(a.loss_history, b.loss_history)


def test_initial_values_have_the_recipes_spread():
    p = make_fitter(OPTIONS, n_levels=8, log2_hashmap_size=12, max_resolution=300).parameters()
    assert np.abs(p["grid"]).max() <= 1e-4 and p["grid"].std() == pytest.approx(1e-4 / 3**0.5, rel=0.05)
    assert p["artifacts"].std() == pytest.approx(0.02, rel=0.1)
    assert np.abs(p["field"]).max() <= 1 / np.sqrt(CHANNELS // 2)


def test_solution_and_gauge():
    features, coords = problem()
    options = dataclasses.replace(OPTIONS, steps=400)
    solution = solve_hashgrid(features, coords, options)
    fitter = make_fitter(steps=400)
    fitter.run(400)
    semantics, artifacts, _ = fitter.decomposition()
    constant = gauge(artifacts.reshape(-1, CHANNELS))
    # The constant that G gave up has gone into F, also where F is queried; nothing else has changed.
    np.testing.assert_allclose(solution.artifacts, artifacts - constant, atol=1e-5)
    np.testing.assert_allclose(solution.semantics, semantics + constant, atol=1e-5)
    np.testing.assert_allclose(solution.field.query(coords[-1]), solution.semantics, atol=1e-5)
    np.testing.assert_allclose(solution.semantics + solution.artifacts + solution.residual, features[-1], atol=1e-5)
    assert np.abs(solution.residual).mean() < 0.5 * np.abs(features[-1]).mean()


def test_semantics_may_be_means_over_patches():
    features, coords = problem()
    centre = solve_hashgrid(features, coords, dataclasses.replace(OPTIONS, steps=4))
    mean = solve_hashgrid(features, coords, dataclasses.replace(OPTIONS, steps=4, patch_means=True))
    np.testing.assert_array_equal(mean.artifacts, centre.artifacts)
    np.testing.assert_array_equal(mean.semantics, patch_means(centre.field.query, coords[-1]))
    assert np.abs(mean.semantics - centre.semantics).max() > 1e-3
    np.testing.assert_allclose(mean.semantics + mean.artifacts + mean.residual, features[-1], atol=1e-5)


def test_field_comes_back_from_its_state():
    features, coords = problem()
    field = solve_hashgrid(features, coords, dataclasses.replace(OPTIONS, steps=4)).field
    arrays, meta = field.state()
    again = HashGridField.from_state(dict(arrays), dict(meta))
    points = np.random.default_rng(0).random((5, 3, 2), np.float32)
    np.testing.assert_array_equal(again.query(points), field.query(points))
    assert field.query(points).shape == (5, 3, CHANNELS)
    with pytest.raises(errors.InputError, match="needs 'widths'"):
        HashGridField.from_state(arrays, {})
    with pytest.raises(errors.InputError, match="grid must have shape"):
        HashGridField.from_state({"grid": arrays["grid"][:-1], "mlp": arrays["mlp"]}, meta)


def test_half_features_are_read_as_their_float32_values():
    half, coords = problem(np.float16)
    options = dataclasses.replace(OPTIONS, steps=20)
    from_half = solve_hashgrid(half, coords, options)
    from_float = solve_hashgrid(half.astype(np.float32), coords, options)
    np.testing.assert_array_equal(from_half.semantics, from_float.semantics)


def test_progress_is_reported_and_can_cancel():
    features, coords = problem()
    calls = []
    solve_hashgrid(features, coords, OPTIONS, lambda *call: calls.append(call))
    assert calls == [(done, 50, "steps") for done in (10, 20, 30, 40, 50)]
    with pytest.raises(errors.Cancelled, match="cancelled at step 20 of 50"):
        solve_hashgrid(features, coords, OPTIONS, lambda done, steps, what: done < 20)

    def interrupt(done, steps, what):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solve_hashgrid(features, coords, OPTIONS, interrupt)


def test_ctrl_c_stops_a_fit_without_a_callback():
    import signal
    import threading

    main = threading.main_thread().ident
    timer = threading.Timer(0.2, lambda: signal.pthread_kill(main, signal.SIGINT))
    fitter = make_fitter(steps=10**7)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        fitter.run(10**7)
    assert 0 < fitter.step < 10**7


def test_bad_numbers_are_named():
    features, coords = problem()
    for value in (np.nan, np.inf):
        bad = features.copy()
        bad[3, 2, 5, 7] = value
        with pytest.raises(errors.NonFiniteError, match="at view 3, row 2, column 5, channel 7"):
            solve_hashgrid(bad, coords, OPTIONS)
    huge = features * np.float32(1e25)  # its square is not a float32
    with pytest.raises(errors.NonFiniteError, match=r"the loss is (inf|nan) at step 1 of 50"):
        solve_hashgrid(huge, coords, OPTIONS)
    outside = coords.copy()
    outside[0, 0, 0, 0] = 1.5
    with pytest.raises(errors.InputError, match=r"coords must be in \[0, 1\], got 1.5"):
        solve_hashgrid(features, outside, OPTIONS)
    with pytest.raises(errors.InputError, match=r"samples must be in \[0, 378\), got 378"):
        make_fitter().run(1, samples=np.full((1, OPTIONS.batch), 378))
