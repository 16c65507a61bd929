"""What a clip is like, in numbers: alone, and beside a reference of the same seed.

    frames (t, h, w, 3) uint8, reference  ->  {"psnr_db": ..., "ssim": ..., "flicker": ..., ...}

A measure of your own is a function score(frames, prompt) -> dict of numbers, higher is better, named module:function on
the command line. One with a parameter called reference is given that run's frames, or None, for a distance.
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
MOST_DB = 100.0  # of two clips that are equal to the last bit

MEANINGS = {
    "psnr_db": "peak signal-to-noise ratio to the reference in dB; 100 where equal to the last bit",
    "ssim": "structural similarity to the reference; 1 where equal",
    "motion": "mean change of a pixel from frame to frame, in grey levels of 255",
    "flicker": "mean distance of a pixel from the mean of its neighbours in time, in grey levels of 255",
    "saturation": "mean colour saturation (HSV), 0 to 1",
    "clipped": "share of channel values at 0 or 255",
    "total_seconds": "text, denoising and decoding of one clip, its share of the pack it was made in",
    "evaluations": "times the network was asked, as the clip alone would ask it",
    "peak_memory_gb": "most memory of the process while the clip's pack was made",
}


def look_alone(frames: Tensor) -> dict[str, float | None]:
    """The measures that need no reference; those in time are none for a picture."""
    x, (red, green, blue) = frames.float(), frames.unbind(-1)
    high = torch.maximum(torch.maximum(red, green), blue).float()
    low = torch.minimum(torch.minimum(red, green), blue).float()
    return {
        "motion": float(x.diff(dim=0).abs().mean()) if len(x) > 1 else None,
        "flicker": float((x[1:-1] - (x[:-2] + x[2:]) / 2).abs().mean()) if len(x) > 2 else None,
        "saturation": float(((high - low) / high.clamp(min=1)).mean()),
        "clipped": float(((frames == 0) | (frames == 255)).float().mean()),
    }


def compare(frames: Tensor, reference: Tensor) -> dict[str, float]:
    """The distances to a reference of the same size and length."""
    return {"psnr_db": psnr(frames, reference), "ssim": ssim(frames, reference)}


def psnr(frames: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in dB."""
    error = float((frames.float() - reference.float()).square().mean())
    return MOST_DB if error == 0 else min(MOST_DB, 10 * math.log10(255**2 / error))


def ssim(frames: Tensor, reference: Tensor) -> float:
    """Structural similarity, mean over frames and channels (Wang et al. 2004: Gaussian 11x11 of sigma 1.5)."""
    a, b = (rearrange(x.float(), "t h w c -> (t c) 1 h w") for x in (frames, reference))
    side = min(11, *a.shape[-2:])
    bell = torch.exp(-((torch.arange(side) - (side - 1) / 2) ** 2) / (2 * 1.5**2)).to(a)
    bell = bell / bell.sum()

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, bell.reshape(1, 1, 1, side)), bell.reshape(1, 1, side, 1))

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b, cov = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    likeness = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(likeness.mean())


def load_score(name: str) -> Score:
    """The function that module:function names; the current folder is searched too."""
    module, _, function = name.partition(":")
    if not module or not function:
        raise ValueError(f"--score must be module:function, such as my_judge:score, got {name!r}")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever a module of someone else's does when it is imported
        kind = "" if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: "
        raise ValueError(f"--score {name}: {kind}{error}") from None
    if not callable(found):
        raise ValueError(f"--score {name} is not a function")
    return cast("Score", found)


def score_id(score: Score | None) -> dict[str, object]:
    """What a plug is known by: its name, and not what stands in it, for a fault in it may be mended half way."""
    if score is None:
        return {"score": None}
    module, name = getattr(score, "__module__", ""), getattr(score, "__qualname__", type(score).__name__)
    return {"score": f"{module}:{name}"}


def judge(score: Score | None, frames: Tensor, prompt: str, reference: Tensor | None = None) -> dict[str, float]:
    """A plug's numbers, their names led by score_."""
    beside = {} if score is None or "reference" not in signature(score).parameters else {"reference": reference}
    found = {} if score is None else score(frames, prompt, **beside)
    if not isinstance(found, Mapping):
        raise TypeError(f"score must return a dict of numbers, got {type(found).__name__}")
    for name, value in found.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise TypeError(f"score must return finite numbers, got {value!r} for {name}")
    return {f"score_{name}": float(value) for name, value in found.items()}
