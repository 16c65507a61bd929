"""Time Wan's VAE against diffusers' AutoencoderKLWan: the same random weights, one process, alternating, medians.

    videogen bench wan_vae  ->  assets/bench/wan_vae.json

It measures the whole, then the line with each trick switched off alone, so that a reader sees which of them pay; at the
real widths and 64 x 64 pixels, where a run takes five minutes on one core. Memory is that of new processes.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from einops import repeat
from torch import Tensor, nn

from tests.bench.flags import make_parser, parse_flags
from tests.bench.flop import count_gflop
from tests.bench.machine import publish, set_num_threads
from tests.wan_folders import VAE, VAE_22
from videogen.models import wan_vae, wan_vae_conv, wan_vae_layers
from videogen.models.wan_vae import WanVAE, optimize_weight_layout
from videogen.models.wan_vae_layers import ChannelRMSNorm

ROOT = Path(__file__).parents[2]
WAN_22 = {
    "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "in_channels": 12, "out_channels": 12,
    "patch_size": 2, "scale_factor_spatial": 16, "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48,
}  # fmt: skip
WAN_21: dict[str, object] = {}  # the defaults of the class
Work = Callable[[], Tensor]
Config = dict[str, object]


class Extent(NamedTuple):
    """Which networks are measured, on what, and how often."""

    wan_21: Config = WAN_21
    wan_22: Config = WAN_22
    latent_frames: tuple[int, int] = (5, 2)  # of 2.1 and of 2.2
    trick_frames: int = 3
    rounds: int = 3
    memory: tuple[str, ...] = ("decode", "encode")


NO_STATISTICS = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
SMALL = Extent(VAE | NO_STATISTICS, VAE_22 | NO_STATISTICS, (2, 2), 2, 1, ("decode",))


def make_pair(config: Config) -> tuple[AutoencoderKLWan, WanVAE]:
    """Build theirs with random weights and ours with the same."""
    torch.manual_seed(0)
    theirs = AutoencoderKLWan(**config).eval().requires_grad_(False)  # type: ignore[arg-type]
    ours = WanVAE(**config).eval().requires_grad_(False)  # type: ignore[arg-type]
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def time_call(call: Work) -> tuple[float, Tensor]:
    """Measure the seconds of a call, and return its result."""
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def compare(theirs: Work, ours: Work, rounds: int) -> dict[str, float]:
    """Compare, alternating, after a warm-up round: medians, the median of the ratios, the largest difference."""
    times: list[tuple[float, float]] = []
    error = 0.0
    for _ in range(rounds + 1):
        (a, their_result), (b, our_result) = time_call(theirs), time_call(ours)
        times.append((a, b))
        error = (their_result - our_result).abs().max().item()
    return {
        "diffusers_seconds": round(statistics.median(a for a, _ in times[1:]), 3),
        "videogen_seconds": round(statistics.median(b for _, b in times[1:]), 3),
        "times_faster": round(statistics.median(a / b for a, b in times[1:]), 2),
        "max_difference": float(f"{error:.1e}"),
    }


def measure_whole(name: str, config: Config, latent_frames: int, rounds: int) -> dict[str, dict[str, float]]:
    """Measure encoding and decoding of one image and one clip."""
    theirs, ours = make_pair(config)
    rows: dict[str, dict[str, float]] = {}
    for frames in (1, 1 + 4 * (latent_frames - 1)):
        x = torch.rand(1, 3, frames, 64, 64) * 2 - 1
        z = torch.randn(1, *ours.latent_shape(*x.shape[2:]))
        rows[f"{name}, decode, frames: {frames}"] = compare(
            lambda z=z: theirs.decode(z).sample, lambda z=z: ours.reconstruct(z), rounds
        )
        rows[f"{name}, encode, frames: {frames}"] = compare(
            lambda x=x: theirs.encode(x).latent_dist.mean, lambda x=x: ours.posterior(x).mean, rounds
        )
    return rows


# --- each trick switched off


def convolve_zero_frames(x: Tensor, past: Tensor, kernels: Tensor, bias: Tensor) -> Tensor:
    """Multiply the missing frames before the first as zeros."""
    missing = len(kernels) - 1 - past.shape[1]
    return wan_vae_conv.causal_convolution(x, F.pad(past, (0, 0, 0, 0, 0, 0, missing, 0)), kernels, bias)


def convolve_doubled_pixels(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """Double the pixels of the frames, and convolve those."""
    doubled = repeat(x, "b t h w c -> b t (h y) (w x) c", y=2, x=2)
    return wan_vae_conv.convolve_frames(doubled, kernel, bias)


def normalise_in_steps(self: ChannelRMSNorm, x: Tensor) -> Tensor:
    """Normalise as in the formula: a division, two gains and an offset."""
    return F.normalize(x, dim=-1) * x.shape[-1] ** 0.5 * self.gamma.flatten() + 0.0


@contextmanager
def contiguous_kernels(vae: WanVAE) -> Iterator[None]:
    """Lay the kernels out as in the file."""
    for module in vae.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            module.weight.data = module.weight.data.contiguous()
    try:
        yield
    finally:
        optimize_weight_layout(vae)


def usual_winograd_matrices() -> wan_vae_conv.WinogradMatrices:
    """Compute Winograd's matrices at 0, 1, -1, 2, -2."""
    with mock.patch.object(wan_vae_conv, "WINOGRAD_POINTS", (0.0, 1.0, -1.0, 2.0, -2.0)):
        return wan_vae_conv.winograd_matrices.__wrapped__(torch.float32)


