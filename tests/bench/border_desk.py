"""The desk of one who comes from another program: what is tried there, and whole things to try it on, made once.

Row: a word of another program, and how it is tried  ->  taken, refused by name, or done in another way
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch

from tests.bench.damage_kinds import Shop, train_words
from tests.bench.flags import ROOT
from tests.wan_folders import save
from videogen.cli.main import main as videogen
from videogen.config.sample import MINI
from videogen.sampling.pipeline import VideoPipeline
from videogen.toybox import write_folder

TAKEN, REFUSED, DIFFERS = "taken", "refused by name", "differs"
PROMPT = "a red circle moves right"
WORDS: Mapping[str, object] = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2}
FLAGS = ("--size", "32x32", "--frames", "5", "--steps", "1", "--device", "cpu")
GUIDE = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "assets" / "guide").glob("*.md"))}


class DifferenceError(Exception):
    """What was tried is done here in another way, which the message says."""


class Desk(Shop):
    """Whole things to try the words of other programs on, made once."""

    @cached_property
    def pipeline(self) -> VideoPipeline:
        """The shipped checkpoint, without a bar."""
        pipeline = VideoPipeline.load(MINI)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def wan(self, kind: str = "T2V 2.1") -> Path:
        """Return a folder that diffusers saved of a tiny Wan."""
        if not (folder := self.place / kind.replace(" ", "-")).is_dir():
            save(kind, folder)
        return folder

    @cached_property
    def clips(self) -> Path:
        """Four captioned clips."""
        write_folder(self.place / "clips", num_clips=4, seed=0, sizes=((48, 48),), lengths=(9,), num_workers=1)
        return self.place / "clips"

    @cached_property
    def lora(self) -> Path:
        """A LoRA of two steps on a folder of Wan, whose captions all have the word that calls it."""
        run = self.place / "my-lora"
        words = ["--dit.init", str(self.wan()), "--dit.lora-rank", "2", "--dit.lora-alpha", "1"]
        words += [
            "--dit.lora-trigger",
            "a",
            "--data.folder",
            str(self.clips),
            "--data.max-tokens",
            "80",
            "--data.token-budget",
            "240",
        ]
        words += ["--run.steps", "2", "--run.sample-every", "0", "--run.val-every", "9", "--dit.gradient-checkpointing"]
        say(["train", str(ROOT / "configs" / "wan-lora.toml"), *words, "--run.dir", str(run)])
        return run / "checkpoint" / "my-lora.safetensors"

    @cached_property
    def vae(self) -> Path:
        """What two steps of a VAE's training write."""
        run = self.place / "vae"
        words = ["--data.toybox", "6", "--data.val-clips", "1", "--vae.width", "8", "--vae.channels", "4"]
        words += ["--vae.batch-clips", "1", "--run.steps", "2", "--run.val-every", "9", "--run.sample-every", "0"]
        say(["train", str(ROOT / "configs" / "toybox-vae.toml"), *words, "--run.dir", str(run)])
        return run / "checkpoint"


class Row(NamedTuple):
    """A word of another program: of which part, what is typed, how it is tried, and the answer that is wanted."""

    part: str
    tried: str
    trial: Callable[[Desk], object]
    wanted: str = TAKEN
    says: str = ""  # what a refusal, or the sentence about a difference, has to name


class Answer(NamedTuple):
    """What a row got: taken, refused by name or differs, as wanted or not; or failed."""

    part: str
    tried: str
    answer: str
    said: str = ""


def ask(row: Row, desk: Desk) -> Answer:
    """Try a row. A refusal counts where it is one sentence with the word that was refused, or with ours for it."""
    answer, said = TAKEN, ""
    try:
        row.trial(desk)
    except DifferenceError as error:
        answer, said = DIFFERS, str(error)
    except ValueError as error:
        answer, said = REFUSED, str(error)
    except Exception as error:  # a traceback is what is looked for
        answer, said = "failed", f"{type(error).__name__}: {error}"
    if answer != TAKEN and row.says not in said:
        answer = "failed"
    return Answer(row.part, row.tried, answer, " ".join(said.split())[:300])


def is_as_wanted(row: Row, answer: str) -> bool:
    """True if a row got the answer that is wanted; what is done in another way may be taken as well."""
    return answer in (row.wanted, TAKEN if row.wanted == DIFFERS else row.wanted)


def check(claim: object, otherwise: object = "") -> None:
    """Raise a RuntimeError where something does not hold: python -O would leave out an assert."""
    if not claim:
        raise RuntimeError(str(otherwise))


def say(words: list[str], *, status: int = 0) -> str:
    """Run a command in this process and return what it printed; a ValueError with its sentence where it refuses."""
    out, err = io.StringIO(), io.StringIO()
    logging.getLogger().handlers.clear()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            ended = videogen(words)
        except SystemExit as stop:
            ended = int(str(stop.code or 0))
    if ended == 2:
        sentences = [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
        check(len(sentences) == 1, err.getvalue())
        raise ValueError(sentences[0].removeprefix("error: "))
    check(ended == status, f"status {ended}: {err.getvalue()[-500:]}")
    return out.getvalue() + err.getvalue()


def sample(*words: str) -> Callable[[Desk], str]:
    """Try flags of `sample.py` by a dry run."""
    return lambda desk: say(["sample", PROMPT, *FLAGS, *words, "--dry-run"])


def train(*words: str, dry: bool = True) -> Callable[[Desk], str]:
    """Try flags of `train.py` on a tiny recipe, by a dry run."""
    more = (*words, "--dry-run") if dry else words
    return lambda desk: say(train_words(desk.place / f"run-{'-'.join(words)[:40].replace('/', '')}", *more))


def call(**words: object) -> Callable[[Desk], object]:
    """Try words of diffusers' call."""
    return lambda desk: desk.pipeline(**{"prompt": PROMPT, **WORDS, **words})


def absent(name: str, of: Callable[[Desk], object], instead: str) -> Callable[[Desk], None]:
    """Try a name that is not here, and that the guide says so; what is there instead ends its sentence."""

    def trial(desk: Desk) -> None:
        check(name in GUIDE["python.md"], f"the guide does not tell of {name}")
        if not hasattr(of(desk), name):
            raise DifferenceError(f"{name} is absent; {instead}")

    return trial


def differs(sentence: str) -> None:
    """Say what is done here instead."""
    raise DifferenceError(sentence)


def read_header(path: Path) -> dict[str, str]:
    """Read the metadata of a .safetensors file."""
    with path.open("rb") as file:
        return json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]


def latents_of(pipeline: VideoPipeline, **words: object) -> torch.Tensor:
    """Sample the latents of the desk's prompt."""
    return pipeline(**{"prompt": PROMPT, **WORDS, "output_type": "latent", **words}).frames  # type: ignore[union-attr]
