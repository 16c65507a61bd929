"""Wan's line against diffusers' WanPipeline: the same random weights, one process, alternating, medians of ratios.

    videogen bench wan  ->  assets/bench/wan.json

A guided step at several widths and lengths beside its floor, where ours spends its time, each trick alone off, prompt
to MP4 with the real VAE, and memory, of a new process each. Ten minutes.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from diffusers.utils import export_to_video
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.bench.machine import publish, use_threads  # noqa: E402
from tests.bench.wan_tricks import NEGATIVE, PROMPT, Ways, compare, not_taken, tricks_off  # noqa: E402
from tests.wan_folders import make_parts  # noqa: E402
from videogen.config.sample import MINI, SampleConfig  # noqa: E402
from videogen.data.video_io import write_video  # noqa: E402
from videogen.models.block_cache import BlockCache  # noqa: E402
from videogen.sampling.pipeline import ClipRequest, VideoPipeline  # noqa: E402


class Case(NamedTuple):
    """A transformer and a clip: the VAE's stride is 8, the patch's side 2."""

    width: int
    layers: int
    heads: int
    size: str
    frames: int
    steps: int
    rounds: int

    @property
    def config(self) -> SampleConfig:
        """The settings, as WanPipeline's."""
        return SampleConfig(
            size=self.size, frames=self.frames, steps=self.steps, sampler="unipc", shift=3.0, guidance=5.0,
            cfg_zero=False, negative=NEGATIVE,
        )  # fmt: skip


CASES = {
    "width 256 x 12, 80 tokens": Case(256, 12, 4, "64x64", 17, 4, 15),
    "width 256 x 12, 320 tokens": Case(256, 12, 4, "128x128", 17, 4, 5),
    "width 256 x 12, 3,960 tokens": Case(256, 12, 4, "352x160", 69, 1, 3),
    "width 768 x 8, 80 tokens": Case(768, 8, 12, "64x64", 17, 2, 5),
    "width 768 x 8, 320 tokens": Case(768, 8, 12, "128x128", 17, 2, 3),
}
SMALL = CASES["width 256 x 12, 80 tokens"]


def make_pair(case: Case, *, real_vae: bool = False) -> tuple[WanPipeline, VideoPipeline]:
    """Theirs with random weights and ours with the same; the VAE of 2.1 where it counts."""
    theirs = make_parts("T2V 2.1")
    torch.manual_seed(0)
    channels = 16 if real_vae else 4
    theirs.transformer = WanTransformer3DModel(
        num_attention_heads=case.heads, attention_head_dim=case.width // case.heads, ffn_dim=4 * case.width,
        num_layers=case.layers, text_dim=16, in_channels=channels, out_channels=channels,
    ).eval()  # fmt: skip
    if real_vae:
        theirs.vae = AutoencoderKLWan().eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = VideoPipeline.load(Path(folder))
    for part in (theirs.transformer, theirs.vae, theirs.text_encoder, ours.transformer, ours.vae):
        part.requires_grad_(False)
    return theirs, ours


def ask_theirs(theirs: WanPipeline, config: SampleConfig, *, output: str = "latent") -> Tensor:
    """Their latents (c, t, h, w), or frames."""
    made = theirs(
        prompt=PROMPT, negative_prompt=config.negative, height=config.height, width=config.width,
        num_frames=config.frames, num_inference_steps=config.steps, guidance_scale=config.guidance,
        generator=torch.Generator().manual_seed(0), output_type=output,
    )  # fmt: skip
    return made.frames[0]


