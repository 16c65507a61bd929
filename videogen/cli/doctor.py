"""The doctor command: what is in a folder of videos, what is wrong with it, and what training will make of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from videogen.cli.arguments import parse
from videogen.cli.threads import count_usable_cores
from videogen.config.parsing import load_toml
from videogen.config.sample import MINI
from videogen.config.train import TrainConfig

FOUND = 3  # the exit status where something was found


@dataclass(frozen=True, kw_only=True)
class DoctorArgs:
    """Say what is in a folder of videos, what is wrong with it, and what training will make of it.

    No file of the folder is changed. Exit status: 0 nothing wrong, 3 something found, 2 wrong input.
    """

    folder: tyro.conf.Positional[Path]
    """Folder of videos with their captions."""
    recipe: Path | None = None
    """Recipe (TOML) whose frame rate, lengths and budgets the clips are planned for; none takes the defaults."""
    follow_links: bool = False
    """Read what links in the folder lead to where that lies outside of it."""
    json: bool = False
    """Print a JSON object with everything found instead of tables."""
    html: Path | None = None
    """Write a page with a picture and the findings of each file here."""
    fix: Path | None = None
    """Write a mended copy of the folder here: upright, cropped of bars, in SDR, split at cuts, without duplicates."""
    quiet: bool = False
    """Show no progress."""


def run_doctor(argv: Sequence[str]) -> int:
    """Examine a folder, and print, write and mend what was asked for."""
    args = parse(DoctorArgs, argv, prog="videogen doctor", description=DoctorArgs.__doc__)
    recipe = load_toml(TrainConfig, args.recipe) if args.recipe else TrainConfig()
    data = replace(recipe.data, folder=args.folder, toybox=0, follow_links=args.follow_links)
    if args.html is not None and (args.html.suffix.lower() not in (".html", ".htm") or args.html.is_dir()):
        raise ValueError(f"--html must name a page to write, such as page.html, got {args.html}")
    from videogen.doctor.mend import Mended, check_copy, describe_mended, mend_folder, to_rows

    if args.fix is not None:
        check_copy(args.folder, args.fix)
    from rich.console import Console

    from videogen.data.files import save_text
    from videogen.doctor.caption_length import find_long_captions, has_tokenizer
    from videogen.doctor.examine import examine
    from videogen.doctor.page import render_page
    from videogen.doctor.summary import measured_speed, print_examination, to_mapping

    text = next((path for path in (recipe.dit.text, MINI) if has_tokenizer(path)), None)
    num_threads, speed = count_usable_cores(), measured_speed(recipe.run.dir) if args.recipe else None
    with counting("files", quiet=args.quiet) as on_file:
        found = examine(
            data,
            recipe.dit.patch_size,
            num_threads=num_threads,
            judge_captions=(lambda captions: find_long_captions(captions, text)) if text else None,
            on_file=on_file,
        )
    if args.html is not None:
        with counting("pictures", quiet=args.quiet) as on_file:
            page = render_page(found, speed, num_threads=num_threads, on_file=on_file)
        args.html.parent.mkdir(parents=True, exist_ok=True)
        save_text(args.html, page)
    mended = list[Mended]()
    if args.fix is not None:
        with counting("mended", quiet=args.quiet) as on_file:
            mended = mend_folder(found, args.fix, num_threads=num_threads, on_file=on_file)
    if args.json:
        copy = {"mended": to_rows(mended, args.folder)} if args.fix is not None else {}
        print(json.dumps(to_mapping(found, speed) | copy))
        return 0 if found.is_clean else FOUND
    print_examination(found, Console(), speed)
    for line in describe_mended(mended, args.folder) if args.fix is not None else ():
        print(line)
    return 0 if found.is_clean else FOUND


@contextmanager
def counting(what: str, *, quiet: bool) -> Iterator[Callable[[int, int], object]]:
    """Show on stderr how many are done and the time left; yields what is to be told both counts."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), disable=quiet, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