def tricks_off(vae: WanVAE) -> dict[str, Callable[[], AbstractContextManager[object]]]:
    """Switch each trick off."""
    usual, library = usual_winograd_matrices(), wan_vae_conv.convolve_conv3d

    def return_usual(dtype: torch.dtype) -> wan_vae_conv.WinogradMatrices:
        return usual

    def never(x: Tensor, kernels: Tensor) -> bool:
        return False

    return {
        "nothing": lambda: mock.patch.object(wan_vae, "LATENT_FRAMES_PER_CHUNK", wan_vae.LATENT_FRAMES_PER_CHUNK),
        "products in Winograd's space": lambda: mock.patch.object(wan_vae_conv, "winograd_is_faster", never),
        "points that keep float32 exact": lambda: mock.patch.object(wan_vae_conv, "winograd_matrices", return_usual),
        "Winograd only where it pays": lambda: mock.patch.object(wan_vae_conv, "winograd_is_faster", is_3x3),
        "a Conv2d a tap, not Conv3d": lambda: mock.patch.object(wan_vae_conv, "convolve_taps", library),
        "a plain product for few positions": lambda: mock.patch.object(
            wan_vae_conv, "MIN_CHANNELS_PER_POSITION", 10**9
        ),
        "no zeros before the first frame": lambda: mock.patch.object(
            wan_vae_layers, "causal_convolution", convolve_zero_frames
        ),
        "kernels merged, not pixels doubled": lambda: mock.patch.object(
            wan_vae_layers, "upsample_and_convolve", convolve_doubled_pixels
        ),
        "the norm in two steps": lambda: mock.patch.object(ChannelRMSNorm, "forward", normalise_in_steps),
        "kernels laid out for their use": lambda: contiguous_kernels(vae),
        "4 latent frames a chunk: 1": lambda: mock.patch.object(wan_vae, "LATENT_FRAMES_PER_CHUNK", 1),
        "4 latent frames a chunk: 2": lambda: mock.patch.object(wan_vae, "LATENT_FRAMES_PER_CHUNK", 2),
        "4 latent frames a chunk: 8": lambda: mock.patch.object(wan_vae, "LATENT_FRAMES_PER_CHUNK", 8),
        "4 frames a piece where large: 8": lambda: mock.patch.object(wan_vae_layers, "FINE_FRAMES_PER_RUN", 8),
    }