def ask_ours(ours: VideoPipeline, config: SampleConfig) -> Tensor:
    """Our latents (c, t, h, w)."""
    return ours.sample([ClipRequest(PROMPT, 0)], config)[0]


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def floor(case: Case, tokens: int) -> Callable[[], None]:
    """What of a guided step cannot be saved: linear layers as bare products, and attention, both branches in one."""
    n, d = 2 * tokens, case.width
    x, hidden = torch.randn(n, d), torch.randn(n, 4 * d)
    square, wide, narrow = torch.randn(d, d), torch.randn(d, 4 * d), torch.randn(4 * d, d)
    q = torch.randn(2, case.heads, tokens, d // case.heads)

    def run() -> None:
        for _ in range(case.layers):
            for _ in range(6):
                torch.mm(x, square)
            torch.mm(x, wide)
            torch.mm(hidden, narrow)
            F.scaled_dot_product_attention(q, q, q)

    return run


KINDS = {"mm": "products", "addmm": "products", "copy_": "copies", "index": "copies", "cat": "copies"}


def profiled(case: Case) -> dict[str, float]:
    """Where the time of ours goes, as shares; what lies between the kernels is Python and dispatch."""
    _, ours = make_pair(case)
    ask_ours(ours, case.config)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        took = seconds(lambda: ask_ours(ours, case.config))
    shares = dict.fromkeys(("products", "attention", "copies", "element by element"), 0.0)
    for event in seen.key_averages():
        if event.key.startswith("aten::"):
            name = event.key.removeprefix("aten::")
            kind = "attention" if "scaled_dot" in name else KINDS.get(name, "element by element")
            shares[kind] += event.self_cpu_time_total / 1e6 / took
    return {kind: round(share, 3) for kind, share in (shares | {"between": 1 - sum(shares.values())}).items()}


def step(case: Case) -> dict[str, float]:
    """A guided step of each, alternating, after a round that is not counted, and of the floor alone."""
    theirs, ours = make_pair(case)
    _, t, h, w = ours.latent_shape(case.config)
    tokens = t * h * w // 4
    bare = floor(case, tokens)
    times: list[tuple[float, float, float]] = []
    for _ in range(case.rounds + 1):
        a = seconds(lambda: ask_theirs(theirs, case.config)) / case.steps
        times.append((a, seconds(lambda: ask_ours(ours, case.config)) / case.steps, seconds(bare)))
    with FlopCounterMode(display=False) as theirs_flop:
        wanted = ask_theirs(theirs, case.config)
    with FlopCounterMode(display=False) as ours_flop:
        made = ask_ours(ours, case.config)
    return {
        "tokens": tokens,
        "diffusers_ms": round(1000 * statistics.median(a for a, _, _ in times[1:]), 1),
        "videogen_ms": round(1000 * statistics.median(b for _, b, _ in times[1:]), 1),
        "times_faster": round(statistics.median(a / b for a, b, _ in times[1:]), 2),
        "floor_ms": round(1000 * statistics.median(c for _, _, c in times[1:]), 1),
        "floor_share": round(statistics.median(c / b for _, b, c in times[1:]), 3),
        "diffusers_gflop": round(theirs_flop.get_total_flops() / case.steps / 1e9, 2),
        "videogen_gflop": round(ours_flop.get_total_flops() / case.steps / 1e9, 2),
        "max_difference": float(f"{(wanted - made).abs().max().item():.1e}"),
    }


def tricks(ways: Callable[[VideoPipeline], Ways]) -> dict[str, dict[str, float]]:
    """What ways of computing a step bring, at the size where little else counts."""
    _, ours = make_pair(SMALL)
    return compare(ways(ours), lambda: ask_ours(ours, SMALL.config), rounds=SMALL.rounds, steps=SMALL.steps)


# --- approximate: the default checkpoint, whose weights have been trained

PROMPTS = (
    "a large red circle moves right on a black background",
    "a small blue star sits still on a white background",
    "a green heart spins on a grey background",
    "a pink cross moves up on a black background",
)
REUSE = [{"first_block_cache": x} for x in (0.05, 0.1, 0.2)] + [{"mag_cache": x} for x in (0.03, 0.1, 0.3)]


def approximate(rounds: int) -> dict[str, dict[str, float]]:
    """Each cache against none: share of the blocks that ran, time, alternating, and PSNR of the frames in dB."""
    ours = VideoPipeline.load(MINI)
    plain = replace(ours.defaults, steps=50)
    jobs = [ClipRequest(prompt, seed) for seed, prompt in enumerate(PROMPTS)]
    configs = {"none": plain} | {f"{k} {v}": replace(plain, **some) for some in REUSE for k, v in some.items()}
    times, clips, shares = dict[str, list[float]](), dict[str, Tensor](), dict[str, float]()
    for _ in range(rounds + 1):
        for name, config in configs.items():
            cache = BlockCache(config) if name != "none" else None
            began = time.perf_counter()
            latents = ours.sample(jobs, config, block_cache=cache)
            times.setdefault(name, []).append(time.perf_counter() - began)
            clips[name] = torch.stack([torch.cat(list(ours.frames(latent))) for latent in latents]).float()
            shares[name] = 1.0 if cache is None else cache.share
    ratios = {name: [a / b for a, b in zip(times["none"][1:], some[1:], strict=True)] for name, some in times.items()}
    errors = {
        name: [(a - b).square().mean().clamp(min=1e-3) for a, b in zip(clips["none"], made, strict=True)]
        for name, made in clips.items()
    }
    return {
        name: {
            "blocks_run": round(shares[name], 3),
            "times_faster": round(statistics.median(ratios[name]), 2),
            "least_psnr_db": round(float(10 * torch.log10(255**2 / max(errors[name]))), 1),
            "mean_psnr_db": round(float(10 * torch.log10(255**2 / torch.stack(errors[name])).mean()), 1),
        }
        for name in configs
        if name != "none"
    }


# --- the whole, and memory


def line(case: Case) -> dict[str, float]:
    """Prompt to MP4 with Wan 2.1's VAE at its real width, alternating."""
    theirs, ours = make_pair(case, real_vae=True)
    times: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as out:

        def make_theirs() -> None:
            export_to_video(list(ask_theirs(theirs, case.config, output="np")), f"{out}/a.mp4", fps=16)

        def make_ours() -> None:
            frames = ours.frames(ask_ours(ours, case.config))
            write_video(Path(out) / "b.mp4", frames, fps=16, overwrite=True)

        for _ in range(case.rounds + 1):
            times.append((seconds(make_theirs), seconds(make_ours)))
    return {
        "diffusers_seconds": round(statistics.median(a for a, _ in times[1:]), 2),
        "videogen_seconds": round(statistics.median(b for _, b in times[1:]), 2),
        "times_faster": round(statistics.median(a / b for a, b in times[1:]), 2),
    }


PEAK = """
import sys
sys.path[:0] = [{root!r}]
import torch
from tests.bench.wan import CASES, ask_ours, ask_theirs, make_pair
from videogen.sweep.packs import forget_peak, peak_memory_gb
case = CASES[{name!r}]
theirs, ours = make_pair(case)
cpu = torch.device("cpu")
forget_peak(cpu)
before = peak_memory_gb(cpu)
{call}
print(1000 * (peak_memory_gb(cpu) - before))
"""


def memory(name: str) -> dict[str, float]:
    """How far a run of each raises the peak of a new process, in MB."""
    calls = {"diffusers_mb": "ask_theirs(theirs, case.config)", "videogen_mb": "ask_ours(ours, case.config)"}
    peaks = {}
    for who, call in calls.items():
        code = PEAK.format(root=str(ROOT), name=name, call=call)
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        peaks[who] = round(float(done.stdout.split()[-1]), 1)
    return peaks


def main() -> None:
    """Measure everything, print it and write assets/bench/wan.json."""
    argparse.ArgumentParser(prog="videogen bench wan", description=str(__doc__).split("\n")[0]).parse_args()
    use_threads()
    sections = {
        "guided_step": {name: step(case) for name, case in CASES.items()},
        "where_ours_goes": {name: profiled(case) for name, case in CASES.items()},
        "without": tricks(tricks_off),
        "with": tricks(not_taken),
        "approximate": approximate(3),
        "prompt_to_mp4": {"17 frames of 64x64, 10 steps": line(SMALL._replace(steps=10, rounds=3))},
        "memory": {name: memory(name) for name in ("width 256 x 12, 80 tokens", "width 256 x 12, 3,960 tokens")},
    }
    publish("wan", sections)


if __name__ == "__main__":
    main()
