"""From which noise level on a checkpoint keeps to a caption: clips of the world, noised to it and finished from there.

    videogen bench halfway [--model FOLDER] [--clips 24] [--levels 1 0.95 0.9 0.8 0.6]  ->  assets/bench/halfway.json

What the noised clip still shows cannot go wrong, so the level from which a clause begins to hold says where the network
fails it: that is where training has to draw more of its levels, or lasts too short.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from tests.bench.judged import BENCH, Made, Scores, cases_of, judge_clips, pack_size, scores_of, write_result
from videogen.cli.judge import render_case
from videogen.config.parsing import to_mapping
from videogen.config.sample import MINI
from videogen.models.hub import checkpoint_id, find_checkpoint
from videogen.packing.noise import interpolate
from videogen.packing.packs import pack, unpack
from videogen.packing.patch_schedule import cut_by
from videogen.sampling.brownian import BrownianPath
from videogen.sampling.denoiser import Denoiser, with_guidance
from videogen.sampling.pipeline import VideoPipeline
from videogen.sampling.solvers import SAMPLERS, STOCHASTIC_SAMPLERS, sigma_schedule
from videogen.toybox.judge.scores import Case

LEVELS = (1.0, 0.95, 0.9, 0.8, 0.6)


@torch.no_grad()
def finish(pipeline: VideoPipeline, cases: Sequence[Case], level: float) -> list[Tensor]:
    """The world's own clips of some cases, noised to a level, and denoised from there as the checkpoint's defaults say.

    Returns frames (t, h, w, 3) uint8 a clip.
    """
    config, seeds = pipeline.defaults, list(range(len(cases)))
    frames = (torch.from_numpy(render_case(case)).float() / 127.5 - 1 for case in cases)
    latents = [pipeline.vae.encode(rearrange(clip, "t h w c -> 1 c t h w"))[0] for clip in frames]
    noise = pipeline.noise(seeds, [config] * len(seeds))
    start = interpolate(pack(latents, noise.patch).tokens, noise.tokens, torch.tensor(level))
    text = pipeline.encode_prompts([*(case.prompt for case in cases), *[config.negative] * len(cases)])
    patch_at = cut_by(config, pipeline.transformer.patches)
    denoiser = Denoiser(pipeline.experts, pipeline.boundary, pack=noise, text=text, patch_at=patch_at)
    velocity = with_guidance(denoiser, [config] * len(cases), noise.lengths)
    sigmas = level * sigma_schedule(config.steps, shift=config.shift)
    if config.sampler in STOCHASTIC_SAMPLERS:
        paths = [BrownianPath(latents[0].shape, seed) for seed in seeds]

        def fresh(before: Tensor, after: Tensor) -> Tensor:
            return pack([path.increment(float(before), float(after)) for path in paths], noise.patch).tokens

        tokens = STOCHASTIC_SAMPLERS[config.sampler](velocity, start, sigmas, fresh)
    else:
        tokens = SAMPLERS[config.sampler](velocity, start, sigmas)
    return [torch.cat(list(pipeline.frames(latent))) for latent in unpack(noise._replace(tokens=tokens))]


def measure(pipeline: VideoPipeline, levels: Sequence[float], num_clips: int) -> dict[str, Scores]:
    """For each level, the clauses that hold."""
    cases, size = cases_of(pipeline.defaults, num_clips), pack_size(pipeline, pipeline.defaults)
    found: dict[str, Scores] = {}
    for level in levels:
        made: list[Made] = []
        for start in range(0, num_clips, size):
            some = cases[start : start + size]
            made += [Made(case, 0, clip) for case, clip in zip(some, finish(pipeline, some, level), strict=True)]
        found[f"{level:g}"] = scores_of(judge_clips(made))
    return found


def main() -> None:
    """Measure, write and print a row a level."""
    parser = argparse.ArgumentParser(prog="videogen bench halfway", description=str(__doc__).split("\n")[0])
    parser.add_argument("--model", type=Path, default=MINI, help="checkpoint folder")
    parser.add_argument("--clips", type=int, default=24, help="captions")
    parser.add_argument("--levels", type=float, nargs="*", default=LEVELS, help="noise levels to begin from, 0 to 1")
    parser.add_argument("--out", type=Path, default=BENCH / "halfway.json")
    args = parser.parse_args()
    if wrong := [level for level in args.levels if not 0 < level <= 1]:
        parser.error(f"--levels must be above 0 and at most 1, got {wrong[0]:g}")
    model = find_checkpoint(args.model)
    pipeline = VideoPipeline.load(model)
    rows = measure(pipeline, args.levels, args.clips)
    about = {"checkpoint": checkpoint_id(model), "clips": args.clips, "settings": to_mapping(pipeline.defaults)}
    write_result(args.out, {**about, "levels": rows})
    for level, scores in rows.items():
        print(f"{level:>5}  " + "  ".join(f"{name} {one['share']:.0%}" for name, one in scores.items()))


if __name__ == "__main__":
    main()
