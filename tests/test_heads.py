"""Linear heads: against plain torch modules, and their rates, batches and upsampling."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from dense_samples import RAW
from dvt_fast.errors import Cancelled, InputError, NonFiniteError
from dvt_fast.evaluation.heads import HeadSettings, _batches, train_heads, upsample

SETTINGS = HeadSettings(seeds=2, iterations=25, batch=4, warmup=5, rate=0.02, decay=0.05)


def cross_entropy(labels):
    def loss(logits, picks):  # of heads side by side, one mean a head
        return torch.stack([nn.functional.cross_entropy(z.movedim(0, 1), labels[p]) for z, p in zip(logits, picks)])

    return loss


def samples():
    random = np.random.default_rng(0)
    features = (random.standard_normal((10, 3, 5, 7)) * random.uniform(0.1, 9, 7) + 40).astype(np.float32)
    return features, torch.from_numpy(random.integers(0, 4, (10, 3, 5)))


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_heads_side_by_side_are_batch_norm_and_convolution_of_torch(norm, clip):
    features, labels = samples()
    settings = replace(SETTINGS, norm=norm, clip=clip, rate=0.02 if norm else 1e-4, schedule="cosine")
    heads, losses = train_heads(features, 4, cross_entropy(labels), settings, RAW, std=0.1)
    found = heads.predict(features)
    x = torch.from_numpy(features).movedim(-1, 1)
    for seed in range(settings.seeds):
        generator = torch.Generator().manual_seed(seed)
        conv = nn.Conv2d(7, 4, 1)
        nn.init.zeros_(conv.bias)
        with torch.no_grad():
            conv.weight.copy_(torch.randn(4, 7, generator=generator)[..., None, None] * 0.1)
        plain = nn.Sequential(nn.BatchNorm2d(7), conv) if norm else nn.Sequential(conv)
        if norm:  # ours starts at the mean of all frames, where torch's starts at 0
            plain[0].running_mean.copy_(x.mean((0, 2, 3)))
        optimizer = torch.optim.AdamW(plain.parameters(), lr=1.0, weight_decay=settings.decay)
        each = []
        for iteration, (picks,) in enumerate(_batches(10, settings, [generator])):
            optimizer.param_groups[0]["lr"] = settings.rate_at(iteration)
            loss = nn.functional.cross_entropy(plain(x[picks]), labels[picks])
            optimizer.zero_grad()
            loss.backward()
            if clip:
                nn.utils.clip_grad_norm_(plain.parameters(), clip)
            optimizer.step()
            each.append(loss.item())
        expected = plain.eval()(x).detach()
        torch.testing.assert_close(found[seed].movedim(1, 0), expected, rtol=2e-3, atol=2e-3)
        assert losses[seed] == pytest.approx(np.mean(each), rel=1e-3)


def test_rates_rise_and_fall():
    poly, cosine = replace(SETTINGS, iterations=100, warmup=10, rate=1.0), replace(SETTINGS, warmup=0, rate=1.0)
    assert [poly.rate_at(i) for i in (0, 9, 50)] == pytest.approx([0.1, 0.91, 0.5])
    assert replace(cosine, schedule="cosine", iterations=100).rate_at(50) == pytest.approx(0.5)
    assert replace(cosine, schedule="cosine", iterations=100).rate_at(25) == pytest.approx(0.853553)


def test_every_seed_sees_all_frames_in_its_own_order():
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    picks = torch.cat(list(_batches(10, replace(SETTINGS, iterations=5), generators)), 1)
    assert picks.shape == (2, 20)
    for order in (*picks[:, :10], *picks[:, 10:]):
        assert sorted(order.tolist()) == list(range(10))
    assert picks[0].tolist() != picks[1].tolist()


@pytest.mark.parametrize("size", [(3, 5), (6, 20), (7, 11), (2, 3)])
def test_upsampling_is_torchs_bilinear(size):
    maps = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    expected = nn.functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsample(maps, size), expected)


def test_a_loss_that_is_not_finite_names_variant_and_iteration():
    features, labels = samples()
    features[3, 0, 0, 0] = np.nan
    with pytest.raises(NonFiniteError, match=r"variant raw: .* at iteration 1$"):
        train_heads(features, 4, cross_entropy(labels), SETTINGS, RAW)


def test_training_can_be_stopped():
    features, labels = samples()
    with pytest.raises(Cancelled, match="after 3 of 25 iterations"):
        train_heads(features, 4, cross_entropy(labels), SETTINGS, RAW, lambda done, total, what: done < 3)


@pytest.mark.parametrize(
    "wrong",
    [{"seeds": 0}, {"iterations": 0}, {"loss_scale": 0}, {"rate": -1.0}, {"clip": float("nan")}, {"schedule": "step"}],
)
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        HeadSettings(**wrong)
