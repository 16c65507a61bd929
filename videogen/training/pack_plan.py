"""Plan an epoch: which clips are used, and which share a pack.

clips, recipe  ->  packs of clip indices within the token budget
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

from videogen.config.sizes import SPACE_STRIDE, TIME_STRIDE, parse_patch
from videogen.config.train import DataConfig, DitConfig, TrainConfig
from videogen.data.folder import Entry, VideoFolder, epoch_order
from videogen.packing.bin_packing import plan_packs
from videogen.packing.patch_schedule import Patch, patch_name
from videogen.toybox.dataset import DrawnClips, DrawnEntry
from videogen.toybox.token_labels import FACTS

logger = logging.getLogger(__name__)


def open_clips(config: DataConfig, patch: Patch, seed: int) -> VideoFolder | DrawnClips:
    """The clips that a recipe names: a folder's, or drawn ones."""
    return DrawnClips(config, patch, seed=seed) if config.toybox else VideoFolder(config, patch, seed=seed)


def num_tokens(entry: Entry | DrawnEntry, patch: Patch) -> int:
    """Tokens of a clip in patches of a size; 0 where its latent is no multiple of them."""
    latent = (1 + (entry.frames - 1) // TIME_STRIDE, entry.height // SPACE_STRIDE, entry.width // SPACE_STRIDE)
    if any(side % cut for side, cut in zip(latent, patch, strict=True)):
        return 0
    return math.prod(latent) // math.prod(patch)


def packed_lengths(entries: Sequence[Entry | DrawnEntry], patch: Patch, base: Patch) -> list[int]:
    """The tokens of every clip in patches of a size; 0 for those that are not trained in it."""
    lengths = [num_tokens(entry, patch) for entry in entries]
    if math.prod(patch) > math.prod(base):  # an image is a handful of coarse tokens, and cheap enough in fine ones
        lengths = [0 if entry.frames == 1 else n for n, entry in zip(lengths, entries, strict=True)]
    return lengths


def check_trained(
    lengths: Mapping[Patch, Sequence[int]], train: Sequence[int], base: Patch, config: TrainConfig
) -> None:
    """A ValueError where a patch size that has a share of the steps cuts a clip too long for a pack, or none at all."""
    shares = {patch: share for patch in lengths if (share := share_of(patch, base, config.dit))}
    longest, patch = max((max(lengths[patch], default=0), patch) for patch in shares)
    if longest > (budget := config.data.token_budget):
        most = budget * math.prod(patch) // math.prod(base)
        smaller = "" if config.data.toybox else f", or clips scaled down to fit with --data.max-tokens {most}"
        raise ValueError(
            f"data.token_budget must hold the longest clip, of {longest} tokens in patches of {patch_name(patch)}, and "
            f"is {budget}; give --data.token-budget {longest} or more{smaller}"
        )
    for patch, share in shares.items():
        if not any(lengths[patch][index] for index in train):
            raise ValueError(
                f"patches of {patch_name(patch)} have {share:.0%} of the steps, and no clip here is trained in them: "
                f"they must divide a clip's cells ({TIME_STRIDE} frames, {SPACE_STRIDE} pixels), and images are "
                "trained in no size coarser than dit.patch_size; give them none in dit.patches, or take another size"
            )


def share_of(patch: Patch, base: Patch, dit: DitConfig) -> float:
    """Which share of the steps is in patches of a size; what dit.patches leaves is the base patch's."""
    left = 1 - sum(dit.patches.values())
    return dit.patches.get(patch_name(patch), 0.0) + (left if patch == base and left > 1e-6 else 0.0)


def tell_untrained(lengths: Mapping[Patch, Sequence[int]], train: Sequence[int]) -> None:
    """Say how many clips are trained in no patch size at all, if there are any."""
    left = sum(not any(of_patch[index] for of_patch in lengths.values()) for index in train)
    if left:
        names = ", ".join(map(patch_name, lengths))
        logger.warning("%d of %d clips are not trained: no patch of %s divides their cells", left, len(train), names)


def epoch_packs(
    lengths: Sequence[int], train: Sequence[int], data: DataConfig, seed: int, epoch: int
) -> list[list[int]]:
    """The packs of one epoch: every clip to train on that has tokens, as often as data.repeats says."""
    usable = [index for index in train if lengths[index]]
    order = epoch_order(usable * data.repeats, seed, epoch)
    return plan_packs(lengths, budget=data.token_budget, order=order)


def dit_options(dit: DitConfig, *, channels: object, text_dim: object) -> dict[str, object]:
    """What a new VideoDiT is made of."""
    return {
        "patch_size": dit.patch_size,
        "num_attention_heads": dit.num_attention_heads,
        "attention_head_dim": dit.attention_head_dim,
        "in_channels": channels,
        "out_channels": channels,
        "text_dim": text_dim,
        "ffn_dim": dit.ffn_dim,
        "num_layers": dit.num_layers,
        "prediction": dit.prediction,
        "extra_patch_sizes": list(map(parse_patch, dit.patches)),
        "num_facts": num_facts(dit),
        "nearby": dit.nearby,
    }


def num_facts(dit: DitConfig) -> int:
    """How many facts a recipe asks its network for."""
    return len(FACTS) if dit.facts else 0
