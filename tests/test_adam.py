"""Adam against torch.optim.Adam, dense and lazy.

torch's step is a handful of its operators, and ours are the same bits as theirs where both machine and torch fuse
multiply-adds (AVX2, AVX-512), with one exception: torch takes square roots from MKL, which rounds about one in ten
thousand the wrong way, and ours are IEEE's. So: equal bits against torch's operators around an IEEE square root, and
against torch.optim.Adam itself as close as those roundings allow. The generic set has no fused multiply-add, so each
sum of a step rounds once more there. The lazy form is the same bits as the dense one on every set.
"""

import numpy as np
import pytest
import torch

from dvt_fast import _native

OPTIONS = {"betas": (0.9, 0.99), "eps": 1e-15, "weight_decay": 1e-5}
torch_fuses = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def rates(steps):
    return [0.01 * min(1, (s + 1) / 10) * (1 - 0.5 * s / steps) for s in range(steps)]


def dense_torch(params, gradients, lr, options=OPTIONS):
    """Parameters and moments after torch.optim.Adam, one step for each of `gradients`."""
    p = torch.nn.Parameter(torch.from_numpy(params.copy()))
    optimizer = torch.optim.Adam([p], foreach=False, fused=False, **options)
    for gradient, rate in zip(gradients, lr):
        optimizer.param_groups[0]["lr"] = rate
        p.grad = torch.from_numpy(gradient)
        optimizer.step()
    state = optimizer.state[p]
    return p.detach().numpy(), state["exp_avg"].numpy(), state["exp_avg_sq"].numpy()


def dense_torch_operators(params, gradients, lr, options=OPTIONS):
    """The operators of torch.optim.adam._single_tensor_adam, with NumPy's square root, which is IEEE's."""
    (beta1, beta2), eps, weight_decay = options["betas"], options["eps"], options["weight_decay"]
    p = torch.from_numpy(params.copy())
    exp_avg, exp_avg_sq = torch.zeros_like(p), torch.zeros_like(p)
    for t, (gradient, rate) in enumerate(zip(gradients, lr), 1):
        grad = torch.from_numpy(gradient).add(p, alpha=weight_decay)
        exp_avg.lerp_(grad, 1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        root = torch.from_numpy(np.sqrt(exp_avg_sq.numpy()))
        denominator = (root / (1 - beta2**t) ** 0.5).add_(eps)
        p.addcdiv_(exp_avg, denominator, value=-rate / (1 - beta1**t))
    return p.numpy(), exp_avg.numpy(), exp_avg_sq.numpy()


def touches(entries, width, steps, seed=0):
    """For every step a random set of entries, from none to many, and their gradients; the last entries never."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        count = rng.choice([0, 1, 7, entries // 3])
        chosen = rng.permutation(entries - entries // 4)[:count].astype(np.uint32)
        yield chosen, (rng.standard_normal((len(chosen), width)) * 10.0 ** rng.integers(-6, 2)).astype(np.float32)


def spread(chosen, gradients, shape):
    dense = np.zeros(shape, np.float32)
    dense[chosen] = gradients
    return dense


def assert_is_torchs(got, params, gradients, lr, isa, options=OPTIONS):
    """`got`, the parameters and moments after `gradients`, against both forms of torch's Adam."""
    if isa != "generic" and torch_fuses:
        exact = dense_torch_operators(params, gradients, lr, options)
        for name, a, b in zip(("params", "exp_avg", "exp_avg_sq"), got, exact):
            np.testing.assert_array_equal(a, b, err_msg=name)
    p, exp_avg, exp_avg_sq = dense_torch(params, gradients, lr, options)
    # A step moves a parameter by a few rates at most; its sums and its square root each round by 2^-24 of that.
    per_step = 2.0**-23 * (np.abs(params).max() + 20 * max(lr))
    np.testing.assert_allclose(got[0], p, rtol=0, atol=len(gradients) * per_step)
    np.testing.assert_allclose(got[1], exp_avg, rtol=1e-5, atol=1e-6 * np.abs(exp_avg).max())
    np.testing.assert_allclose(got[2], exp_avg_sq, rtol=1e-5)


@pytest.mark.parametrize("n", [1, 64, 1003])
def test_dense_steps_are_torchs(isa, n):
    rng = np.random.default_rng(n)
    params = rng.standard_normal(n).astype(np.float32)
    gradients = [(rng.standard_normal(n) * 10.0 ** rng.integers(-6, 2)).astype(np.float32) for _ in range(30)]
    lr = rates(30)
    state = params, np.zeros_like(params), np.zeros_like(params)
    for t, gradient in enumerate(gradients, 1):
        before, state = state, _native.adam(state[0], gradient, state[1], state[2], lr[t - 1], t, **OPTIONS)
        reference = _native.adam(before[0], gradient, before[1], before[2], lr[t - 1], t, reference=True, **OPTIONS)
        for a, b in zip(state, reference):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * np.abs(b).max())
    assert_is_torchs(state, params, gradients, lr, isa)


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("weight_decay", [1e-5, 0.0])
def test_lazy_replay_is_dense_adam(isa, width, weight_decay):
    """Entries touched at random, often, once or never, end where dense Adam over all of them ends."""
    steps, shape = 120, (203, width)
    options = OPTIONS | {"weight_decay": weight_decay}
    params = (np.random.default_rng(1).standard_normal(shape) * 1e-2).astype(np.float32)
    lr = rates(steps)
    lazy = _native.LazyAdam(params, lr, **options)
    dense = params, np.zeros_like(params), np.zeros_like(params)
    gradients = []
    for t, (chosen, gradient) in enumerate(touches(*shape, steps), 1):
        lazy.step(chosen, gradient, t)
        gradients.append(spread(chosen, gradient, shape))
        flat = [a.ravel() for a in (dense[0], gradients[-1], dense[1], dense[2])]
        dense = tuple(a.reshape(shape) for a in _native.adam(*flat, lr[t - 1], t, **options))
    got = lazy.flushed(steps)
    for name, a, b in zip(("params", "exp_avg", "exp_avg_sq"), got, dense):
        np.testing.assert_array_equal(a, b, err_msg=name)
    assert_is_torchs(got, params, gradients, lr, isa, options)


