"""The training objective: rectified flow on packed tokens (Liu et al. 2023), each clip at its own noise level.

    dit, clean PackedVideo, PackedText  ->  loss

The network may predict the velocity, the clean clip (JiT, Li & He 2025) or what preconditioning leaves to it; the loss
is on the velocity in each case.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from videogen.packing.noise import SIGMA_MIN, NoiseLevels, interpolate, sample_noise
from videogen.packing.packs import Lengths, PackedText, PackedVideo
from videogen.training.masks import sample_known


def token_shift(lengths: Lengths, base_tokens: float) -> Tensor:
    """Return each clip's shift (b,), sqrt(n / base) in 1 ... 3: noise hides less of a long clip (Esser et al. 2024)."""
    return (torch.tensor(lengths, dtype=torch.float32) / base_tokens).sqrt().clamp(1, 3)


def sample_sigmas(lengths: Lengths, *, base_tokens: float, uniform: float, generator: Generator) -> Tensor:
    """Sample a level for each clip (b,): logit-normal, stratified over the pack, a share uniform; shifted by length."""
    num = len(lengths)
    strata = (torch.randperm(num, generator=generator) + torch.rand(num, generator=generator)) / num
    logit_normal = torch.special.ndtri(strata.clamp(1e-4, 1 - 1e-4)).sigmoid()
    flat = torch.rand(num, generator=generator)
    sigma = torch.where(torch.rand(num, generator=generator) < uniform, flat, logit_normal)
    shift = token_shift(lengths, base_tokens)
    return shift * sigma / (1 + (shift - 1) * sigma)


def sample_levels(
    video: PackedVideo,
    known: Mapping[str, float],
    *,
    base_tokens: float,
    uniform: float,
    generator: Generator,
    sigma_range: tuple[float, float] = (0.0, 1.0),
) -> NoiseLevels:
    """Sample the noise level of every token: its clip's, or 0 where a mask of the mixture `known` makes it known.

    base_tokens counts tokens of the pack's own patch size. Levels are scaled linearly into sigma_range. The distinct
    levels, of which there are few, are found on the host.
    """
    low, high = sigma_range
    sigmas = sample_sigmas(video.lengths, base_tokens=base_tokens, uniform=uniform, generator=generator)
    sigmas = low + (high - low) * sigmas
    shares = [sample_known(grid, known, generator).flatten() for grid in video.grids]
    per_token = torch.cat([sigma * share for sigma, share in zip(sigmas, shares, strict=True)])
    values, index = torch.unique(per_token, return_inverse=True)
    return NoiseLevels(values, index)


class FlowTask(NamedTuple):
    """A pack of clean clips with their noise, noise levels, captions and loss weights: the inputs of the flow loss."""

    clean: PackedVideo
    noise: Tensor  # as clean.tokens
    levels: NoiseLevels
    text: PackedText
    weight: Tensor  # (n,) of each token's error in the loss; 0 where the token is known
    total_weight: Tensor  # sum over the whole pack, also in its micro-batches
    facts: Tensor | None = None  # (n, k) in 0 ... 1: which facts each token shows, if they are trained

    def micro_batches(self, max_tokens: int) -> Iterator[FlowTask]:
        """Yield runs of clips of at most max_tokens tokens, a longer clip alone; their losses add up to the pack's."""
        lengths = self.clean.lengths
        if sum(lengths) <= max_tokens:
            yield self
            return
        first = 0
        for last in range(1, len(lengths) + 1):
            if last == len(lengths) or sum(lengths[first : last + 1]) > max_tokens:
                yield self.clips(slice(first, last))
                first = last

    def clips(self, run: slice) -> FlowTask:
        """Select a run of clips; total_weight stays that of the whole pack."""

        def select(rows: Tensor, lengths: Lengths = self.clean.lengths) -> Tensor:
            return torch.cat(rows.split(lengths)[run])

        text, lengths = self.text, self.text.lengths
        return self._replace(
            clean=self.clean._replace(tokens=select(self.clean.tokens), grids=self.clean.grids[run]),
            noise=select(self.noise),
            levels=self.levels._replace(index=select(self.levels.index)),
            text=PackedText(select(text.tokens, lengths), lengths[run], select(text.weights, lengths)),
            weight=select(self.weight),
            facts=None if self.facts is None else select(self.facts),
        )


