"""Skip blocks of the network where what they add to a clip changes little from step to step: an approximation.

    tokens (n, d) before the blocks, the blocks as a function  ->  tokens (n, d) behind them, some clips not computed

There are two rules, both off by default. First-block cache (ParaAttention's FBCache, in the line of TeaCache, Liu et
al. 2024) runs the first block and looks how much its own residual has changed. MagCache (Ma et al. 2025) bounds the
error by how the residual's norm falls from step to step: the paper calibrates that beforehand, here the run itself has
shown it. Each clip of a pack, and each of its two guidance branches, decides alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from videogen.config.sample import SampleConfig
from videogen.packing.packs import Lengths

MAX_SKIPPED = 3  # calls in a row, of MagCache
RETENTION_RATIO = 0.2  # Share of the steps, at the noisy end, in which MagCache skips nothing: they decide the layout.


class Blocks(Protocol):
    """The network's blocks as a function that runs some of them, in order, on some clips of a pack."""

    def __call__(self, x: Tensor, which: slice, clips: Sequence[int]) -> Tensor:
        """Run the blocks `which` on the tokens x (n, d) of the given clips."""
        ...


RunBlocks = Callable[[Tensor, Lengths, Blocks], Tensor]


@dataclass
class Residual:
    """The residual (n, d) that the blocks added to a clip when they last ran, and MagCache's estimate of its error."""

    first: Tensor | None  # what the first block added; only for the first-block rule
    rest: Tensor  # what the other blocks added, or all of them for MagCache
    norm: float = 0.0
    norm_ratio: float | None = None  # of this norm to the one before, per call
    error: float = 0.0
    num_skipped: int = 0


class BlockCache:
    """The last residual of every clip of a run, and the number of evaluations that were computed."""

    def __init__(self, config: SampleConfig) -> None:
        self.config = config
        self.residuals: dict[object, Residual] = {}
        self.num_requested = self.num_computed = 0.0  # evaluations of the network on a clip

    @property
    def computed_share(self) -> float:
        """The share of the requested evaluations that was computed."""
        return self.num_computed / self.num_requested if self.num_requested else 1.0

    def run_blocks_at(self, keys: Sequence[object], sigma: float, num_blocks: int) -> RunBlocks:
        """Return a function that runs or skips the blocks at a noise level; a key identifies each clip of the pack."""
        if self.config.first_block_cache:
            return partial(self._run_by_first_block, keys, num_blocks)
        return partial(self._run_by_norm, keys, sigma)

    def _run_by_first_block(
        self, keys: Sequence[object], num_blocks: int, x: Tensor, lengths: Lengths, blocks: Blocks
    ) -> Tensor:
        """Run the first block on every clip, and the others where the first one's residual has changed."""
        self.num_requested += len(keys)
        after = blocks(x, slice(0, 1), range(len(keys)))
        firsts = (after - x).split(lengths)
        stale = [i for i, (key, first) in enumerate(zip(keys, firsts, strict=True)) if not self._is_close(key, first)]
        self.num_computed += (len(keys) + len(stale) * (num_blocks - 1)) / num_blocks
        tokens, added = self._run_stale(keys, stale, after, lengths, blocks, slice(1, None))
        self.residuals |= {keys[i]: Residual(firsts[i], rest) for i, rest in added.items()}
        return tokens

    def _is_close(self, key: object, first: Tensor) -> bool:
        """True if the first block's residual has changed by less than the threshold, relative to its last size."""
        last = self.residuals.get(key)
        if last is None or last.first is None or last.first.shape != first.shape:
            return False
        return float((first - last.first).abs().mean() / last.first.abs().mean()) < self.config.first_block_cache

    def _run_by_norm(self, keys: Sequence[object], sigma: float, x: Tensor, lengths: Lengths, blocks: Blocks) -> Tensor:
        """Run all blocks on the clips whose error would be too large or cannot be known yet (MagCache)."""
        self.num_requested += len(keys)
        clips, shift = x.split(lengths), self.config.shift
        is_early = 1 - sigma / (shift - (shift - 1) * sigma) < RETENTION_RATIO
        stale = [i for i, key in enumerate(keys) if is_early or not self._try_skip(key, clips[i])]
        self.num_computed += len(stale)
        tokens, added = self._run_stale(keys, stale, x, lengths, blocks, slice(None))
        self.residuals |= {keys[i]: self._with_norm_ratio(keys[i], rest) for i, rest in added.items()}
        return tokens

    def _try_skip(self, key: object, x: Tensor) -> bool:
        """True if one more skip keeps the clip's error below the bound; the skip is then counted."""
        last = self.residuals.get(key)
        if last is None or last.norm_ratio is None or last.rest.shape != x.shape or last.num_skipped >= MAX_SKIPPED:
            return False
        error = last.error + abs(1 - last.norm_ratio ** (last.num_skipped + 1))
        if error >= self.config.mag_cache:
            return False
        last.error, last.num_skipped = error, last.num_skipped + 1
        return True

    def _with_norm_ratio(self, key: object, rest: Tensor) -> Residual:
        """Measure a new residual's norm, and its ratio per call to the norm of the last one."""
        last, norm = self.residuals.get(key), float(rest.norm())
        if last is not None and last.rest.shape == rest.shape and last.norm > 0:
            return Residual(None, rest, norm, (norm / last.norm) ** (1 / (last.num_skipped + 1)))
        return Residual(None, rest, norm)

    def _run_stale(
        self, keys: Sequence[object], stale: Sequence[int], x: Tensor, lengths: Lengths, blocks: Blocks, which: slice
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Run some blocks on the stale clips, and add the last residuals to the others.

        Return the tokens of all clips, and what the blocks added to each stale clip.
        """
        clips, outputs = x.split(lengths), dict[int, Tensor]()
        if stale:
            tokens = x if len(stale) == len(lengths) else torch.cat([clips[i] for i in stale])
            parts = blocks(tokens, which, stale).split([lengths[i] for i in stale])
            outputs = dict(zip(stale, parts, strict=True))
        merged = [outputs[i] if i in outputs else clip + self.residuals[keys[i]].rest for i, clip in enumerate(clips)]
        return torch.cat(merged), {i: output - clips[i] for i, output in outputs.items()}


def make_block_cache(config: SampleConfig) -> BlockCache | None:
    """Make the cache that the settings ask for, or None if they ask for none."""
    return BlockCache(config) if config.reuses_blocks else None
