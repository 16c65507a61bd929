"""Hold clips out of training by a hash of their names, so that one more file in a folder moves none of the others.

    names, seed, how many at most  ->  Split: the indices to train on, those to validate on
    run folder  ->  clips.json: the clips that the run began with, of which those held out stay held out

A run that goes on in a folder that has changed trains on what came, and validates on what it was never trained on.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import torch

from videogen.data.files import save_text
from videogen.data.json_files import read_json_object

CLIPS = "clips.json"
LEAST_CLIPS = 5
"""Fewer clips are all trained on."""
CLIPS_PER_HELD_OUT = 10
"""At most one clip in so many is held out."""


class Split(NamedTuple):
    """Which clips are trained on and which are held out, and what came and went since the run began."""

    train: list[int]
    val: list[int]
    came: Sequence[str] = ()
    went: Sequence[str] = ()
    kept: Mapping[str, object] = {}  # what clips.json is to hold

    def describe(self) -> str:
        """Say in one line how many clips are held out, and what came and went."""
        line = f"{len(set(self.train)):,} clips to train on, {len(self.val) or 'none'} held out for the validation loss"
        return "; ".join(filter(None, (line, list_changes(self.came, self.went))))

    def keep(self, run_dir: Path) -> None:
        """Write down which clips a run begins with, if that is not known yet."""
        path, text = run_dir / CLIPS, json.dumps(self.kept, indent=0) + "\n"
        if self.kept and not (path.is_file() and path.read_text(encoding="utf-8") == text):
            save_text(path, text)


def list_changes(came: Sequence[str], went: Sequence[str]) -> str:
    """Say how many clips came and went since a run began, and the names of the first three; empty if none did."""
    changes = [
        f"{len(names):,} {verb} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for verb, names in (("came", came), ("went", went))
        if names
    ]
    return "since the run began " + " and ".join(changes) if changes else ""


def num_held_out(num: int, most: int) -> int:
    """Return how many of num clips are held out: at most a tenth, but one of five to ten."""
    return 0 if num < LEAST_CLIPS else min(most, max(1, num // CLIPS_PER_HELD_OUT))


def name_hash(name: str, seed: int) -> bytes:
    """Hash a clip's name, whose accents may be composed or not."""
    return hashlib.sha256(f"{seed} {unicodedata.normalize('NFC', name)}".encode(errors="surrogateescape")).digest()


def hold_out(names: Sequence[str], most: int, seed: int) -> list[str]:
    """Choose the clips to hold out: those whose names have the smallest hashes."""
    return sorted(names, key=lambda name: name_hash(name, seed))[: num_held_out(len(names), most)]


def hold_out_by_order(names: Sequence[str], most: int, seed: int) -> list[str]:
    """Choose the clips that earlier versions held out, by their places in the folder: for runs begun by them."""
    order: list[int] = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    return [names[index] for index in order[: min(most, len(names) // 2)]]


def split_clips(names: Sequence[str], most: int, seed: int, run_dir: Path, *, by_order: bool = False) -> Split:
    """Split clips as the run of a folder began with them; where none has begun, by their names.

    The clips of a run that an earlier version began are split by their order.
    """
    if (kept := read_clips(run_dir, most, seed)) is None:
        held_out = (hold_out_by_order if by_order else hold_out)(names, most, seed)
        train, val = split_at(names, held_out)
        clips = {"train": [names[index] for index in train], "held_out": [names[index] for index in val]}
        return Split(train, val, kept={"seed": seed, "val_clips": most, **clips})
    known, here = {*kept["train"], *kept["held_out"]}, set(names)
    train, val = split_at(names, kept["held_out"])
    return Split(train, val, [name for name in names if name not in known], sorted(known - here))


def split_at(names: Sequence[str], held_out: Collection[str]) -> tuple[list[int], list[int]]:
    """Split the indices of clips by the names of those held out."""
    taken = set(held_out)
    sides: tuple[list[int], list[int]] = ([], [])
    for index, name in enumerate(names):
        sides[name in taken].append(index)
    return sides


def read_clips(run_dir: Path, most: int, seed: int) -> dict[str, list[str]] | None:
    """Read which clips a run began with; None if none has begun with this seed and this number of held-out clips."""
    path = run_dir / CLIPS
    if not path.exists():
        return None
    try:
        kept = read_json_object(path, max_bytes=2**30)
        is_same = (kept["seed"], kept["val_clips"]) == (seed, most)
        clips = {side: [str(name) for name in cast("list[object]", kept[side])] for side in ("train", "held_out")}
    except (ValueError, TypeError, KeyError):
        raise ValueError(
            f"{path} is damaged: it is no list of the clips that the run began with; remove it, and clips are held out "
            "anew by their names"
        ) from None
    return clips if is_same else None