def test_long_replay_past_the_end_of_the_bias_correction(isa):
    """sqrt(1 - 0.99^t) is 1 in float32 from about t = 1,700 on, and the replay then leaves the division out."""
    steps, shape = 2500, (40, 8)
    params = (np.random.default_rng(1).standard_normal(shape) * 1e-2).astype(np.float32)
    lr = [1e-3] * steps
    lazy = _native.LazyAdam(params, lr, **OPTIONS)
    gradients = [np.zeros(shape, np.float32) for _ in range(steps)]
    for t, chosen in ((1, [3, 4, 5]), (900, [3, 17]), (1650, [5, 30]), (1651, [5, 8]), (2400, [3, 5, 8, 30, 31])):
        gradients[t - 1][chosen] = np.random.default_rng(t).standard_normal((len(chosen), 8))
        lazy.step(np.array(chosen, np.uint32), gradients[t - 1][chosen], t)
    dense = params.ravel(), np.zeros(320, np.float32), np.zeros(320, np.float32)
    for t, gradient in enumerate(gradients, 1):
        dense = _native.adam(dense[0], gradient.ravel(), dense[1], dense[2], lr[t - 1], t, **OPTIONS)
    for a, b in zip(lazy.flushed(steps), dense):
        np.testing.assert_array_equal(a.ravel(), b)
    assert np.float32(np.sqrt(1 - 0.99**1600)) < 1 and np.float32(np.sqrt(1 - 0.99**2400)) == 1


def test_lazy_replay_does_not_depend_on_the_number_of_threads(isa):
    params = np.random.default_rng(1).standard_normal((5000, 8)).astype(np.float32)
    results = []
    try:
        for threads in (1, 3):
            _native.set_num_threads(threads)
            lazy = _native.LazyAdam(params, rates(40), **OPTIONS)
            for t, (chosen, gradient) in enumerate(touches(5000, 8, 40), 1):
                lazy.step(chosen, gradient, t)
            results.append([a.copy() for a in lazy.flushed(40)])
    finally:
        _native.set_num_threads(0)
    assert all(np.array_equal(a, b) for a, b in zip(*results))
