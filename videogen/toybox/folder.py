"""Write a folder of captioned clips that any videofolder reader can open.

(seed, i)  ->  clips/000000.mp4 ..., metadata.csv (file_name, text), truth.jsonl (everything about every frame)
"""

import csv
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypedDict

import numpy as np

from videogen.toybox.world.captions import caption
from videogen.toybox.world.motions import Thing
from videogen.toybox.world.render import render
from videogen.toybox.world.scenes import FRAME_SIZES, LENGTHS, FrameSize, Scene, draw_scene, track

WORLD = 2
"""Raised whenever a seed means another clip than before, so that no folder holds clips of two worlds."""


class ThingTruth(TypedDict):
    """One object in truth.jsonl; the lists have one value a frame."""

    kind: str
    colour: str
    size: str
    motion: str
    x: list[float]
    y: list[float]
    radius: list[float]
    angle: list[float]
    opacity: list[float]


class Truth(TypedDict):
    """One line of truth.jsonl."""

    file_name: str
    text: str
    width: int
    height: int
    num_frames: int
    fps: int
    background: str
    camera: str
    event: str
    seed: int
    things: list[ThingTruth]


def clip_seed(seed: int, index: int) -> int:
    """The seed of one clip of a folder: it depends on nothing else, so a longer folder begins like a shorter one."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0])


def truth(scene: Scene, *, file_name: str, text: str) -> Truth:
    """All there is to know about a clip, as plain values for JSON."""
    pose = track(scene)

    def thing_truth(i: int, thing: Thing) -> ThingTruth:
        x, y, radius, angle, opacity = (part[:, i].round(3).tolist() for part in pose)
        return ThingTruth(
            kind=thing.kind,
            colour=thing.colour,
            size=thing.size,
            motion=thing.motion,
            x=x,
            y=y,
            radius=radius,
            angle=angle,
            opacity=opacity,
        )

    return Truth(
        file_name=file_name,
        text=text,
        width=scene.width,
        height=scene.height,
        num_frames=scene.num_frames,
        fps=scene.fps,
        background=scene.background,
        camera=scene.camera,
        event=scene.event,
        seed=scene.seed,
        things=[thing_truth(i, thing) for i, thing in enumerate(scene.things)],
    )


def write_clip(index: int, *, out: Path, seed: int, sizes: Sequence[FrameSize], lengths: Sequence[int]) -> Truth:
    """Write clip number index of a folder and say what is in it."""
    # Here and not above: drawing and judging scenes needs numpy only, and no video library.
    import torch

    from videogen.data.video_io import write_video

    scene = draw_scene(clip_seed(seed, index), sizes=sizes, lengths=lengths)
    file_name = f"clips/{index:06d}.mp4"
    if not (out / file_name).exists():  # a file that is there is whole: it was renamed when it was finished
        write_video(out / file_name, torch.from_numpy(render(scene)), fps=scene.fps)
    return truth(scene, file_name=file_name, text=caption(scene, scene.seed))


def write_folder(
    out: Path,
    *,
    num_clips: int,
    seed: int,
    sizes: Sequence[FrameSize] = FRAME_SIZES,
    lengths: Sequence[int] = LENGTHS,
    num_workers: int = 2,
    on_clip: Callable[[int], None] = lambda num_done: None,
) -> None:
    """Write num_clips clips with captions and truth; metadata.csv comes last, so a folder that has one is whole.

    The same call goes on where an earlier one was stopped, and a larger num_clips adds to a folder.
    """
    if num_clips < 1:
        raise ValueError(f"num_clips must be at least 1, got {num_clips}")
    world = json.dumps({"world": WORLD, "seed": seed, "sizes": list(sizes), "lengths": list(lengths)})
    note = out / "toybox.json"
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give a folder")
    if out.exists() and any(out.iterdir()) and not (note.is_file() and note.read_text(encoding="utf-8") == world):
        raise ValueError(f"{out} holds something else already; give a new or empty folder, or delete it first")
    (out / "clips").mkdir(parents=True, exist_ok=True)
    note.write_text(world, encoding="utf-8")
    write = partial(write_clip, out=out, seed=seed, sizes=sizes, lengths=lengths)
    truths: list[Truth] = []
    pool = ThreadPoolExecutor(num_workers)  # threads are enough: each waits for its own ffmpeg process
    try:
        for num_done, one in enumerate(pool.map(write, range(num_clips)), start=1):
            truths.append(one)
            on_clip(num_done)
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt does not wait for all the clips that are left
    lines = out / "truth.jsonl.part"
    lines.write_text("".join(json.dumps(one) + "\n" for one in truths), encoding="utf-8")
    lines.replace(out / "truth.jsonl")
    table = out / "metadata.csv.part"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("file_name", "text"))
        writer.writerows((one["file_name"], one["text"]) for one in truths)
    table.replace(out / "metadata.csv")
