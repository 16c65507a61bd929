"""The steps of the DiT's training before they meet the network: clips found, cut into tokens, and how noisy each is.

    Ask (which clips)  ->  Reader.fetch  ->  Fetched (clips not all encoded yet)  or  Step, all on the host

Ahead of a GPU a process a core does this, so that the training process only has to move the tokens and make the noise.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Generator, Tensor

from videogen.config.train import DitConfig
from videogen.data.folder import VideoFolder
from videogen.models.vae import VideoVAE
from videogen.packing.noise import step_generator
from videogen.packing.packs import Grid, pack
from videogen.packing.patch_schedule import Patch, patch_name
from videogen.toybox.dataset import DrawnClips
from videogen.toybox.token_labels import FACTS, Truth, say
from videogen.training.caches import Found, Kept, LatentCache
from videogen.training.flow_matching import draw_levels, drop_captions


class Ask(NamedTuple):
    """The clips of a step, before they are read; its number says what is drawn for it."""

    indices: list[int]
    epoch: int
    patch: Patch
    number: int = 0
    facts: bool = False


class Clips(NamedTuple):
    """Clips as they are kept: latents (c, t, h, w) in half precision, captions, what is where (k, t, h, w) if asked."""

    latents: list[Tensor]
    captions: list[str]
    facts: list[Tensor]


class Step(NamedTuple):
    """A pack of clean tokens and how noisy each will be; the noise itself is drawn from the seed where it is used."""

    tokens: np.ndarray  # (n, c·pt·ph·pw) in half precision, as latents are kept
    grids: tuple[Grid, ...]
    patch: Patch
    captions: list[str]
    sigmas: np.ndarray  # (u,) float32
    levels: np.ndarray  # (n,) int64: which of them a token has
    facts: np.ndarray | None  # (n, k) float16 in 0 ... 1
    seed: int


class Fetched(NamedTuple):
    """What was found of a step's clips, each with its caption, or why one cannot be read."""

    ask: Ask
    clips: list[tuple[Found, str] | str]


def clips_of(read: Sequence[tuple[Kept, str]], *, facts: bool) -> Clips:
    """Clips from what is kept of each, and its caption."""
    latents, captions = [torch.from_numpy(kept["latent"]) for kept, _ in read], [caption for _, caption in read]
    truths = [Truth(*(kept[name] for name in Truth._fields)) for kept, _ in read] if facts else []
    return Clips(latents, captions, [torch.from_numpy(say(one)) for one in truths])


def divides(patch: Patch, kept: Kept) -> bool:
    """Whether patches cut a clip without rest; its file may have ended before its header said."""
    return not any(side % cut for side, cut in zip(kept["latent"].shape[1:], patch, strict=True))


@dataclass
class Drawing:
    """All that is drawn for a step but its noise: which captions it goes without, and its noise levels."""

    dit: DitConfig
    base: Patch
    seed: int

    def base_tokens(self, patch: Patch) -> float:
        """How many tokens of a patch size the noise levels are not shifted for."""
        in_proportion = self.dit.base_tokens * math.prod(self.base) / math.prod(patch)
        return self.dit.patch_tokens.get(patch_name(patch), in_proportion)

    def step(self, clips: Clips, ask: Ask) -> Step:
        """A step of training, some captions dropped."""
        generator = step_generator(self.seed, ask.number)
        dropped = clips._replace(captions=drop_captions(clips.captions, self.dit.caption_dropout, generator))
        return self.draw(dropped, ask.patch, generator)

    def draw(self, clips: Clips, patch: Patch, generator: Generator) -> Step:
        """The clips' tokens and what a generator draws for them."""
        clean = pack(clips.latents, patch)
        levels = draw_levels(
            clean,
            self.dit.known,
            base_tokens=self.base_tokens(patch),
            uniform=self.dit.uniform_sigmas,
            generator=generator,
            between=self.dit.patch_levels.get(patch_name(patch), (0.0, 1.0)),
        )
        told = None
        if clips.facts:
            cells = rearrange(pack(clips.facts, patch).tokens, "n (k cells) -> n k cells", k=len(FACTS))
            told = cells.mean(-1).half().numpy()
        seed = int(torch.randint(2**62, (), generator=generator))
        sigmas, index = (part.numpy() for part in levels)
        return Step(clean.tokens.half().numpy(), clean.grids, patch, clips.captions, sigmas, index, told, seed)


@dataclass
class Reader:
    """What reading takes: light enough to go to another process."""

    folder: VideoFolder | DrawnClips
    cache: LatentCache
    drawing: Drawing
    encoder: VideoVAE | None = None  # where it goes with the reader; else whoever asks encodes

    def fetch(self, ask: Ask) -> Fetched | Step:
        """A step, where all of its clips are encoded and kept; else what there is of them."""
        clips = [self.find(index, ask.epoch) for index in ask.indices]
        done = [(one[0].kept, one[1]) for one in clips if not isinstance(one, str) and one[0].whole]
        whole = len(done) == len(clips) and all(divides(ask.patch, kept) for kept, _ in done)
        return self.drawing.step(clips_of(done, facts=ask.facts), ask) if whole else Fetched(ask, clips)

    def find(self, index: int, epoch: int) -> tuple[Found, str] | str:
        """A clip and its caption, or why it cannot be read."""
        try:
            found, caption = self.cache.find(index, epoch), self.folder.caption(index)
        except (ValueError, OSError) as error:
            return str(error)
        if not found.whole and (found.video is None or self.encoder is not None):
            with contextlib.suppress(OSError):  # a full disk is no fault of the clip: whoever asks meets it and says so
                found = Found(self.cache.keep(index, epoch, found, self.encode))
        return found, caption

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """The latent (c, t, h, w) of a clip (3, t, h, w)."""
        assert self.encoder is not None, "only what goes with the reader encodes here"
        return self.encoder.encode(video[None])[0]
