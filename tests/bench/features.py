"""Train the network behind the toybox's distance between sets of clips: python tests/bench/features.py [BATCHES].

    scenes of all sizes and lengths  ->  assets/toybox/features.safetensors (half precision), accuracy on stdout

A batch takes about a third of a second of one core; the labels are those of videogen/toybox/judge/features.py.
"""

from __future__ import annotations

import sys
from collections import defaultdict

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from videogen.data.files import save_tensors
from videogen.toybox import draw_scene, render
from videogen.toybox.judge.features import LABELS, WEIGHTS, FeatureExtractor, targets
from videogen.toybox.world.scenes import FRAME_SIZES, LENGTHS

BATCH, RATE, FIRST_SEED = 16, 2e-3, 10_000_000  # far from the seeds of any folder that starts at 0
LEAST_SPREAD = 0.02  # of a feature, so that one that hardly differs is not amplified


def draw_batch(number: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Render clips of one size and length, with their labels."""
    generator = torch.Generator().manual_seed(number)
    size = FRAME_SIZES[int(torch.randint(len(FRAME_SIZES), (), generator=generator)) if number % 3 == 1 else 0]
    length = LENGTHS[int(torch.randint(len(LENGTHS), (), generator=generator)) if number % 3 == 0 else 0]
    first = FIRST_SEED + BATCH * number
    scenes = [draw_scene(seed, sizes=(size,), lengths=(length,)) for seed in range(first, first + BATCH)]
    clips = torch.stack([torch.from_numpy(render(scene)) for scene in scenes])
    labels = [targets(scene) for scene in scenes]
    return (
        rearrange(clips, "b t h w c -> b c t h w").float() / 127.5 - 1,
        {name: torch.stack([label[name] for label in labels]) for name in LABELS},
    )


@torch.no_grad()
def measure_accuracy(reader: FeatureExtractor, batches: int = 24) -> dict[str, float]:
    """Measure, for each kind of label, the share of held-out clips whose labels are all predicted right."""
    right: dict[str, list[float]] = defaultdict(list)
    for number in range(-batches, 0):
        video, labels = draw_batch(number)
        for name, logits in reader(video).items():
            right[name] += ((logits > 0) == (labels[name] > 0.5)).all(dim=1).float().tolist()
    return {name: sum(values) / len(values) for name, values in right.items()}


@torch.no_grad()
def fit_normalisation(reader: FeatureExtractor, batches: int = 24) -> None:
    """Set the mean and the deviation of the network's features, over held-out clips."""
    features = torch.cat([reader.features(draw_batch(number)[0]) for number in range(-batches, 0)])
    reader.middle.copy_(features.mean(0))
    reader.spread.copy_(features.std(0).clamp(min=LEAST_SPREAD))


def compute_loss(reader: FeatureExtractor, video: Tensor, labels: dict[str, Tensor]) -> Tensor:
    """Compute the cross entropy, every label of a clip counting alike."""
    losses = [
        F.binary_cross_entropy_with_logits(logits, labels[name], reduction="sum")
        for name, logits in reader(video).items()
    ]
    return torch.stack(losses).sum() / len(video)


def main(batches: int = 450) -> None:
    torch.manual_seed(0)
    reader = FeatureExtractor()
    optimizer = torch.optim.AdamW(reader.parameters(), lr=RATE, weight_decay=0.01)
    recent = 0.0
    for number in range(batches):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (number + 1) / 100, 3 * (1 - number / batches))
        loss = compute_loss(reader, *draw_batch(number))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        recent += loss.item() / 100
        if (number + 1) % 100 == 0:
            print(f"{number + 1} batches: loss {recent:.3f}", flush=True)
            recent = 0.0
    reader.eval()
    fit_normalisation(reader)
    print({name: round(value, 3) for name, value in measure_accuracy(reader).items()}, f"after {batches * BATCH} clips")
    save_tensors({name: value.half() for name, value in reader.state_dict().items()}, WEIGHTS)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
