"""Save, list and load the step folders of a training run."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from videogen.data.files import atomic_folder, save_tensors
from videogen.training.ema import PowerEMA

NUM_KEPT = 2  # step folders; older ones are removed once a new one is complete


def save_step(run_dir: Path, step: int, ema: PowerEMA, optimizer: torch.optim.Optimizer) -> None:
    """Write everything that the run needs to resume beside its final folder, rename it, and keep the newest two."""
    with atomic_folder(run_dir / f"step_{step:06d}") as part:
        save_tensors(dict(zip(ema.names, ema.live, strict=True)), part / "model.safetensors")
        for i, copy in enumerate(ema.copies):
            save_tensors(dict(zip(ema.names, copy, strict=True)), part / f"ema_{i}.safetensors")
        state = optimizer.state_dict()["state"]
        moments = {f"{i}.{key}": value for i, entry in state.items() for key, value in entry.items()}
        save_tensors(moments, part / "optimizer.safetensors")
    for old_step in saved_steps(run_dir)[:-NUM_KEPT]:
        shutil.rmtree(run_dir / f"step_{old_step:06d}")


def saved_steps(run_dir: Path) -> list[int]:
    """List the steps of the run's checkpoints in rising order."""
    return sorted(int(path.name[5:]) for path in run_dir.glob("step_*") if path.name[5:].isdigit())


@torch.no_grad()
def load_step(run_dir: Path, step: int, ema: PowerEMA, optimizer: torch.optim.Optimizer) -> None:
    """Restore the weights, their averages and the optimiser; raises a ValueError if another model was saved."""
    folder = run_dir / f"step_{step:06d}"
    files = {"model": ema.live} | {f"ema_{i}": copy for i, copy in enumerate(ema.copies)}
    for name, params in files.items():
        saved = load_file(folder / f"{name}.safetensors")
        shapes = {key: param.shape for key, param in zip(ema.names, params, strict=True)}
        if {key: value.shape for key, value in saved.items()} != shapes:
            raise ValueError(f"{folder} was written by another model; choose another --run folder, or its own config")
        for key, param in zip(ema.names, params, strict=True):
            param.data.copy_(saved[key])
    trained = [param for group in optimizer.param_groups for param in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(folder / "optimizer.safetensors").items():
        index, _, entry = key.partition(".")
        param = trained[int(index)]
        if value.shape == param.shape:
            # The fused kernel walks a weight and its moments in memory order, so both need the same memory layout.
            value = torch.empty_like(param).copy_(value)
        state.setdefault(int(index), {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
