"""Time Wan's line against diffusers' WanPipeline: the same random weights, one process, alternating, medians of ratios.

    videogen bench wan  ->  assets/bench/wan.json

It measures a guided step at several widths and lengths beside its floor, the shares of its time, each trick switched
off alone, prompt to MP4 with the real VAE, and memory, in a new process each. It takes ten minutes.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from diffusers.utils import export_to_video
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.bench.flags import make_parser, parse_flags  # noqa: E402
from tests.bench.flop import count_gflop  # noqa: E402
from tests.bench.machine import publish, set_num_threads  # noqa: E402
from tests.bench.wan_tricks import NEGATIVE, PROMPT, Ways, compare_ways, further_tricks, tricks_off  # noqa: E402
from tests.wan_folders import make_pipeline  # noqa: E402
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
        """The settings, as WanPipeline has them."""
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


class Extent(NamedTuple):
    """What is measured: the first of the cases with every trick, too."""

    cases: Mapping[str, Case] = CASES
    memory: tuple[str, ...] = ("width 256 x 12, 80 tokens", "width 256 x 12, 3,960 tokens")
    clip_steps: int = 10  # from prompt to MP4
    clip_rounds: int = 3
    real_vae: bool = True
    cache_prompts: int = 4
    cache_steps: int = 50
    cache_rounds: int = 3

    @property
    def first(self) -> Case:
        """The case at which little but the tricks counts."""
        return next(iter(self.cases.values()))


TINY = "width 24 x 2, 8 tokens"
SMALL = Extent(
    {TINY: Case(24, 2, 2, "32x32", 5, 1, 1)},
    (TINY,),
    clip_steps=1,
    clip_rounds=1,
    real_vae=False,
    cache_prompts=1,
    cache_steps=2,
    cache_rounds=1,
)


def make_pair(case: Case, *, real_vae: bool = False) -> tuple[WanPipeline, VideoPipeline]:
    """Build theirs with random weights and ours with the same, with the real VAE of 2.1 on demand."""
    theirs = make_pipeline("T2V 2.1")
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


def sample_with_diffusers(theirs: WanPipeline, config: SampleConfig, *, output: str = "latent") -> Tensor:
    """Sample their latent (c, t, h, w), or frames."""
    result = theirs(
        prompt=PROMPT, negative_prompt=config.negative, height=config.height, width=config.width,
        num_frames=config.frames, num_inference_steps=config.steps, guidance_scale=config.guidance,
        generator=torch.Generator().manual_seed(0), output_type=output,
    )  # fmt: skip
    return result.frames[0]


def sample_with_videogen(ours: VideoPipeline, config: SampleConfig) -> Tensor:
    """Sample our latent (c, t, h, w)."""
    return ours.sample([ClipRequest(PROMPT, 0)], config)[0]


def time_call(call: Callable[[], object]) -> float:
    """Measure the seconds of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def floor_call(case: Case, tokens: int) -> Callable[[], None]:
    """Compute the least of a guided step: linear layers as bare products, and attention, both branches in one."""
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


def measure_time_shares(case: Case) -> dict[str, float]:
    """Measure the shares of our time by kind of kernel; between the kernels are Python and dispatch."""
    _, ours = make_pair(case)
    sample_with_videogen(ours, case.config)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        total_seconds = time_call(lambda: sample_with_videogen(ours, case.config))
    shares = dict.fromkeys(("products", "attention", "copies", "element by element"), 0.0)
    for event in profiler.key_averages():
        if event.key.startswith("aten::"):
            name = event.key.removeprefix("aten::")
            kind = "attention" if "scaled_dot" in name else KINDS.get(name, "element by element")
            shares[kind] += event.self_cpu_time_total / 1e6 / total_seconds
    return {kind: round(share, 3) for kind, share in (shares | {"between": 1 - sum(shares.values())}).items()}


def measure_step(case: Case) -> dict[str, float]:
    """Time a guided step of each, alternating, after a warm-up round, and the floor alone."""
    theirs, ours = make_pair(case)
    _, t, h, w = ours.latent_shape(case.config)
    tokens = t * h * w // 4
    bare_step = floor_call(case, tokens)
    times: list[tuple[float, float, float]] = []
    for _ in range(case.rounds + 1):
        a = time_call(lambda: sample_with_diffusers(theirs, case.config)) / case.steps
        times.append((a, time_call(lambda: sample_with_videogen(ours, case.config)) / case.steps, time_call(bare_step)))
    their_gflop, their_latent = count_gflop(lambda: sample_with_diffusers(theirs, case.config))
    our_gflop, our_latent = count_gflop(lambda: sample_with_videogen(ours, case.config))
    return {
        "tokens": tokens,
        "diffusers_ms": round(1000 * statistics.median(a for a, _, _ in times[1:]), 1),
        "videogen_ms": round(1000 * statistics.median(b for _, b, _ in times[1:]), 1),
        "times_faster": round(statistics.median(a / b for a, b, _ in times[1:]), 2),
        "floor_ms": round(1000 * statistics.median(c for _, _, c in times[1:]), 1),
        "floor_share": round(statistics.median(c / b for _, b, c in times[1:]), 3),
        "diffusers_gflop": round(their_gflop / case.steps, 2),
        "videogen_gflop": round(our_gflop / case.steps, 2),
        "max_difference": float(f"{(their_latent - our_latent).abs().max().item():.1e}"),
    }


