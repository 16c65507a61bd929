"""The distance between sets of clips is unbiased, its interval covers, and it notices wrong motion."""

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
    FeatureExtractor,
    extract_features,
    load_feature_extractor,
    mmd,
    render_reference_clips,
    targets,
)

needs_weights = pytest.mark.skipif(not WEIGHTS.is_file(), reason="assets/toybox/features.safetensors is not there")


def world_clips(num: int, first: int = 0) -> list[np.ndarray]:
    """Render clips of the world, all 64x64 and 17 frames long."""
    return [render(draw_scene(seed, sizes=((64, 64),), lengths=(17,))) for seed in range(first, first + num)]


def normal_features(num: int, seed: int, shift: float = 0.0) -> Tensor:
    return shift + torch.randn(num, 16, generator=torch.Generator().manual_seed(seed))


def mmd_by_definition(a: Tensor, b: Tensor) -> float:
    """Compute the distance by its definition, pair by pair (Gretton et al. 2012, Eq. 3)."""

    def mean(x: Tensor, y: Tensor) -> float:
        pairs = [(i, j) for i in range(len(x)) for j in range(len(y)) if x is not y or i != j]
        return sum(float((x[i].double() @ y[j].double() / x.shape[1] + 1) ** 3) for i, j in pairs) / len(pairs)

    return mean(a, a) + mean(b, b) - 2 * mean(a, b)


def test_mmd_equals_its_definition_and_is_symmetric() -> None:
    a, b = normal_features(7, 0), normal_features(5, 1, shift=0.5)
    assert mmd(a, b).value == pytest.approx(mmd_by_definition(a, b), rel=1e-9)
    assert mmd(b, a).value == pytest.approx(mmd_by_definition(a, b), rel=1e-9)


def test_the_interval_equals_the_jackknife_over_both_sets() -> None:
    a, b = normal_features(6, 0), normal_features(5, 1, shift=0.5)
    variance = 0.0
    for num, values in (
        (len(a), [mmd_by_definition(torch.cat([a[:i], a[i + 1 :]]), b) for i in range(len(a))]),
        (len(b), [mmd_by_definition(a, torch.cat([b[:i], b[i + 1 :]])) for i in range(len(b))]),
    ):
        variance += (num - 1) * float(np.var(values))
    value, (low, high) = mmd(a, b)
    assert (high - low) / 2 == pytest.approx(1.96 * variance**0.5, rel=1e-6)
    assert (high + low) / 2 == pytest.approx(value, rel=1e-9)


def test_mmd_of_samples_of_one_distribution_is_unbiased_and_its_interval_covers_zero() -> None:
    distances = [mmd(normal_features(40, 2 * seed), normal_features(40, 2 * seed + 1)) for seed in range(100)]
    values = torch.tensor([distance.value for distance in distances])
    assert abs(values.mean()) < 3 * values.std() / 10  # without bias: three standard errors of 100 draws
    # At 95% coverage, fewer than 88 of 100 draws happen once in a thousand times.
    assert sum(low <= 0 <= high for _, (low, high) in distances) >= 88


def test_a_distance_needs_three_clips_in_each_set() -> None:
    with pytest.raises(ValueError, match="needs 3 clips in each, got 2 and 5"):
        mmd(normal_features(2, 0), normal_features(5, 1))


@pytest.mark.parametrize("shape", [(1, 48, 96), (9, 64, 64), (5, 50, 70)])
def test_features_and_logits_have_their_shapes_for_clips_of_any_size(shape: tuple[int, int, int]) -> None:
    extractor = FeatureExtractor()
    assert extract_features([np.zeros((*shape, 3), np.uint8)] * 2, extractor).shape == (2, features.WIDTH)
    assert {name: logits.shape[1] for name, logits in extractor(torch.zeros(1, 3, *shape)).items()} == {
        name: len(labels) for name, labels in LABELS.items()
    }


def test_targets_label_what_a_scene_shows() -> None:
    scene = draw_scene(3)
    labels = targets(scene)
    assert [LABELS["background"][i] for i in labels["background"].nonzero()] == [scene.background]
    assert {LABELS["kind"][i] for i in labels["kind"].nonzero()} == {thing.kind for thing in scene.things}
    assert {LABELS["motion"][i] for i in labels["motion"].nonzero()} <= {thing.motion for thing in scene.things}


def test_reference_clips_have_the_sizes_of_the_clips_and_other_scenes() -> None:
    own = [np.zeros((t, h, w, 3), np.uint8) for t, h, w in ((1, 48, 64), (9, 96, 48), (2, 50, 70))]
    references = list(render_reference_clips(own))
    assert [clip.shape for clip in references] == [clip.shape for clip in own]
    assert references[0].std() > 0


def test_the_network_takes_less_than_3_megabytes() -> None:
    extractor = FeatureExtractor()
    assert sum(value.numel() for value in extractor.state_dict().values()) * 2 < 3e6  # bytes, in half precision


@needs_weights
def test_the_distance_to_the_world_is_zero_for_its_own_clips_and_positive_for_wrong_ones() -> None:
    extractor, rng = load_feature_extractor(), np.random.default_rng(0)
    own, others = world_clips(96), extract_features(world_clips(96, first=10_000), extractor)
    near = mmd(extract_features(own, extractor), others)
    assert near.interval[0] <= 0 <= near.interval[1]
    empty = [np.repeat(np.median(clip, axis=0, keepdims=True).astype(np.uint8), len(clip), axis=0) for clip in own]
    assert mmd(extract_features(empty, extractor), others).interval[0] > 0
    wrong = {
        "frozen": [np.repeat(clip[:1], len(clip), axis=0) for clip in own],
        "shuffled in time": [rng.permutation(clip) for clip in own],
        "upside down": [np.ascontiguousarray(clip[:, ::-1]) for clip in own],
    }
    for name, changed in wrong.items():  # They show the same scenes, so chance moves both distances alike.
        assert mmd(extract_features(changed, extractor), others).value > near.value + 0.01, name
