"""Denoise a clip in windows of a length that the model knows, each of which begins or ends with what is there already.

    what is known of the whole clip, prompts, window length  ->  latents (c, k, h, w), from the first frame to the last

A clip that is extended, and one longer than the model was trained on, is a row of windows. The overlap is known to the
later one as latents, and is never decoded and encoded again, so nothing drifts there. What the network adds from window
to window, contrast above all, is taken back by the statistics of the first one (AdaIN).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from videogen.config.sample import SampleConfig
from videogen.models.dit_network import TextContext
from videogen.packing.noise import step_generator
from videogen.packing.windows import OVERLAP, plan_windows
from videogen.sampling.clip_sampler import ClipRequest, ClipSampler
from videogen.sampling.guidance import prompts_and_negatives
from videogen.sampling.known_tokens import KnownLatent


class Statistics(NamedTuple):
    """Mean and deviation of each channel of a latent, (c, 1, 1, 1)."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, latent: Tensor) -> Statistics:
        """Measure a latent (c, k, h, w)."""
        deviation, mean = torch.std_mean(latent, (1, 2, 3), keepdim=True)
        return cls(mean, deviation.clamp(min=1e-6))

    def impose(self, latent: Tensor, own: Statistics, share: float) -> Tensor:
        """Change a latent so that its own statistics are these, or a share of the way (AdaIN, Eq. 8 of the paper)."""
        return torch.lerp(latent, (latent - own.mean) / own.deviation * self.deviation + self.mean, share)


class LongClip:
    """A clip on its way from what is known of it to all of it."""

    def __init__(
        self, sampler: ClipSampler, known: KnownLatent, config: SampleConfig, seed: int, *, length: int
    ) -> None:
        self.sampler, self.config, self.seed, self.length = sampler, config, seed, length
        self.clean, self.weight = known.clean.clone(), known.weight.clone()
        self.num_windows = self.num_yielded = 0

    def denoise(
        self, prompt: str, end: int | None = None, on_evaluation: Callable[[], object] = lambda: None
    ) -> Iterator[Tensor]:
        """Denoise up to a latent frame, the clip's end by default, yielding all in order as soon as it is whole."""
        yield from self.take_whole(end)
        is_known = (self.weight[:end] == 1).flatten(1).all(1).tolist()
        with torch.no_grad():  # once for all windows
            text = self.sampler.encode_prompts(prompts_and_negatives([prompt], self.config))
        reference: Statistics | None = None
        begin = self.num_yielded if self.num_windows else 0  # A scene before this one may look otherwise.
        for low, high in plan_windows(is_known, self.length):
            part = slice(low, high)
            is_free = (self.weight[part] == 0).flatten(1).all(1)
            if not self.num_windows:  # What is known by then is given.
                reference = self.measure(low - self.length, high + self.length)
            latent = self.denoise_window(prompt, text, part, on_evaluation)
            if low > 0 and not (self.weight[low] == 1).all():  # made as a frame that stands alone, which it is not
                part, latent, is_free = slice(low + 1, high), latent[:, 1:], is_free[1:]
            self.clean[:, part], self.weight[part] = latent, 1
            if reference is not None and continues(is_free):
                free = torch.arange(part.start, high)[is_free]
                self.clean[:, free] = self.with_statistics(free, reference)
            reference = reference or self.measure(max(part.start, begin), high)
            yield from self.take_whole(end)
        yield from self.take_whole(end)

    def denoise_window(
        self, prompt: str, text: TextContext, part: slice, on_evaluation: Callable[[], object]
    ) -> Tensor:
        """Denoise some latent frames; the noise of a window is the clip's own, or follows from its seed."""
        known = KnownLatent(self.clean[:, part], self.weight[part])
        request = ClipRequest(prompt, window_seed(self.seed, self.num_windows), known)
        frames = 1 + (part.stop - part.start - 1) * self.sampler.vae.time_stride
        self.num_windows += 1
        config = replace(self.config, frames=frames, seconds=None)
        return self.sampler.sample([request], config, on_evaluation, text=text)[0].cpu()

    def measure(self, low: int, high: int) -> Statistics | None:
        """Measure the latent frames of a range that are whole; None if there are too few to show motion."""
        low = max(low, 1)  # the clip's first latent frame does not move
        is_whole = (self.weight[low:high] == 1).flatten(1).all(1)
        return Statistics.of(self.clean[:, low:high][:, is_whole]) if is_whole.sum() >= OVERLAP else None

    def with_statistics(self, frames: Tensor, reference: Statistics) -> Tensor:
        """Return some latent frames of the clip with the statistics of others, as far as the settings say."""
        moving = frames[frames > 0]  # the clip's first latent frame does not move
        own = Statistics.of(self.clean[:, moving]) if len(moving) else reference
        return reference.impose(self.clean[:, frames], own, self.config.adain)

    def take_whole(self, end: int | None) -> Iterator[Tensor]:
        """Yield the latent frames that are whole and were not yielded yet."""
        is_whole = (self.weight[:end] == 1).flatten(1).all(1).tolist()
        until = is_whole.index(False) if False in is_whole else len(is_whole)
        if until > self.num_yielded:
            yield self.clean[:, self.num_yielded : until]
            self.num_yielded = until


def continues(is_free: Tensor) -> bool:
    """True if a window goes on from known latent frames to free ones, or back, and leads to nothing else known."""
    return int(is_free.diff().count_nonzero()) == 1


def window_seed(seed: int, number: int) -> int:
    """Return the seed of a clip's window: the first has the clip's own."""
    return int(torch.randint(2**62, (), generator=step_generator(seed, number))) if number else seed