def is_3x3(x: Tensor, kernels: Tensor) -> bool:
    """True if Winograd's form can be used at all."""
    return kernels.shape[2] == 3


def measure_tricks(config: Config, latent_frames: int, rounds: int) -> dict[str, dict[str, float]]:
    """Time decoding without one trick against with all, alternating; add FLOPs and the error against float64."""
    _, ours = make_pair(config)
    latent = torch.randn(1, *ours.latent_shape(1 + 4 * (latent_frames - 1), 64, 64))
    exact = ours.double().reconstruct(latent.double()).float()
    ours.float()
    rows: dict[str, dict[str, float]] = {}
    for name, switched_off in tricks_off(ours).items():
        times: list[tuple[float, float]] = []
        for _ in range(rounds):
            base, _ = time_call(lambda: ours.reconstruct(latent))
            with switched_off():
                times.append((time_call(lambda: ours.reconstruct(latent))[0], base))
        with switched_off():
            gflop, decoded = count_gflop(lambda: ours.reconstruct(latent))
        rows[name] = {
            "seconds": round(statistics.median(a for a, _ in times), 3),
            "times_slower": round(statistics.median(a / b for a, b in times), 3),
            "gflop": round(gflop, 1),
            "error_against_float64": float(f"{(decoded - exact).abs().max().item():.1e}"),
        }
    return rows


# --- memory

PEAK = """
import json, re, sys, torch
from pathlib import Path
torch.set_num_threads(1)
torch.set_grad_enabled(False)
from diffusers import AutoencoderKLWan
from videogen.models.wan_vae import WanVAE
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
vae = (AutoencoderKLWan if sys.argv[1] == "diffusers" else WanVAE)(**json.loads(sys.argv[3])).eval()
work = {"decode": vae.decode if sys.argv[1] == "diffusers" else vae.reconstruct,
        "encode": vae.encode if sys.argv[1] == "diffusers" else vae.posterior}[sys.argv[2]]
x = torch.randn(1, vae.config["z_dim"], 3, 12, 12) if sys.argv[2] == "decode" else torch.rand(1, 3, 9, 96, 96)
before = peak()
work(x)
print(peak(), peak() - before)
"""


def measure_memory(config: Config, works: Sequence[str], rounds: int) -> dict[str, dict[str, float]]:
    """Measure the peak in MB of new processes on 9 frames of 96 x 96, and how far the work raises it: medians."""
    rows: dict[str, dict[str, float]] = {}
    for work in works:
        rows[work] = {}
        for side in ("diffusers", "videogen"):
            command = [sys.executable, "-c", PEAK, side, work, json.dumps(config)]
            # The same work takes up to a hundred MB more in one process than in another.
            options = {"capture_output": True, "text": True, "check": True, "cwd": ROOT}
            outputs = [subprocess.run(command, **options).stdout.split() for _ in range(rounds)]
            peak, working = (statistics.median(map(float, values)) for values in zip(*outputs, strict=True))
            rows[work] |= {f"{side}_peak_mb": round(peak), f"{side}_working_mb": round(working)}
    return rows


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Measure everything, print it and write assets/bench/wan_vae.json."""
    args = parse_flags(make_parser("wan_vae", __doc__), argv)
    extent = SMALL if args.small else Extent()
    set_num_threads()
    whole_21 = measure_whole("2.1", extent.wan_21, extent.latent_frames[0], extent.rounds)
    whole_22 = measure_whole("2.2", extent.wan_22, extent.latent_frames[1], 1)
    sections = {
        "whole": whole_21 | whole_22,
        "without": measure_tricks(extent.wan_21, extent.trick_frames, extent.rounds),
        "memory": measure_memory(extent.wan_21, extent.memory, extent.rounds),
    }
    publish(args.out, sections)


if __name__ == "__main__":
    main()
