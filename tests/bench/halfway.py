"""Find the noise level from which a checkpoint keeps to its caption: noise the world's clips to it, and finish them.

    videogen bench halfway [--model FOLDER] [--clips 24] [--levels 1 0.95 0.9 0.8 0.6]  ->  assets/bench/halfway.json

What the noised clip still shows cannot go wrong, so the level from which a clause begins to hold is the one at which
the network fails it: training has to sample more of its noise levels there, or lasts too short.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from tests.bench.flags import make_parser, parse_flags
from tests.bench.judged import (
    BenchClip,
    Scores,
    clips_per_pack,
    draw_cases,
    judge_clips,
    tally_scores,
    write_result,
)
from videogen.cli.judge import render_case
from videogen.config.parsing import to_mapping
from videogen.config.sample import MINI
from videogen.models.hub import checkpoint_id, find_checkpoint
from videogen.packing.noise import interpolate
from videogen.packing.packs import pack, unpack
from videogen.packing.patch_schedule import patch_schedule
from videogen.sampling.brownian import BrownianPath
from videogen.sampling.denoiser import Denoiser, with_guidance
from videogen.sampling.pipeline import VideoPipeline
from videogen.sampling.solvers import SAMPLERS, STOCHASTIC_SAMPLERS, sigma_schedule
from videogen.toybox.judge.scores import Case

LEVELS = (1.0, 0.95, 0.9, 0.8, 0.6)


@torch.no_grad()
def denoise_from(pipeline: VideoPipeline, cases: Sequence[Case], level: float) -> list[Tensor]:
    """Noise the world's own clips of some cases to a level, and denoise them from there at the checkpoint's defaults.

    Returns frames (t, h, w, 3) uint8 a clip.
    """
    config, seeds = pipeline.defaults, list(range(len(cases)))
    frames = (torch.from_numpy(render_case(case)).float() / 127.5 - 1 for case in cases)
    latents = [pipeline.vae.encode(rearrange(clip, "t h w c -> 1 c t h w"))[0] for clip in frames]
    noise = pipeline.noise(seeds, [config] * len(seeds))
    noised = interpolate(pack(latents, noise.patch).tokens, noise.tokens, torch.tensor(level))
    text = pipeline.encode_prompts([*(case.prompt for case in cases), *[config.negative] * len(cases)])
    patch_at = patch_schedule(config, pipeline.transformer.patches)
    denoiser = Denoiser(pipeline.experts, pipeline.boundary, pack=noise, text=text, patch_at=patch_at)
    velocity = with_guidance(denoiser, [config] * len(cases), noise.lengths)
    sigmas = level * sigma_schedule(config.steps, shift=config.shift)
    if config.sampler in STOCHASTIC_SAMPLERS:
        paths = [BrownianPath(latents[0].shape, seed) for seed in seeds]

        def brownian_increment(before: Tensor, after: Tensor) -> Tensor:
            return pack([path.increment(float(before), float(after)) for path in paths], noise.patch).tokens

        tokens = STOCHASTIC_SAMPLERS[config.sampler](velocity, noised, sigmas, brownian_increment)
    else:
        tokens = SAMPLERS[config.sampler](velocity, noised, sigmas)
    return [torch.cat(list(pipeline.frames(latent))) for latent in unpack(noise._replace(tokens=tokens))]


def measure(pipeline: VideoPipeline, levels: Sequence[float], num_clips: int) -> dict[str, Scores]:
    """Score every clause for each level."""
    cases, num_per_pack = draw_cases(pipeline.defaults, num_clips), clips_per_pack(pipeline, pipeline.defaults)
    scores_by_level: dict[str, Scores] = {}
    for level in levels:
        clips: list[BenchClip] = []
        for start in range(0, num_clips, num_per_pack):
            pack_cases = cases[start : start + num_per_pack]
            clips += [
                BenchClip(case, 0, clip)
                for case, clip in zip(pack_cases, denoise_from(pipeline, pack_cases, level), strict=True)
            ]
        scores_by_level[f"{level:g}"] = tally_scores(judge_clips(clips))
    return scores_by_level


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write and print a row a level."""
    parser = make_parser("halfway", __doc__)
    parser.add_argument("--model", type=Path, default=MINI, help="checkpoint folder")
    parser.add_argument("--clips", type=int, default=24, help="captions")
    parser.add_argument("--levels", type=float, nargs="*", default=LEVELS, help="noise levels to begin from, 0 to 1")
    args = parse_flags(parser, argv, {"clips": 1, "levels": (1.0, 0.6)})
    if wrong := [level for level in args.levels if not 0 < level <= 1]:
        parser.error(f"--levels must be above 0 and at most 1, got {wrong[0]:g}")
    model = find_checkpoint(args.model)
    pipeline = VideoPipeline.load(model)
    scores_by_level = measure(pipeline, args.levels, args.clips)
    about = {"checkpoint": checkpoint_id(model), "clips": args.clips, "settings": to_mapping(pipeline.defaults)}
    write_result(args.out, {**about, "levels": scores_by_level})
    for level, scores in scores_by_level.items():
        print(f"{level:>5}  " + "  ".join(f"{name} {score['share']:.0%}" for name, score in scores.items()))


if __name__ == "__main__":
    main()
