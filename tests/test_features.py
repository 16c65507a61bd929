"""The distance between sets of clips: without bias, with an honest interval, blind to nothing that moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from videogen.toybox import draw_scene, render
from videogen.toybox.judge import features
from videogen.toybox.judge.features import (
    LABELS,
    WEIGHTS,
    Reader,
    draw_others,
    load_reader,
    mmd,
    read_features,
    targets,
)

needs_weights = pytest.mark.skipif(not WEIGHTS.is_file(), reason="assets/toybox/features.safetensors is not there")


def clips(num: int, first: int = 0) -> list[np.ndarray]:
    """The world's own, all of the common size and length."""
    return [render(draw_scene(seed, sizes=((64, 64),), lengths=(17,))) for seed in range(first, first + num)]


def normal(num: int, seed: int, shift: float = 0.0) -> Tensor:
    return shift + torch.randn(num, 16, generator=torch.Generator().manual_seed(seed))


def plainly(a: Tensor, b: Tensor) -> float:
    """The distance as it is defined, pair by pair (Gretton et al. 2012, Eq. 3)."""

    def mean(x: Tensor, y: Tensor) -> float:
        pairs = [(i, j) for i in range(len(x)) for j in range(len(y)) if x is not y or i != j]
        return sum(float((x[i].double() @ y[j].double() / x.shape[1] + 1) ** 3) for i, j in pairs) / len(pairs)

    return mean(a, a) + mean(b, b) - 2 * mean(a, b)


def test_the_distance_is_as_defined() -> None:
    a, b = normal(7, 0), normal(5, 1, shift=0.5)
    assert mmd(a, b).value == pytest.approx(plainly(a, b), rel=1e-9)
    assert mmd(b, a).value == pytest.approx(plainly(a, b), rel=1e-9)


def test_the_interval_is_the_jackknifes() -> None:
    a, b = normal(6, 0), normal(5, 1, shift=0.5)
    variance = 0.0
    for k, left in (
        (len(a), [plainly(torch.cat([a[:i], a[i + 1 :]]), b) for i in range(len(a))]),
        (len(b), [plainly(a, torch.cat([b[:i], b[i + 1 :]])) for i in range(len(b))]),
    ):
        variance += (k - 1) * float(np.var(left))
    value, (low, high) = mmd(a, b)
    assert (high - low) / 2 == pytest.approx(1.96 * variance**0.5, rel=1e-6)
    assert (high + low) / 2 == pytest.approx(value, rel=1e-9)


def test_two_samples_of_one_kind_are_no_distance_apart() -> None:
    found = [mmd(normal(40, 2 * seed), normal(40, 2 * seed + 1)) for seed in range(100)]
    values = torch.tensor([one.value for one in found])
    assert abs(values.mean()) < 3 * values.std() / 10  # without bias: three standard errors of 100 draws
    # 95% is meant; of 100 draws fewer than 88 happen once in a thousand times.
    assert sum(low <= 0 <= high for _, (low, high) in found) >= 88


def test_a_distance_wants_three_clips() -> None:
    with pytest.raises(ValueError, match="needs 3 clips in each, got 2 and 5"):
        mmd(normal(2, 0), normal(5, 1))


@pytest.mark.parametrize("shape", [(1, 48, 96), (9, 64, 64), (5, 50, 70)])
def test_clips_of_any_size_have_features(shape: tuple[int, int, int]) -> None:
    reader = Reader()
    assert read_features([np.zeros((*shape, 3), np.uint8)] * 2, reader).shape == (2, features.WIDTH)
    assert {name: logits.shape[1] for name, logits in reader(torch.zeros(1, 3, *shape)).items()} == {
        name: len(labels) for name, labels in LABELS.items()
    }


def test_the_network_learns_what_a_scene_shows() -> None:
    scene = draw_scene(3)
    told = targets(scene)
    assert [LABELS["background"][i] for i in told["background"].nonzero()] == [scene.background]
    assert {LABELS["kind"][i] for i in told["kind"].nonzero()} == {thing.kind for thing in scene.things}
    assert {LABELS["motion"][i] for i in told["motion"].nonzero()} <= {thing.motion for thing in scene.things}


def test_others_have_the_same_sizes_and_are_others() -> None:
    own = [np.zeros((t, h, w, 3), np.uint8) for t, h, w in ((1, 48, 64), (9, 96, 48), (2, 50, 70))]
    others = list(draw_others(own))
    assert [clip.shape for clip in others] == [clip.shape for clip in own]
    assert others[0].std() > 0


def test_the_trained_network_is_small() -> None:
    reader = Reader()
    assert sum(value.numel() for value in reader.state_dict().values()) * 2 < 3e6  # bytes, in half precision


@needs_weights
def test_the_world_is_near_itself_and_far_from_what_is_wrong() -> None:
    reader, rng = load_reader(), np.random.default_rng(0)
    own, others = clips(96), read_features(clips(96, first=10_000), reader)
    near = mmd(read_features(own, reader), others)
    assert near.interval[0] <= 0 <= near.interval[1]
    empty = [np.repeat(np.median(clip, axis=0, keepdims=True).astype(np.uint8), len(clip), axis=0) for clip in own]
    assert mmd(read_features(empty, reader), others).interval[0] > 0
    wrong = {
        "frozen": [np.repeat(clip[:1], len(clip), axis=0) for clip in own],
        "shuffled in time": [rng.permutation(clip) for clip in own],
        "upside down": [np.ascontiguousarray(clip[:, ::-1]) for clip in own],
    }
    for name, changed in wrong.items():  # of the same scenes, so chance moves both alike
        assert mmd(read_features(changed, reader), others).value > near.value + 0.01, name
