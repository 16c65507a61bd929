"""Build the DiT's training batches on the host: read cached clips, pack their tokens, sample their noise levels.

    BatchRequest (which clips)  ->  BatchReader.read_batch  ->  TrainingBatch, or PartialBatch if clips lack a latent

Ahead of a GPU one worker process per core does this, so the training process only moves tokens and samples the noise.
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
from videogen.toybox.dataset import ToyboxClips
from videogen.toybox.token_labels import FACTS, GroundTruth, label_maps
from videogen.training.caches import CachedArrays, CacheEntry, LatentCache
from videogen.training.flow_matching import drop_captions, sample_levels


class BatchRequest(NamedTuple):
    """The clips of a batch, before they are read."""

    indices: list[int]
    epoch: int
    patch: Patch
    number: int = 0  # seeds every random draw of the batch
    facts: bool = False  # True if the batch needs the labels of its tokens


class CachedClips(NamedTuple):
    """Clips as the cache stores them."""

    latents: list[Tensor]  # (c, t, h, w) in half precision
    captions: list[str]
    facts: list[Tensor]  # (k, t, h, w), the labels of each latent cell; empty if not requested


class TrainingBatch(NamedTuple):
    """A pack of clean tokens with noise levels; the noise itself is sampled from the seed on the training device."""

    tokens: np.ndarray  # (n, c·pt·ph·pw) in half precision, as latents are cached
    grids: tuple[Grid, ...]
    patch: Patch
    captions: list[str]
    sigmas: np.ndarray  # (u,) float32, the distinct noise levels
    level_index: np.ndarray  # (n,) int64, each token's index into sigmas
    facts: np.ndarray | None  # (n, k) float16 in 0 ... 1, the labels of each token
    seed: int
    clips: Sequence[int] = ()  # which they are


class PartialBatch(NamedTuple):
    """A batch whose clips are not all encoded: for each clip its cache entry and caption, or why it is unreadable."""

    request: BatchRequest
    clips: list[tuple[CacheEntry, str] | str]


def collect_clips(clips: Sequence[tuple[CachedArrays, str]], *, facts: bool) -> CachedClips:
    """Convert cached arrays and captions to tensors, with the labels of every latent cell if facts is True."""
    truths = [GroundTruth(*(arrays[name] for name in GroundTruth._fields)) for arrays, _ in clips] if facts else []
    return CachedClips(
        [torch.from_numpy(arrays["latent"]) for arrays, _ in clips],
        [caption for _, caption in clips],
        [torch.from_numpy(label_maps(truth)) for truth in truths],
    )


def patch_divides(patch: Patch, arrays: CachedArrays) -> bool:
    """True if the patch divides the latent, which is shorter than planned if its file ended before its header says."""
    return not any(side % cut for side, cut in zip(arrays["latent"].shape[1:], patch, strict=True))


@dataclass
class BatchBuilder:
    """Builds a batch from its clips: drops captions, packs tokens and samples noise levels."""

    dit: DitConfig
    base_patch: Patch
    seed: int

    def base_tokens(self, patch: Patch) -> float:
        """Return the clip length, in tokens of this patch, up to which noise levels are not shifted."""
        in_proportion = self.dit.base_tokens * math.prod(self.base_patch) / math.prod(patch)
        return self.dit.patch_tokens.get(patch_name(patch), in_proportion)

    def build_training_batch(self, clips: CachedClips, request: BatchRequest) -> TrainingBatch:
        """Build the batch of a training step, with a share of the captions dropped."""
        generator = step_generator(self.seed, request.number)
        captions = drop_captions(clips.captions, self.dit.caption_dropout, generator)
        batch = self.build_batch(clips._replace(captions=captions), request.patch, generator)
        return batch._replace(clips=request.indices)

    def build_batch(self, clips: CachedClips, patch: Patch, generator: Generator) -> TrainingBatch:
        """Pack the clips; sample their noise levels and the seed of their noise."""
        clean = pack(clips.latents, patch)
        levels = sample_levels(
            clean,
            self.dit.known,
            base_tokens=self.base_tokens(patch),
            uniform=self.dit.uniform_sigmas,
            generator=generator,
            sigma_range=self.dit.patch_levels.get(patch_name(patch), (0.0, 1.0)),
        )
        facts = None
        if clips.facts:
            cells = rearrange(pack(clips.facts, patch).tokens, "n (k cells) -> n k cells", k=len(FACTS))
            facts = cells.mean(-1).half().numpy()
        seed = int(torch.randint(2**62, (), generator=generator))
        sigmas, level_index = levels.values.numpy(), levels.index.numpy()
        tokens = clean.tokens.half().numpy()
        return TrainingBatch(tokens, clean.grids, patch, clips.captions, sigmas, level_index, facts, seed)


@dataclass
class BatchReader:
    """Reads batches from the cache and the clips; light enough to be pickled for a worker process."""

    folder: VideoFolder | ToyboxClips
    cache: LatentCache
    builder: BatchBuilder
    encoder: VideoVAE | None = None  # set if it is light enough for a worker; otherwise the training process encodes

    def read_batch(self, request: BatchRequest) -> PartialBatch | TrainingBatch:
        """Read the clips of a batch; build the batch if all of them are encoded."""
        clips = [self.load_clip(index, request.epoch) for index in request.indices]
        encoded = [(clip[0].arrays, clip[1]) for clip in clips if not isinstance(clip, str) and clip[0].is_complete]
        if len(encoded) < len(clips) or not all(patch_divides(request.patch, arrays) for arrays, _ in encoded):
            return PartialBatch(request, clips)
        return self.builder.build_training_batch(collect_clips(encoded, facts=request.facts), request)

    def load_clip(self, index: int, epoch: int) -> tuple[CacheEntry, str] | str:
        """Load the cache entry and the caption of a clip, or return the reason why it cannot be read."""
        try:
            entry, caption = self.cache.load_entry(index, epoch), self.folder.caption(index, epoch)
        except (ValueError, OSError) as error:
            return str(error)
        if not entry.is_complete and (entry.video is None or self.encoder is not None):
            # A full disk is not the clip's fault: the training process meets the same error when it writes, and stops.
            with contextlib.suppress(OSError):
                entry = CacheEntry(self.cache.complete_entry(index, epoch, entry, self.encode))
        return entry, caption

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Encode a clip (3, t, h, w) to its latent (c, t, h, w)."""
        assert self.encoder is not None, "only a reader with an encoder can encode"
        return self.encoder.encode(video[None])[0]
