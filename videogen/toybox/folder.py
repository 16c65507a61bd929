"""Write a folder of captioned clips that any videofolder reader can open.

(seed, i)  ->  clips/000000.mp4 ..., metadata.csv (file_name, text), truth.jsonl (ground truth of every frame)
"""

import csv
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from videogen.data.files import atomic_file, refuse_special, save_text
from videogen.toybox.world.captions import caption
from videogen.toybox.world.render import render
from videogen.toybox.world.scenes import FRAME_SIZES, LENGTHS, FrameSize, Scene, draw_scene, track

WORLD_VERSION = 2
"""Raised whenever a seed gives another clip than before, so that no folder mixes clips of two versions."""


def clip_seed(seed: int, index: int) -> int:
    """Derive the seed of one clip from (seed, index) alone, so that a longer folder begins like a shorter one."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0])


def clip_record(scene: Scene, *, file_name: str, text: str) -> dict[str, object]:
    """Describe a clip as one line of truth.jsonl; the pose of each thing is five lists with one value per frame."""
    poses = track(scene)._asdict()
    return {
        "file_name": file_name,
        "text": text,
        "width": scene.width,
        "height": scene.height,
        "num_frames": scene.num_frames,
        "fps": scene.fps,
        "background": scene.background,
        "camera": scene.camera,
        "event": scene.event,
        "seed": scene.seed,
        "things": [
            {"kind": thing.kind, "colour": thing.colour, "size": thing.size, "motion": thing.motion}
            | {name: values[:, i].round(3).tolist() for name, values in poses.items()}  # x, y, radius, angle, opacity
            for i, thing in enumerate(scene.things)
        ],
    }


def write_clip(
    index: int, *, out: Path, seed: int, sizes: Sequence[FrameSize], lengths: Sequence[int]
) -> dict[str, object]:
    """Write the clip of an index into a folder, unless it is there already, and return its record."""
    # These imports are not above, because drawing and judging scenes needs numpy only, and no video library.
    import torch

    from videogen.data.video_io import write_video

    scene = draw_scene(clip_seed(seed, index), sizes=sizes, lengths=lengths)
    file_name = f"clips/{index:06d}.mp4"
    if not (out / file_name).exists():  # An existing file is complete: it was renamed when it was finished.
        write_video(out / file_name, torch.from_numpy(render(scene)), fps=scene.fps, overwrite=True)
    return clip_record(scene, file_name=file_name, text=caption(scene, scene.seed))


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
    """Write num_clips clips with captions and ground truth; metadata.csv comes last, so a folder with one is complete.

    The same call resumes an interrupted one, and a larger num_clips extends a folder. Raises ValueError if num_clips
    is below 1, if out is a file or a folder with any other content, or if a fifo or the like is in a file's place.
    """
    if num_clips < 1:
        raise ValueError(f"num_clips must be at least 1, got {num_clips}")
    settings = json.dumps({"world": WORLD_VERSION, "seed": seed, "sizes": list(sizes), "lengths": list(lengths)})
    settings_file = out / "toybox.json"
    for folder in (out, out / "clips"):
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file; give a folder")
    for path in (settings_file, out / "truth.jsonl", out / "metadata.csv", *(out / "clips").glob("*.mp4")):
        refuse_special(path)
    is_ours = settings_file.is_file() and settings_file.read_text(encoding="utf-8") == settings
    if out.exists() and any(out.iterdir()) and not is_ours:
        raise ValueError(f"{out} holds something else already; give a new or empty folder, or delete it first")
    (out / "clips").mkdir(parents=True, exist_ok=True)
    save_text(settings_file, settings)
    write = partial(write_clip, out=out, seed=seed, sizes=sizes, lengths=lengths)
    records: list[dict[str, object]] = []
    pool = ThreadPoolExecutor(num_workers)  # Threads are enough, because each waits for its own ffmpeg process.
    try:
        for num_done, record in enumerate(pool.map(write, range(num_clips)), start=1):
            records.append(record)
            on_clip(num_done)
    finally:
        pool.shutdown(cancel_futures=True)  # An interrupt does not wait for the remaining clips.
    save_text(out / "truth.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    with atomic_file(out / "metadata.csv") as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("file_name", "text"))
        writer.writerows((record["file_name"], record["text"]) for record in records)
