"""The network as a velocity field on the tokens of one pack, and guidance on top of it.

    experts, pack, text, condition  ->  Denoiser(tokens, sigma, rows)  ->  with_guidance  ->  velocity(tokens, sigma)

Text row i < b is the prompt of clip i of the pack's b clips, row b + i its negative prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from videogen.config.sample import SampleConfig
from videogen.models.block_cache import BlockCache
from videogen.models.checkpoint_config import NO_IMAGE
from videogen.models.dit_network import DiT, LevelContext, TextContext
from videogen.packing.noise import NoiseLevels, shared_level, velocity_of
from videogen.packing.packs import Lengths, PackedVideo, repatch
from videogen.packing.patch_schedule import Patch, PatchAt
from videogen.sampling.guidance import apply_guidance, guidance_scale
from videogen.sampling.known_tokens import NO_CONDITION, Condition
from videogen.sampling.solvers import Velocity

TOKENS_PER_CALL = 2048
"""Prompts and negative prompts share a call of the network up to so many tokens: beyond, one call is no faster than two
and takes twice the memory."""
LEVELS_AHEAD = 16  # noise levels: what they tell a transformer of 14 billion weights takes 5 MB each
Predict = Callable[[Tensor, Tensor, Sequence[int]], list[Tensor]]
"""Tokens of a pack, noise level, text rows  ->  for each row i the velocity (n, c·pt·ph·pw) of clip i % b under it."""


@dataclass(frozen=True)
class Denoiser:
    """The network as a velocity field: predict the velocity of the clips of one pack under some of its texts."""

    experts: Sequence[DiT]  # high noise first
    boundary: float | None  # the noise level from which up the first expert answers (Wan 2.2)
    pack: PackedVideo  # grids, patch and position scaling; its tokens are those of the noise
    text: TextContext
    patch_at: PatchAt
    condition: Condition = NO_CONDITION
    block_cache: BlockCache | None = None
    on_evaluation: Callable[[], object] = lambda: None  # called once an evaluation of all clips
    tokens_per_call: int | None = None  # TOKENS_PER_CALL by default
    sigmas: Sequence[float] = ()  # the noise levels of the run's steps, where they are known beforehand
    _levels: dict[tuple[int, Patch, float], LevelContext] = field(default_factory=dict, init=False, repr=False)
    _texts: dict[tuple[int, ...], TextContext] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        dit = self.experts[0]
        if dit.in_channels > dit.out_channels and self.condition.extra_channels is None:
            raise ValueError(NO_IMAGE)

    def __call__(self, tokens: Tensor, sigma: Tensor, rows: Sequence[int]) -> list[Tensor]:
        """Predict the velocity of clip i % b under text row i for every row, prompts before negative prompts."""
        num_clips, lengths = len(self.pack.grids), self.pack.lengths
        calls = [tuple(rows)]
        budget = TOKENS_PER_CALL if self.tokens_per_call is None else self.tokens_per_call
        if sum(lengths[row % num_clips] for row in rows) > budget:
            prompts, negatives = (tuple(row for row in rows if (row >= num_clips) == side) for side in (False, True))
            calls = [call for call in (prompts, negatives) if call]
        known = self.condition.known
        shown = tokens if known is None else known.show(tokens, sigma)
        velocities = [velocity for call in calls for velocity in self._evaluate(shown, sigma, call)]
        if known is not None:  # what the network says of held values means nothing, and guidance sums over a clip
            held = known.is_held(sigma).split(lengths)
            velocities = [
                velocity.masked_fill(held[row % num_clips], 0) for row, velocity in zip(rows, velocities, strict=True)
            ]
        for _ in range(0, len(rows), num_clips):
            self.on_evaluation()
        return velocities

    def _evaluate(self, tokens: Tensor, sigma: Tensor, rows: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Call the network once."""
        number = expert_at(sigma, self.boundary)
        expert, first_block = self.experts[number], sum(len(dit.blocks) for dit in self.experts[:number])
        text = self._take_text(rows)
        text = text._replace(blocks=text.blocks[first_block:][: len(expert.blocks)])
        clips, parts = [row % len(self.pack.grids) for row in rows], tokens.split(self.pack.lengths)
        grids = tuple(self.pack.grids[clip] for clip in clips)
        pack = self.pack._replace(tokens=torch.cat([parts[clip] for clip in clips]), grids=grids)
        patch = self.patch_at(float(sigma))
        network_input = repatch(self._with_extra_channels(pack, clips), patch)
        exact = sigma.float() if tokens.device.type == "mps" else sigma  # MPS has no float64
        exact, known = exact.reshape(1).to(tokens.device), self.condition.known
        levels = shared_level(exact, len(network_input.tokens)) if known is None else known.levels(exact, clips, patch)
        if not expert.offloads_layers:
            levels = self._project_levels(number, patch, levels, float(sigma))
        run_blocks = None
        if self.block_cache is not None:
            keys = [(number, row) for row in rows]
            run_blocks = self.block_cache.run_blocks_at(keys, float(sigma), len(expert.blocks))
        out = network_input._replace(tokens=expert(network_input, levels, text, run_blocks=run_blocks).float())
        predicted = repatch(out, self.pack.patch).tokens
        if expert.prediction == "clean":
            predicted = velocity_of(predicted, pack.tokens, sigma)
        return predicted.split(pack.lengths)

    def _with_extra_channels(self, pack: PackedVideo, clips: Sequence[int]) -> PackedVideo:
        """Add to noised tokens the extra channels of their clips, where the model has any."""
        if self.condition.extra_channels is None:
            return pack
        extra = self.condition.extra_channels.split(self.pack.lengths)
        return pack._replace(tokens=torch.cat([pack.tokens, torch.cat([extra[clip] for clip in clips])], dim=1))

    def _project_levels(self, number: int, patch: Patch, levels: NoiseLevels, sigma: float) -> LevelContext:
        """Look up what the noise levels of a step tell an expert; those of the run's next steps are computed with it.

        They are computed step by step, since the rows of a product round otherwise with their number.
        """
        expert, known = self.experts[number], self.condition.known
        if (number, patch, sigma) not in self._levels:
            ahead = [
                x
                for x in self.sigmas
                if 0 < x < sigma and (expert_at(x, self.boundary), self.patch_at(x)) == (number, patch)
            ]
            self._levels.clear()
            for x in (sigma, *ahead[: LEVELS_AHEAD // len(levels.values)]):
                shared = torch.full_like(levels.values[:1], x)
                values = shared if known is None else known.values(shared)
                self._levels[number, patch, x] = expert.project_levels(levels._replace(values=values), patch)
        return self._levels[number, patch, sigma]._replace(index=levels.index)

    def _take_text(self, rows: tuple[int, ...]) -> TextContext:
        """Select text rows; the last two selections are kept, since a run asks for one or two in turn."""
        if rows == tuple(range(len(self.text.keys.lengths))):
            return self.text
        if rows not in self._texts:
            for oldest in list(self._texts)[:-1]:
                del self._texts[oldest]
            self._texts[rows] = self.text.take(rows)
        return self._texts[rows]


def expert_at(sigma: Tensor | float, boundary: float | None) -> int:
    """Choose the expert at a noise level: from the boundary up the first."""
    return 0 if boundary is None or 1000 * float(sigma) >= 1000 * boundary else 1


def with_guidance(
    predict: Predict, configs: Sequence[SampleConfig], lengths: Lengths, boundary: float | None = None
) -> Velocity:
    """Guide every clip of a pack by its own settings; where guidance is off, only the prompt is evaluated."""
    num_clips = len(lengths)

    def velocity(tokens: Tensor, sigma: Tensor) -> Tensor:
        second_expert = expert_at(sigma, boundary) == 1
        scales = [guidance_scale(config, float(sigma), second_expert=second_expert) for config in configs]
        guided = [clip for clip, scale in enumerate(scales) if scale != 1]
        velocities = predict(tokens, sigma, [*range(num_clips), *(num_clips + clip for clip in guided)])
        for clip, uncond in zip(guided, velocities[num_clips:], strict=True):
            velocities[clip] = apply_guidance(velocities[clip], uncond, scales[clip], cfg_zero=configs[clip].cfg_zero)
        return torch.cat(velocities[:num_clips])

    return velocity
