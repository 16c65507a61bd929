"""Measure a clip in numbers: alone, and against a reference of the same seed.

    frames (t, h, w, 3) uint8, reference  ->  {"psnr_db": ..., "ssim": ..., "flicker": ..., ...}

A measure of your own is a function score(frames, prompt) -> dict of numbers, higher is better, named module:function on
the command line. If it has a parameter called reference, it is given that run's frames, or None, for a distance.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

Score = Callable[..., Mapping[str, float]]
MAX_PSNR_DB = 100.0  # of two clips that are equal to the last bit

MEASURE_MEANINGS = {
    "psnr_db": "peak signal-to-noise ratio to the reference in dB; 100 where equal to the last bit",
    "ssim": "structural similarity to the reference; 1 where equal",
    "motion": "mean change of a pixel from frame to frame, in grey levels of 255",
    "flicker": "mean distance of a pixel from the mean of its neighbours in time, in grey levels of 255",
    "saturation": "mean colour saturation (HSV), 0 to 1",
    "clipped": "share of channel values at 0 or 255",
    "total_seconds": "text encoding, denoising and decoding of one clip, its share of the pack that it was sampled in",
    "evaluations": "evaluations of the network that the clip alone would take",
    "peak_memory_gb": "most memory of the process while the clip's pack was sampled",
}


def measure_clip(frames: Tensor) -> dict[str, float | None]:
    """Compute the measures that need no reference; those in time are None for an image."""
    x, (red, green, blue) = frames.float(), frames.unbind(-1)
    high = torch.maximum(torch.maximum(red, green), blue).float()
    low = torch.minimum(torch.minimum(red, green), blue).float()
    return {
        "motion": float(x.diff(dim=0).abs().mean()) if len(x) > 1 else None,
        "flicker": float((x[1:-1] - (x[:-2] + x[2:]) / 2).abs().mean()) if len(x) > 2 else None,
        "saturation": float(((high - low) / high.clamp(min=1)).mean()),
        "clipped": float(((frames == 0) | (frames == 255)).float().mean()),
    }


def compare_to_reference(frames: Tensor, reference: Tensor) -> dict[str, float]:
    """Compute PSNR and SSIM to a reference of the same size and length."""
    error = float((frames.float() - reference.float()).square().mean())
    psnr = MAX_PSNR_DB if error == 0 else min(MAX_PSNR_DB, 10 * math.log10(255**2 / error))
    return {"psnr_db": psnr, "ssim": ssim(frames, reference)}


def ssim(frames: Tensor, reference: Tensor) -> float:
    """Compute structural similarity, mean over frames and channels (Wang et al. 2004: Gaussian 11x11 of sigma 1.5)."""
    a, b = (rearrange(x.float(), "t h w c -> (t c) 1 h w") for x in (frames, reference))
    side = min(11, *a.shape[-2:])
    gaussian = torch.exp(-((torch.arange(side) - (side - 1) / 2) ** 2) / (2 * 1.5**2)).to(a)
    gaussian = gaussian / gaussian.sum()

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, gaussian.reshape(1, 1, 1, side)), gaussian.reshape(1, 1, side, 1))

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b, cov = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(similarity.mean())


def load_score(name: str) -> Score:
    """Import the function that module:function names, also from the current folder."""
    module, _, function = name.partition(":")
    if not module or not function:
        raise ValueError(f"--score must be module:function, such as my_judge:score, got {name!r}")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        score = getattr(importlib.import_module(module), function)
    except Exception as error:  # A user's module may raise anything when it is imported.
        kind = "" if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: "
        raise ValueError(f"--score {name}: {kind}{error}") from None
    if not callable(score):
        raise ValueError(f"--score {name} is not a function; name one that takes frames and a prompt")
    return cast("Score", score)


def score_id(score: Score | None) -> dict[str, object]:
    """Identify a score for the manifest by its name, not its source: a bug in it may be fixed during a sweep."""
    if score is None:
        return {"score": None}
    module, name = getattr(score, "__module__", ""), getattr(score, "__qualname__", type(score).__name__)
    return {"score": f"{module}:{name}"}


def apply_score(score: Score | None, frames: Tensor, prompt: str, reference: Tensor | None = None) -> dict[str, float]:
    """Compute a user's score, each name prefixed by score_; a TypeError if it is not a dict of finite numbers."""
    if score is None:
        return {}
    extra = {"reference": reference} if "reference" in signature(score).parameters else {}
    numbers = score(frames, prompt, **extra)
    if not isinstance(numbers, Mapping):
        raise TypeError(f"score must return a dict of numbers, got {type(numbers).__name__}")
    for name, value in numbers.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise TypeError(f"score must return finite numbers, got {value!r} for {name}")
    return {f"score_{name}": float(value) for name, value in numbers.items()}
