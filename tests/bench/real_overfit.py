"""Measure how near each caption's sample comes to its own clip: python tests/bench/real_overfit.py runs/real-dit.

Prints a table of PSNR in dB, rows captions, columns clips, and writes it to assets/bench/real_overfit.json.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from einops import rearrange

from videogen.config.parsing import from_mapping
from videogen.config.train import DataConfig
from videogen.data.folder import VideoFolder
from videogen.sampling.pipeline import VideoPipeline
from videogen.training.vae_loss import psnr


def table(run_dir: Path) -> tuple[list[str], list[list[float]]]:
    """Compute the PSNR of each caption's sample to each clip; samples have their own clip's size."""
    config = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    folder = VideoFolder(from_mapping(DataConfig, config["data"]), (1, 2, 2), seed=0)
    pipeline = VideoPipeline.load(run_dir / "checkpoint")
    clips = [folder.read(i).video for i in range(len(folder.entries))]
    rows = []
    for entry in folder.entries:
        settings = replace(pipeline.defaults, size=f"{entry.width}x{entry.height}", frames=entry.frames)
        frames = pipeline([entry.captions[0]], settings, seeds=[0])[0]
        sample = rearrange(frames, "t h w c -> c t h w").float() / 127.5 - 1
        rows.append([psnr(resize(sample, clip.shape), clip) for clip in clips])
    return [entry.path.name for entry in folder.entries], rows


def resize(video: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Bring a clip (3, t, h, w) to another's size, so that clips of different sizes can be compared."""
    return torch.nn.functional.interpolate(video[None], tuple(shape[1:]), mode="trilinear", align_corners=False)[0]


def main() -> None:
    """Print the table and write it."""
    names, rows = table(Path(sys.argv[1]))
    for name, row in zip(names, rows, strict=True):
        print(f"{name:24s}", "  ".join(f"{value:5.1f}" for value in row))
    out = Path(__file__).parents[2] / "assets" / "bench" / "real_overfit.json"
    result = {"unit": "PSNR in dB of a caption's sample (row) to each clip (column)", "clips": names, "psnr": rows}
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
