"""Save, list and load the step folders of a training run."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from videogen.data.files import atomic_folder, save_tensors, save_text
from videogen.data.manifest import find_fault, write_manifest
from videogen.training.ema import PowerEMA
from videogen.training.sharding import copy_whole, gather

logger = logging.getLogger(__name__)
PROGRESS = "progress.json"


class Stretch(NamedTuple):
    """Steps of a run with one number of packs a step: optim.accumulate of them in each process."""

    packs: int
    steps: int


class RunProgress(NamedTuple):
    """What a run needs to go on besides its weights."""

    window: Sequence[dict[str, float]] = ()  # the metrics of the steps since the last row of the log
    stretches: Sequence[Stretch] = ()  # all steps of the run, by which the packs consumed are counted
    optimizer: str = ""  # whose state was saved
    skipped: int = 0  # steps whose loss or gradient was not finite


def save_step(
    run_dir: Path,
    step: int,
    ema: PowerEMA,
    optimizer: torch.optim.Optimizer,
    progress: RunProgress = RunProgress(),  # noqa: B008  # immutable
    *,
    keep: int = 2,
    is_main: bool = True,
) -> None:
    """Write everything that the run needs to resume beside its final folder, and rename it.

    Then all but the newest `keep` step folders are removed; 0 keeps all. The main process writes, and the others give
    it their parts of what is in shards.
    """
    moments = [(f"{i}.{key}", value) for i, x in optimizer.state_dict()["state"].items() for key, value in x.items()]
    averages = {f"ema_{i}": zip(ema.names, copy, strict=True) for i, copy in enumerate(ema.copies)}
    files = {"model": zip(ema.names, ema.live, strict=True), **averages, "optimizer": moments}
    if not is_main:
        for tensors in files.values():
            gather(tensors, keep=False)
        return
    with atomic_folder(step_folder(run_dir, step)) as part:
        for name, tensors in files.items():
            save_tensors(gather(tensors, keep=True), part / f"{name}.safetensors")
        save_text(part / PROGRESS, json.dumps(progress._asdict()) + "\n")
        write_manifest(part)
    for old_step in saved_steps(run_dir)[:-keep] if keep else []:
        shutil.rmtree(step_folder(run_dir, old_step))


def step_folder(run_dir: Path, step: int) -> Path:
    """Name the folder of a step."""
    return run_dir / f"step_{step:06d}"


def saved_steps(run_dir: Path) -> list[int]:
    """List the steps of the run's checkpoints, whole or not, in rising order."""
    numbers = (re.fullmatch(r"step_(\d{6,})", path.name, re.ASCII) for path in run_dir.glob("step_*") if path.is_dir())
    return sorted(int(number[1]) for number in numbers if number)


def choose_step(run_dir: Path, resume: str) -> int:
    """Choose the step that a run goes on from: the latest that is whole, a given one, or 0 to begin anew.

    Raises a ValueError where the given step was not saved, or is not whole.
    """
    if resume == "latest":
        return newest_whole_step(run_dir)
    if resume == "none" or (step := int(resume)) == 0:
        return 0
    if step not in (steps := saved_steps(run_dir)):
        saved = ", ".join(map(str, steps)) or "none"
        raise ValueError(
            f"run.resume = {step}, and the steps saved in {run_dir} are {saved}; give one of them, or latest"
        )
    if fault := find_step_fault(step_folder(run_dir, step)):
        raise ValueError(f"run.resume = {step}, which is not whole: {fault}; give another step, or latest")
    return step


def newest_whole_step(run_dir: Path) -> int:
    """Return the newest step whose files are whole, 0 if there is none, and warn of those that are not.

    Raises a ValueError where steps were saved and none of them is whole.
    """
    damaged = ""
    for step in reversed(saved_steps(run_dir)):
        folder = step_folder(run_dir, step)
        if not (fault := find_step_fault(folder)):
            if damaged:
                logger.warning("%s; the run goes on from step %d, which is whole", damaged, step)
            return step
        if not any(folder.glob("*.safetensors")):
            logger.warning("%s is no step of this run and is left aside: %s", folder, fault)
        else:
            damaged = damaged or fault
    if damaged:
        raise ValueError(f"no step of {run_dir} is whole: {damaged}; remove the step folders to begin anew")
    return 0


def find_step_fault(folder: Path) -> str:
    """Describe the first damaged or missing file of a step folder; empty if the step is whole."""
    paths = {folder / f"{name}.safetensors" for name in ("model", "optimizer")}
    for path in sorted(paths | set(folder.glob("*.safetensors"))):  # a folder of earlier versions has no manifest
        if not path.is_file():
            return f"{path} is missing, or no regular file"
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            return f"{path} is damaged: {error}"
    return find_fault(folder)


def set_later_steps_aside(run_dir: Path, step: int) -> None:
    """Rename the folders of steps after the one that a run goes on from, which would count as saved.

    They are damaged, or whole where an earlier step was asked for.
    """
    for later in (number for number in saved_steps(run_dir) if number > step):
        why = "damaged" if find_step_fault(step_folder(run_dir, later)) else "aside"
        aside = run_dir / f"step_{later:06d}.{why}"
        shutil.rmtree(aside, ignore_errors=True)
        step_folder(run_dir, later).rename(aside)


def load_progress(run_dir: Path, step: int) -> RunProgress:
    """Read what a run needs to go on from a step besides its weights; earlier versions did not save it."""
    path = step_folder(run_dir, step) / PROGRESS
    progress = RunProgress(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else RunProgress()
    return progress._replace(stretches=[Stretch(*stretch) for stretch in progress.stretches])


def is_of_earlier_version(run_dir: Path) -> bool:
    """True if the saved steps are of a version that counted no packs, and held clips out by their order."""
    paths = [step_folder(run_dir, step) / PROGRESS for step in saved_steps(run_dir)]
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in paths if path.is_file()]
    return bool(paths) and not any("stretches" in text for text in texts)


def count_packs(stretches: Sequence[Stretch]) -> int:
    """Count the packs that stretches of a run have consumed."""
    return sum(packs * steps for packs, steps in stretches)


def count_steps(stretches: Sequence[Stretch]) -> int:
    """Count the steps of stretches of a run."""
    return sum(steps for _, steps in stretches)


@torch.no_grad()
def load_step(run_dir: Path, step: int, ema: PowerEMA, optimizer: torch.optim.Optimizer | None) -> None:
    """Restore the weights, their averages and an optimiser's state; raises a ValueError if another model was saved."""
    folder = step_folder(run_dir, step)
    files = {"model": ema.live} | {f"ema_{i}": copy for i, copy in enumerate(ema.copies)}
    for name, params in files.items():
        saved = load_file(folder / f"{name}.safetensors")
        shapes = {key: param.shape for key, param in zip(ema.names, params, strict=True)}
        if {key: value.shape for key, value in saved.items()} != shapes:
            raise ValueError(f"{folder} was written by another model; choose another --run folder, or its own config")
        for key, param in zip(ema.names, params, strict=True):
            copy_whole(saved[key], param.data)
    if optimizer is None:
        return
    trained = [param for group in optimizer.param_groups for param in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(folder / "optimizer.safetensors").items():
        index, _, entry = key.partition(".")
        param = trained[int(index)]
        if value.shape == param.shape:
            # The fused kernel walks a weight and its moments in memory order, so both need the same memory layout.
            moment = torch.empty_like(param, dtype=value.dtype)
            copy_whole(value, moment)
            value = moment
        state.setdefault(int(index), {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
