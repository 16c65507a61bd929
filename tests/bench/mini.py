"""What the default checkpoint gets right, by a simple reader of frames: python tests/bench/mini.py [CHECKPOINT].

64 one-object scenes of 64x64x17 that no training folder holds, one clip each at the default settings. The same reader
also looks at the world's own clips and at those after the VAE (the ceilings), and at the clips under shuffled captions
(the floor). It reads background, colour and direction of single shapes only. -> assets/bench/mini.json
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from videogen.pipeline import VideoPipeline, to_uint8
from videogen.toybox.backgrounds import paint
from videogen.toybox.captions import caption
from videogen.toybox.render import masks, render
from videogen.toybox.scenes import Scene, draw_scene, track
from videogen.toybox.things import BACKGROUNDS, COLOURS, SHAPES

ROOT = Path(__file__).parents[2]
FIRST_SEED, NUM_SCENES = 10**9, 64
FRAME, LENGTH = (64, 64), 17
SECTORS = ("right", "down right", "down", "down left", "left", "up left", "up", "up right")


class Seen(NamedTuple):
    """What the reader makes of a clip."""

    background: str
    colour: str
    direction: str  # one of SECTORS, or "none" where the object ends near where it began


def read(frames: np.ndarray, scene: Scene) -> Seen:
    """Background by the least median difference, object by what differs from it, direction by its centre's way."""
    painted = {name: paint(replace(scene, background=name)) for name in BACKGROUNDS}
    distance = {name: np.abs(frames.astype(np.float32) - behind).mean(-1) for name, behind in painted.items()}
    background = min(distance, key=lambda name: float(np.median(distance[name]) + distance[name].mean() / 4))
    differs = distance[background]
    object_ = differs > max(20.0, float(np.quantile(differs, 0.9)) * 0.5)
    return Seen(background, vote(frames[object_]), direction(object_))


def vote(pixels: np.ndarray) -> str:
    """The colour of the palette that most of some pixels (n, 3) are nearest to."""
    if not len(pixels):
        return "none"
    distance = np.stack([np.square(pixels.astype(np.float32) - np.array(rgb)).sum(-1) for rgb in COLOURS.values()])
    return list(COLOURS)[int(np.bincount(distance.argmin(0), minlength=len(COLOURS)).argmax())]


def direction(mask: np.ndarray) -> str:
    """The way of a mask's centre from the first third of a clip (t, h, w) to the last."""
    rows, columns = np.mgrid[: mask.shape[1], : mask.shape[2]]
    weight = mask.sum((1, 2)).clip(1)
    x, y = (mask * columns).sum((1, 2)) / weight, (mask * rows).sum((1, 2)) / weight
    third = len(mask) // 3
    dx, dy = (part[-third:].mean() - part[:third].mean() for part in (x, y))
    return named(float(dx), float(dy))


def named(dx: float, dy: float) -> str:
    """A displacement in pixels as one of eight directions; "none" below 4 pixels."""
    if np.hypot(dx, dy) < 4:
        return "none"
    return SECTORS[int(np.round(np.arctan2(dy, dx) / (np.pi / 4))) % 8]


def truth(scene: Scene) -> Seen:
    """The same three things, known."""
    pose, third = track(scene), LENGTH // 3
    dx, dy = (part[-third:, 0].mean() - part[:third, 0].mean() for part in (pose.x, pose.y))
    return Seen(scene.background, scene.things[0].colour, named(float(dx), float(dy)))


def scores(seen: list[Seen], wanted: list[Seen]) -> dict[str, float]:
    """Share of clips right in each respect and in all."""
    pairs = list(zip(seen, wanted, strict=True))
    result = {name: sum(getattr(a, name) == getattr(b, name) for a, b in pairs) for name in Seen._fields}
    result["all"] = sum(a == b for a, b in pairs)
    return {name: round(count / len(pairs), 3) for name, count in result.items()}


def scenes() -> list[Scene]:
    """One-object scenes from seeds that no folder of clips uses."""
    found: list[Scene] = []
    seed = FIRST_SEED
    while len(found) < NUM_SCENES:
        scene = draw_scene(seed, sizes=(FRAME,), lengths=(LENGTH,))
        if len(scene.things) == 1 and scene.things[0].kind in SHAPES and scene.camera == "still":
            found.append(scene)
        seed += 1
    return found


@torch.no_grad()
def rebuild(pipeline: VideoPipeline, clips: list[np.ndarray]) -> list[Tensor]:
    """Clips after the VAE."""
    videos = [rearrange(torch.from_numpy(clip).float() / 127.5 - 1, "t h w c -> 1 c t h w") for clip in clips]
    return [to_uint8(pipeline.vae.decode(pipeline.vae.encode(video))[0]) for video in videos]


def overlap(made: np.ndarray, scene: Scene) -> float:
    """Intersection over union of the true mask and what differs from the background in a rebuilt clip."""
    behind = paint(scene)
    wanted = masks(scene)[:, 0] > 0.5
    colour = np.array(COLOURS[scene.things[0].colour], np.float32)
    found = np.square(made - colour).sum(-1) < np.square(made - behind).sum(-1)
    return float((wanted & found).sum() / max(1, (wanted | found).sum()))


def main() -> None:
    """Measure and write."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "assets" / "mini"
    pipeline = VideoPipeline.load(folder)
    worlds = scenes()
    clips = [render(scene) for scene in worlds]
    prompts = [caption(scene, scene.seed) for scene in worlds]
    made: list[Tensor] = []
    for start in range(0, NUM_SCENES, 16):
        made += pipeline(prompts[start : start + 16], pipeline.defaults, seeds=range(start, start + 16))
    rebuilt = rebuild(pipeline, clips)
    wanted = [truth(scene) for scene in worlds]
    seen = [read(clip.numpy(), scene) for clip, scene in zip(made, worlds, strict=True)]
    errors = [float(np.square(a.numpy() - b.astype(np.float32)).mean()) for a, b in zip(rebuilt, clips, strict=True)]
    overlaps = [overlap(clip.numpy(), scene) for clip, scene in zip(rebuilt, worlds, strict=True)]
    result = {
        "protocol": f"{NUM_SCENES} one-object scenes from seed {FIRST_SEED}, one clip each, default settings",
        "vae_psnr_db": round(float(np.mean(10 * np.log10(255**2 / np.array(errors)))), 2),
        "vae_foreground_iou": round(float(np.mean(overlaps)), 3),
        "world's own clips": scores([read(clip, scene) for clip, scene in zip(clips, worlds, strict=True)], wanted),
        "after the VAE": scores([read(c.numpy(), s) for c, s in zip(rebuilt, worlds, strict=True)], wanted),
        "generated": scores(seen, wanted),
        "shuffled captions": scores(seen, wanted[1:] + wanted[:1]),
    }
    text = json.dumps(result, indent=2)
    print(text)
    (ROOT / "assets" / "bench" / "mini.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
