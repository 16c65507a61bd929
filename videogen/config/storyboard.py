"""Read a storyboard: the scenes of one clip, each with its own prompt, and how one leads to the next.

scenes.toml  ->  [Scene]  ->  [Shot], each a run of scenes that continue each other
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

from videogen.config.parsing import from_mapping, nearest
from videogen.config.sizes import require_positive

BLEND_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A part of a clip under one prompt."""

    prompt: str
    """What is seen."""
    seconds: float = 2.0
    """For how long."""
    transition: Literal["cut", "blend", "continue"] = "cut"
    """How it begins: by a cut, blended with the end of the scene before, or with its last frames as its first."""
    image: str = ""
    """A picture as its first frame: a file, or @name of one in the table [images]."""

    def __post_init__(self) -> None:
        require_positive(self, "seconds")
        if self.image and self.transition == "continue":
            raise ValueError(
                "image begins a scene and transition 'continue' goes on from the one before; leave one out"
            )


class Shot(NamedTuple):
    """Scenes that continue each other, with the frame at which each ends."""

    scenes: tuple[Scene, ...]
    ends: tuple[int, ...]
    blend: int = 0  # frames at its beginning that are mixed with the end of the shot before

    @property
    def num_frames(self) -> int:
        """The frames of the shot, 1 + a multiple of the stride."""
        return self.ends[-1]


def read_storyboard(path: Path) -> list[Scene]:
    """Read the scenes of a file; a ValueError names the line at fault."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}; give another with --storyboard")
    text = path.read_text(encoding="utf-8")
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    for key in values:
        if key not in ("scene", "images"):
            raise ValueError(
                f"{path} line {line_of(text, key)}: unknown key {key!r}{nearest(key, ('scene', 'images'))}"
            )
    tables, images = values.get("scene"), values.get("images", {})
    if not isinstance(tables, list) or not tables:
        raise ValueError(f"{path} has no scenes; begin each with a line [[scene]], and give it a prompt")
    return [read_scene(table, images, path, text, number) for number, table in enumerate(tables, start=1)]


def read_scene(table: Mapping[str, object], images: Mapping[str, object], path: Path, text: str, number: int) -> Scene:
    """Read the scene of some number, counted from 1; its picture is looked up, beside the storyboard."""
    try:
        scene = from_mapping(Scene, {"prompt": "", **table})
        if not scene.prompt:
            raise ValueError("a scene needs a prompt")
        if number == 1 and scene.transition != "cut":
            raise ValueError(f"transition of the first scene has nothing before it to {scene.transition}; leave it out")
        if scene.image.startswith("@") and scene.image[1:] not in images:
            raise ValueError(f"image {scene.image!r} is not in [images]{nearest(scene.image[1:], images)}")
        name = str(images[scene.image[1:]]) if scene.image.startswith("@") else scene.image
        scene = replace(scene, image=str(path.parent / name) if name else "")
        if scene.image and not Path(scene.image).is_file():
            raise ValueError(f"image {scene.image} does not exist")
    except ValueError as error:
        key = next((key for key in table if re.search(rf"\b{re.escape(key)}\b", str(error))), "")
        raise ValueError(f"{path} line {line_of(text, key, number)}: {error}") from None
    return scene


def line_of(text: str, key: str, scene: int = 0) -> int:
    """Return the line on which a key of a scene is set, or else that on which the scene begins."""
    current, begins = 0, 1
    for number, line in enumerate(text.splitlines(), start=1):
        if re.match(r"\s*\[\[\s*scene\s*\]\]", line):
            current += 1
            begins = number if current == scene else begins
        if scene in (0, current) and key and re.match(rf"\s*\[*\s*[\"']?{re.escape(key)}\b", line):
            return number
    return begins


def plan_shots(scenes: Sequence[Scene], fps: float, stride: int) -> list[Shot]:
    """Group scenes into shots, each scene rounded to whole latent frames of `stride` frames."""
    shots = list[Shot]()
    for scene in scenes:
        if scene.transition == "continue":
            last = shots.pop()
            frames = stride * round(scene.seconds * fps / stride)
            shots.append(last._replace(scenes=(*last.scenes, scene), ends=(*last.ends, last.num_frames + frames)))
        else:
            frames = 1 + stride * max(0, round((scene.seconds * fps - 1) / stride))
            shots.append(Shot((scene,), (frames,), round(BLEND_SECONDS * fps) if scene.transition == "blend" else 0))
        if not frames:
            raise ValueError(f"a scene of {scene.seconds:g} s is less than a latent frame of {stride / fps:g} s")
    for before, after in pairwise(shots):
        if after.blend and min(before.num_frames - before.blend, after.num_frames) <= after.blend:
            raise ValueError(f"a blend takes {BLEND_SECONDS:g} s of the scenes before and after; make them longer")
    return shots
