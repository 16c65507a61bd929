"""Train the network behind the toybox's distance between sets of clips: python tests/bench/features.py [MINUTES].

    scenes of all sizes and lengths  ->  assets/toybox/features.safetensors (half precision), accuracy on stdout

One core reaches the accuracies below in about 20 minutes; the labels are those of videogen/toybox/features.py.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from videogen.storage import save_tensors
from videogen.toybox import draw_scene, render
from videogen.toybox.features import LABELS, WEIGHTS, Reader, targets
from videogen.toybox.scenes import FRAME_SIZES, LENGTHS

BATCH, RATE, FIRST_SEED = 16, 1.5e-3, 10_000_000  # far from the seeds of any folder that starts at 0


def draw_batch(number: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Clips of one size and length, and what is true of them."""
    order = torch.Generator().manual_seed(number)
    size = FRAME_SIZES[int(torch.randint(len(FRAME_SIZES), (), generator=order)) if number % 2 else 0]
    length = LENGTHS[int(torch.randint(len(LENGTHS), (), generator=order)) if number % 3 == 0 else 0]
    first = FIRST_SEED + BATCH * number
    scenes = [draw_scene(seed, sizes=(size,), lengths=(length,)) for seed in range(first, first + BATCH)]
    clips = torch.stack([torch.from_numpy(render(scene)) for scene in scenes])
    told = [targets(scene) for scene in scenes]
    return (
        rearrange(clips, "b t h w c -> b c t h w").float() / 127.5 - 1,
        {name: torch.stack([one[name] for one in told]) for name in LABELS},
    )


@torch.no_grad()
def measure(reader: Reader, batches: int = 24) -> dict[str, float]:
    """For each kind of label the share of held-out clips of which all its labels are read rightly."""
    right: dict[str, list[float]] = defaultdict(list)
    for number in range(-batches, 0):
        video, told = draw_batch(number)
        for name, logits in reader(video).items():
            right[name] += ((logits > 0) == (told[name] > 0.5)).all(dim=1).float().tolist()
    return {name: sum(values) / len(values) for name, values in right.items()}


def main(minutes: float = 20.0) -> None:
    torch.manual_seed(0)
    reader = Reader()
    optimizer = torch.optim.AdamW(reader.parameters(), lr=RATE, weight_decay=0.01)
    began, number = time.monotonic(), 0
    while (done := (time.monotonic() - began) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (number + 1) / 100) * min(1.0, 4 * (1 - done))
        video, told = draw_batch(number)
        losses = [F.binary_cross_entropy_with_logits(logits, told[name]) for name, logits in reader(video).items()]
        loss = torch.stack(losses).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        number += 1
        if number % 100 == 0:
            print(f"{number} batches, {done:.0%}: loss {loss.item():.3f}", flush=True)
    reader.eval()
    print({name: round(value, 3) for name, value in measure(reader).items()}, f"after {number * BATCH} clips")
    save_tensors({name: value.half() for name, value in reader.state_dict().items()}, WEIGHTS)


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