def measure_tricks(ways: Callable[[VideoPipeline], Ways], case: Case) -> dict[str, dict[str, float]]:
    """Measure the effect of ways of computing a step."""
    _, ours = make_pair(case)
    return compare_ways(
        ways(ours), lambda: sample_with_videogen(ours, case.config), rounds=case.rounds, steps=case.steps
    )


# --- block caches: on the default checkpoint, since random weights say nothing of what a cache loses

PROMPTS = (
    "a large red circle moves right on a black background",
    "a small blue star sits still on a white background",
    "a green heart spins on a grey background",
    "a pink cross moves up on a black background",
)
REUSE = [{"first_block_cache": x} for x in (0.05, 0.1, 0.2)] + [{"mag_cache": x} for x in (0.03, 0.1, 0.3)]


def measure_block_caches(prompts: Sequence[str], steps: int, rounds: int) -> dict[str, dict[str, float]]:
    """Measure each cache against none: share of the blocks that ran, time, alternating, and PSNR of frames in dB."""
    ours = VideoPipeline.load(MINI)
    plain = replace(ours.defaults, steps=steps)
    requests = [ClipRequest(prompt, seed) for seed, prompt in enumerate(prompts)]
    configs = {"none": plain} | {f"{k} {v}": replace(plain, **changes) for changes in REUSE for k, v in changes.items()}
    times, clips, shares = dict[str, list[float]](), dict[str, Tensor](), dict[str, float]()
    for _ in range(rounds + 1):
        for name, config in configs.items():
            cache = BlockCache(config) if name != "none" else None
            began = time.perf_counter()
            latents = ours.sample(requests, config, block_cache=cache)
            times.setdefault(name, []).append(time.perf_counter() - began)
            clips[name] = torch.stack([torch.cat(list(ours.frames(latent))) for latent in latents]).float()
            shares[name] = 1.0 if cache is None else cache.computed_share
    ratios = {
        name: [a / b for a, b in zip(times["none"][1:], seconds[1:], strict=True)] for name, seconds in times.items()
    }
    errors = {
        name: [(a - b).square().mean().clamp(min=1e-3) for a, b in zip(clips["none"], frames, strict=True)]
        for name, frames in clips.items()
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


# --- prompt to MP4, and memory


def measure_prompt_to_mp4(case: Case, *, real_vae: bool) -> dict[str, float]:
    """Time prompt to MP4, with Wan 2.1's VAE at its real width or with a tiny one, alternating."""
    theirs, ours = make_pair(case, real_vae=real_vae)
    times: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as out:

        def write_theirs() -> None:
            export_to_video(list(sample_with_diffusers(theirs, case.config, output="np")), f"{out}/a.mp4", fps=16)

        def write_ours() -> None:
            frames = ours.frames(sample_with_videogen(ours, case.config))
            write_video(Path(out) / "b.mp4", frames, fps=16, overwrite=True)

        for _ in range(case.rounds + 1):
            times.append((time_call(write_theirs), time_call(write_ours)))
    return {
        "diffusers_seconds": round(statistics.median(a for a, _ in times[1:]), 2),
        "videogen_seconds": round(statistics.median(b for _, b in times[1:]), 2),
        "times_faster": round(statistics.median(a / b for a, b in times[1:]), 2),
    }


PEAK = """
import sys
sys.path[:0] = [{root!r}]
import torch
from tests.bench.wan import Case, make_pair, sample_with_diffusers, sample_with_videogen
from videogen.sweep.resource_usage import peak_memory_gb, reset_peak_memory
case = {case!r}
theirs, ours = make_pair(case)
cpu = torch.device("cpu")
reset_peak_memory(cpu)
before = peak_memory_gb(cpu)
{call}
print(1000 * (peak_memory_gb(cpu) - before))
"""


def measure_memory(case: Case) -> dict[str, float]:
    """Measure how far a run of each raises the peak memory of a new process, in MB."""
    calls = {
        "diffusers_mb": "sample_with_diffusers(theirs, case.config)",
        "videogen_mb": "sample_with_videogen(ours, case.config)",
    }
    peaks = {}
    for key, call in calls.items():
        code = PEAK.format(root=str(ROOT), case=case, call=call)
        process = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        peaks[key] = round(float(process.stdout.split()[-1]), 1)
    return peaks


def main(argv: Sequence[str] | None = None) -> None:
    """Measure everything, print it and write assets/bench/wan.json."""
    args = parse_flags(make_parser("wan", __doc__), argv)
    extent = SMALL if args.small else Extent()
    set_num_threads()
    clip = extent.first._replace(steps=extent.clip_steps, rounds=extent.clip_rounds)
    clip_name = f"{clip.frames} frames of {clip.size}, {clip.steps} steps"
    sections = {
        "guided_step": {name: measure_step(case) for name, case in extent.cases.items()},
        "where_ours_goes": {name: measure_time_shares(case) for name, case in extent.cases.items()},
        "without": measure_tricks(tricks_off, extent.first),
        "with": measure_tricks(further_tricks, extent.first),
        "approximate": measure_block_caches(PROMPTS[: extent.cache_prompts], extent.cache_steps, extent.cache_rounds),
        "prompt_to_mp4": {clip_name: measure_prompt_to_mp4(clip, real_vae=extent.real_vae)},
        "memory": {name: measure_memory(extent.cases[name]) for name in extent.memory},
    }
    publish(args.out, sections)


if __name__ == "__main__":
    main()
