"""The training objective: rectified flow on packed tokens (Liu et al. 2023), at each clip's own noise level.

    dit, clean PackedVideo, PackedText  ->  loss

The network may put out the velocity, the clean clip (JiT, Li & He 2025) or what preconditioning leaves open; the loss
is on the velocity either way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from videogen.packing.noise import SIGMA_MIN, NoiseLevels, draw_noise, interpolate
from videogen.packing.packs import Lengths, PackedText, PackedVideo
from videogen.training.masks import draw_known


def token_shift(lengths: Lengths, base_tokens: float) -> Tensor:
    """A longer clip hides more from noise, so its levels are shifted up: sqrt(n / base), 1 to 3 (Esser et al. 2024)."""
    return (torch.tensor(lengths, dtype=torch.float32) / base_tokens).sqrt().clamp(1, 3)


def draw_sigmas(lengths: Lengths, *, base_tokens: float, uniform: float, generator: Generator) -> Tensor:
    """A noise level for each clip (b,): logit-normal, stratified over the batch, shifted by length, a share uniform."""
    num = len(lengths)
    strata = (torch.randperm(num, generator=generator) + torch.rand(num, generator=generator)) / num
    logit_normal = torch.special.ndtri(strata.clamp(1e-4, 1 - 1e-4)).sigmoid()
    flat = torch.rand(num, generator=generator)
    sigma = torch.where(torch.rand(num, generator=generator) < uniform, flat, logit_normal)
    shift = token_shift(lengths, base_tokens)
    return shift * sigma / (1 + (shift - 1) * sigma)


def draw_levels(
    video: PackedVideo,
    known: Mapping[str, float],
    *,
    base_tokens: float,
    uniform: float,
    generator: Generator,
    between: tuple[float, float] = (0.0, 1.0),
) -> NoiseLevels:
    """The noise level of every token: its clip's own, 0 where known; few distinct ones, found on the host.

    base_tokens counts tokens of the pack's own patch size. All levels are brought between two in proportion.
    """
    least, most = between
    sigmas = draw_sigmas(video.lengths, base_tokens=base_tokens, uniform=uniform, generator=generator)
    sigmas = least + (most - least) * sigmas
    shares = [draw_known(grid, known, generator).flatten() for grid in video.grids]
    per_token = torch.cat([sigma * share for sigma, share in zip(sigmas, shares, strict=True)])
    values, index = torch.unique(per_token, return_inverse=True)
    return NoiseLevels(values, index)


class FlowTask(NamedTuple):
    """A pack and all that is drawn for it: what a step asks of the network, at once or in parts."""

    clean: PackedVideo
    noise: Tensor  # as clean.tokens
    levels: NoiseLevels
    text: PackedText
    weight: Tensor  # (n,) what each token's error counts for; 0 where it is known
    total: Tensor  # the sum of the whole pack's weights
    facts: Tensor | None = None  # (n, k) in 0 ... 1: what each token shows, where the network is to say it

    def parts(self, most_tokens: int) -> Iterator[FlowTask]:
        """The same task in runs of clips of at most so many tokens, a longer clip alone; their losses add up."""
        lengths = self.clean.lengths
        if sum(lengths) <= most_tokens:
            yield self
            return
        told = self.weight if self.facts is None else self.facts  # a stand-in that is not used
        tensors = (self.clean.tokens, self.noise, self.levels.index, self.weight, told)
        clips = list(zip(self.clean.grids, *(x.split(lengths) for x in tensors), strict=True))
        texts = list(zip(*(x.split(self.text.lengths) for x in (self.text.tokens, self.text.weights)), strict=True))
        first, room = 0, most_tokens
        for last, length in enumerate((*lengths, most_tokens + 1)):
            if length > room and last > first:
                grids, clean, noise, index, weight, told = zip(*clips[first:last], strict=True)
                rows, row_weights = zip(*texts[first:last], strict=True)
                yield FlowTask(
                    self.clean._replace(tokens=torch.cat(clean), grids=grids),
                    torch.cat(noise),
                    self.levels._replace(index=torch.cat(index)),
                    PackedText(torch.cat(rows), tuple(map(len, rows)), torch.cat(row_weights)),
                    torch.cat(weight),
                    self.total,
                    None if self.facts is None else torch.cat(told),
                )
                first, room = last, most_tokens
            room -= length


def draw_task(
    clean: PackedVideo, text: PackedText, levels: NoiseLevels, *, base_tokens: float, generator: Generator
) -> FlowTask:
    """Draw a pack's noise and weigh its tokens: the free ones, by (n / base)^-1/2 of their clip of n tokens."""
    device = clean.tokens.device
    noise = draw_noise(clean.tokens, generator)
    levels = NoiseLevels(*(part.to(device) for part in levels))
    clip = torch.tensor(clean.lengths).repeat_interleave(torch.tensor(clean.lengths))
    weight = (clip / base_tokens).rsqrt().to(device) * (levels.per_token()[:, 0] > 0)
    return FlowTask(clean, noise, levels, text, weight, weight.sum())


def flow_error(dit: nn.Module, task: FlowTask, facts: float = 0.0) -> Tensor:
    """How far the predicted velocity is from the true one: the mean over a pack's noised tokens, weighted by clip.

    Of a part of a pack it is the part's share of that mean, whatever the other clips are. With a weight of the facts,
    it is added so many times how far the network is from them: binary cross-entropy, summed over the facts.
    """
    clean, sigma = task.clean.tokens, task.levels.per_token()
    noised = task.clean._replace(tokens=interpolate(clean, task.noise, sigma))
    asked = {"facts": True} if facts and task.facts is not None else {}
    answer = dit(noised, task.levels, task.text, **asked)
    out, said = answer if asked else (answer, None)
    out = out.to(torch.promote_types(out.dtype, torch.float32))
    model = getattr(dit, "module", dit)  # DDP wraps it
    if model.config["prediction"] == "clean":  # type: ignore[index]
        error = (out - clean) / sigma.clamp(min=SIGMA_MIN)
    else:
        error = out - (task.noise - clean)
    error = error.square().mean(dim=-1)
    if said is not None and task.facts is not None:
        untrue = nn.functional.binary_cross_entropy_with_logits(said.float(), task.facts, reduction="none")
        error = error + facts * untrue.sum(dim=-1)
    return (error * task.weight).sum() / task.total


def drop_captions(captions: Sequence[str], share: float, generator: Generator) -> list[str]:
    """Leave some clips without their caption, so that the network also knows what is likely on its own."""
    drawn = torch.rand(len(captions), generator=generator)
    return ["" if value < share else caption for value, caption in zip(drawn, captions, strict=True)]