def noise_given(clean: PackedVideo, levels: NoiseLevels, share: float, generator: Generator) -> PackedVideo:
    """Add a little noise, exp(N(-3.5, 0.5)), to the known tokens of a share of the clips, whose level stays 0.

    What is given to a trained network is never quite a clip of training, and one that trusts it wholly copies it on:
    clips freeze (the training of Wan 2.2 TI2V).
    """
    num, lengths = len(clean.grids), torch.tensor(clean.lengths)
    sigma = torch.exp(0.5 * torch.randn(num, generator=generator) - 3.5).clamp(max=1)
    sigma = torch.where(torch.rand(num, generator=generator) < share, sigma, 0.0).repeat_interleave(lengths)
    per_token = torch.where(levels.per_token() == 0, sigma.to(clean.tokens)[:, None], 0.0)
    return clean._replace(tokens=interpolate(clean.tokens, sample_noise(clean.tokens, generator), per_token))


def sample_task(
    clean: PackedVideo,
    text: PackedText,
    levels: NoiseLevels,
    *,
    base_tokens: float,
    generator: Generator,
    given_noise: float = 0.0,
) -> FlowTask:
    """Sample a pack's noise and weigh its free tokens, by (n / base_tokens)^-1/2 in a clip of n tokens."""
    device = clean.tokens.device
    noise = sample_noise(clean.tokens, generator)
    levels = NoiseLevels(*(part.to(device) for part in levels))
    num_tokens = torch.tensor(clean.lengths).repeat_interleave(torch.tensor(clean.lengths))
    weight = (num_tokens / base_tokens).rsqrt().to(device) * (levels.per_token()[:, 0] > 0)
    if given_noise:
        clean = noise_given(clean, levels, given_noise, generator)
    return FlowTask(clean, noise, levels, text, weight, weight.sum())


def flow_loss(dit: nn.Module, task: FlowTask, facts_weight: float = 0.0) -> Tensor:
    """Return the squared error of the predicted velocity: the weighted mean over the tokens of the pack.

    For a micro-batch it is its share of that mean, so that the shares add up. If the task has facts, facts_weight times
    their binary cross-entropy, summed over the facts, is added to each token's error.
    """
    clean, sigma = task.clean.tokens, task.levels.per_token()
    noised = task.clean._replace(tokens=interpolate(clean, task.noise, sigma))
    if facts_weight and task.facts is not None:
        prediction, fact_logits = dit(noised, task.levels, task.text, facts=True)
    else:
        prediction, fact_logits = dit(noised, task.levels, task.text), None
    prediction = prediction.to(torch.promote_types(prediction.dtype, torch.float32))
    model = getattr(dit, "module", dit)  # unwraps DistributedDataParallel
    if model.config["prediction"] == "clean":  # type: ignore[index]
        error = (prediction - clean) / sigma.clamp(min=SIGMA_MIN)
    else:
        error = prediction - (task.noise - clean)
    error = error.square().mean(dim=-1)
    if fact_logits is not None and task.facts is not None:
        entropy = nn.functional.binary_cross_entropy_with_logits(fact_logits.float(), task.facts, reduction="none")
        error = error + facts_weight * entropy.sum(dim=-1)
    return (error * task.weight).sum() / task.total_weight


def drop_captions(captions: Sequence[str], share: float, generator: Generator) -> list[str]:
    """Replace a random share of the captions by "": classifier-free guidance needs the unconditional velocity too."""
    values = torch.rand(len(captions), generator=generator)
    return ["" if value < share else caption for value, caption in zip(values, captions, strict=True)]
