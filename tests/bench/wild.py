"""Give training and the doctor a file of every kind that a folder may hold, and time both on many files.

videogen bench wild  ->  assets/bench/wild.json: what became of each kind, files a second of a core
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

from tests.bad_files import CASES, make_cases
from tests.bench.flags import make_parser, parse_flags
from tests.bench.machine import Rows, publish
from tests.test_video_io import make_video
from videogen.cli.threads import count_usable_cores
from videogen.config.train import DataConfig
from videogen.data.findings import printable
from videogen.data.folder import VideoFolder
from videogen.doctor.examine import examine

PATCH = (1, 2, 2)


def open_folder(folder: Path) -> VideoFolder:
    return VideoFolder(DataConfig(folder=folder, val_clips=0), PATCH, log=lambda message: None)


def judge_kinds(folder: Path) -> Rows:
    """Say of each kind of file whether training uses it, and whether it, the doctor or both name what is expected."""
    found = examine(DataConfig(folder=folder), PATCH)
    opened = open_folder(folder)
    used, named = {entry.path for entry in opened.entries}, dict(opened.problems)
    rows: Rows = {}
    for clip in found.clips:
        name = clip.path.relative_to(folder).as_posix()
        kinds = {finding.kind for finding in clip.judgement.findings} - {"duplicate"}
        fault = clip.judgement.fault
        agreed = (clip.path in used) == (fault is None) and (fault is None or named.get(clip.path) == fault.words)
        rows[printable(name)] = {
            "used": float(clip.path in used),
            "refused by name": float(clip.path in named),
            "silent": float(not CASES[name][1] <= kinds or (clip.path not in used and clip.path not in named)),
            "both agree": float(agreed),
        }
    return rows


def time_folder(folder: Path, num_files: int) -> Rows:
    """Time the doctor and training's start on a folder of clips, each with nothing known of it and once more."""
    first = make_video(folder / "0.mp4", size="320x180", seconds=4)
    for number in range(1, num_files):
        shutil.copyfile(first, folder / f"{number}.mp4")
    rows = "".join(f"{number}.mp4,clip {number}\n" for number in range(num_files))
    (folder / "metadata.csv").write_text(f"file_name,text\n{rows}", encoding="utf-8")
    os.environ["XDG_CACHE_HOME"] = str(folder.with_name("training"))
    seconds = {f"training's start{again}": time_call(lambda: open_folder(folder)) for again in ("", ", again")}
    os.environ["XDG_CACHE_HOME"] = str(folder.with_name("doctor"))
    threads = count_usable_cores()
    for again in ("", ", again"):
        seconds[f"doctor{again}"] = time_call(lambda: examine(DataConfig(folder=folder), PATCH, num_threads=threads))
    return {name: {"files a second of a core": round(num_files / taken, 1)} for name, taken in seconds.items()}


def time_call(call: Callable[[], object]) -> float:
    """Return the seconds that a call keeps cores busy, in all of its threads."""
    began = time.process_time()
    call()
    return time.process_time() - began


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write assets/bench/wild.json."""
    parser = make_parser("wild", __doc__)
    parser.add_argument("--files", type=int, default=300, help="how many clips of four seconds are timed")
    args = parse_flags(parser, argv, {"files": 3})
    with tempfile.TemporaryDirectory() as work, patch.dict(os.environ):
        os.environ["XDG_CACHE_HOME"] = str(Path(work) / "kinds")
        (Path(work) / "many").mkdir()
        kinds = judge_kinds(make_cases(Path(work) / "wild"))
        speed = time_folder(Path(work) / "many", args.files)
    count = {column: sum(row[column] for row in kinds.values()) for column in next(iter(kinds.values()))}
    publish(
        args.out, {"files": {"of every kind": {"files": float(len(kinds))} | count}, "speed": speed, "kinds": kinds}
    )


if __name__ == "__main__":
    main()
