"""Save, find and load the steps of a run folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from videogen.data.files import save_tensors, whole_folder
from videogen.training.ema import PowerEMA

KEEP = 2  # step folders that stay; older ones go when a new one is safe


def save_step(run_dir: Path, step: int, ema: PowerEMA, optimizer: torch.optim.Optimizer) -> None:
    """Write everything that the run needs to go on, beside, then rename; keep the newest two."""
    for left in run_dir.glob("step_*.part"):  # of a save that was killed
        shutil.rmtree(left)
    with whole_folder(run_dir / f"step_{step:06d}") as part:
        save_tensors(dict(zip(ema.names, ema.live, strict=True)), part / "model.safetensors")
        for i, copy in enumerate(ema.copies):
            save_tensors(dict(zip(ema.names, copy, strict=True)), part / f"ema_{i}.safetensors")
        state = optimizer.state_dict()["state"]
        moments = {f"{i}.{key}": value for i, entry in state.items() for key, value in entry.items()}
        save_tensors(moments, part / "optimizer.safetensors")
    for old in saved_steps(run_dir)[:-KEEP]:
        shutil.rmtree(run_dir / f"step_{old:06d}")


def saved_steps(run_dir: Path) -> list[int]:
    """The steps of the run's checkpoints, rising."""
    return sorted(int(path.name[5:]) for path in run_dir.glob("step_*") if path.name[5:].isdigit())


@torch.no_grad()
def load_step(run_dir: Path, step: int, ema: PowerEMA, optimizer: torch.optim.Optimizer) -> None:
    """Put everything back as it was after the given step."""
    folder = run_dir / f"step_{step:06d}"
    files = {"model": ema.live} | {f"ema_{i}": copy for i, copy in enumerate(ema.copies)}
    for name, params in files.items():
        saved = load_file(folder / f"{name}.safetensors")
        wanted = {key: param.shape for key, param in zip(ema.names, params, strict=True)}
        if {key: value.shape for key, value in saved.items()} != wanted:
            raise ValueError(f"{folder} was written by another model; choose another --run folder, or its own config")
        for key, param in zip(ema.names, params, strict=True):
            param.data.copy_(saved[key])
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(folder / "optimizer.safetensors").items():
        index, entry = key.split(".", 1)
        state.setdefault(int(index), {})[entry] = value
    # The fused kernel walks a weight and its moments in memory order: the moments must have the weight's own layout.
    trained = [param for group in optimizer.param_groups for param in group["params"]]
    for index, entries in state.items():
        for entry, value in entries.items():
            if value.shape == trained[index].shape:
                entries[entry] = torch.empty_like(trained[index]).copy_(value)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
