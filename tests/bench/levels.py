"""Measure what a DiT has learned at each noise level: with captions, without, and beside a linear estimate.

    python tests/bench/levels.py RECIPE.toml RUN_FOLDER [--vae FOLDER] [--ema 0]

The measure is the error of the velocity where all tokens have one level, the mean over held-out clips of the longest
length. The linear estimate knows the covariance of single tokens over training clips. A network with less error has
learned to use the neighbouring tokens; what captions take off the error is what it has learned from them.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from videogen.config.parsing import load_toml
from videogen.config.train import TrainConfig
from videogen.packing.noise import shared_level, step_generator
from videogen.packing.packs import pack
from videogen.packing.patch_schedule import Patch
from videogen.training.dit_stage import DitStage
from videogen.training.flow_matching import FlowTask, flow_loss, sample_task
from videogen.training.run_checkpoints import saved_steps

LEVELS = (0.99, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.3, 0.1)


def longest_clips(stage: DitStage, indices: list[int], num: int) -> list[int]:
    """List the first clips of the length with the most frames."""
    frames = max(stage.folder.entries[index].frames for index in indices)
    return [index for index in indices if stage.folder.entries[index].frames == frames][:num]


def linear_error(spectrum: Tensor, sigma: float) -> float:
    """Compute the least error of the velocity of a linear estimate, from the eigenvalues of a token's covariance."""
    remaining = spectrum / (1 + ((1 - sigma) / sigma) ** 2 * spectrum)
    return float(remaining.mean() / sigma**2)


@torch.no_grad()
def measure_errors(stage: DitStage, patch: Patch, num_clips: int) -> dict[float, tuple[float, float, float]]:
    """Measure the error at each level with captions, without, and of the linear estimate."""
    tokens = pack(stage.load_clips(longest_clips(stage, stage.train_indices, 300)).latents, patch).tokens.float()
    spectrum = torch.linalg.eigvalsh((tokens.T @ tokens / len(tokens)).double()).clamp(min=0)
    batch = stage.load_clips(longest_clips(stage, stage.val_indices, num_clips))
    clean = pack([latent.float() for latent in batch.latents], patch)

    def error(captions: list[str], sigma: float) -> float:
        levels = shared_level(torch.tensor([sigma]), len(clean.tokens))
        generator = step_generator(5, 1)
        task: FlowTask = sample_task(clean, stage.embed_captions(captions), levels, base_tokens=80, generator=generator)
        return flow_loss(stage.model, task).item()

    no_captions = [""] * len(batch.captions)
    return {
        sigma: (error(batch.captions, sigma), error(no_captions, sigma), linear_error(spectrum, sigma))
        for sigma in LEVELS
    }


def main() -> None:
    """Print a table for each patch size."""
    parser = argparse.ArgumentParser(prog="levels", description=__doc__.split("\n")[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--vae", type=Path, help="checkpoint folder whose VAE the run is trained on")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument(
        "--ema", type=int, help="which average of the weights to measure, from 0; by default the live weights"
    )
    args = parser.parse_args()
    recipe = load_toml(TrainConfig, args.recipe)
    dit = recipe.dit if args.vae is None else replace(recipe.dit, vae=args.vae)
    stage = DitStage(replace(recipe, dit=dit, run=replace(recipe.run, dir=args.run)))
    if not (steps := saved_steps(args.run)):
        sys.exit(f"{args.run} has no step_* folder; give the folder of a run that has saved")
    weights = "model" if args.ema is None else f"ema_{args.ema}"
    stage.model.load_state_dict(load_file(args.run / f"step_{steps[-1]:06d}" / f"{weights}.safetensors"))
    for patch in stage.model.patches:
        print(f"step {steps[-1]}, patch {patch}\nlevel   with  without  linear")
        for sigma, row in measure_errors(stage, patch, args.clips).items():
            print(f"{sigma:5}  " + "  ".join(f"{value:.3f}" for value in row))


if __name__ == "__main__":
    main()
