"""Plan an epoch: choose the clips that are trained and pack them.

clips, recipe  ->  packs of clip indices within the token budget
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

from videogen.config.sizes import SPACE_STRIDE, TIME_STRIDE, parse_patch
from videogen.config.train import DataConfig, DitConfig, TrainConfig
from videogen.data.clip_sets import ClipSets
from videogen.data.folder import ClipEntry, VideoFolder, epoch_order
from videogen.data.splits import Split, split_clips
from videogen.packing.bin_packing import plan_packs
from videogen.packing.patch_schedule import Patch, patch_name
from videogen.toybox.dataset import ToyboxClips, ToyboxEntry
from videogen.toybox.token_labels import FACTS
from videogen.training.run_checkpoints import is_of_earlier_version

logger = logging.getLogger(__name__)


def open_clips(config: DataConfig, patch: Patch, seed: int) -> VideoFolder | ToyboxClips:
    """Open the clips of a recipe: the files of a folder or of several, or the toybox."""
    if config.sets:
        return ClipSets(config, patch, seed=seed)
    return ToyboxClips(config, patch, seed=seed) if config.toybox else VideoFolder(config, patch, seed=seed)


def split_folder(folder: VideoFolder | ToyboxClips, config: TrainConfig) -> Split:
    """Split the clips of a recipe's folder as the run in its run folder began with them."""
    run_dir = config.run.dir
    by_order = is_of_earlier_version(run_dir)
    split = split_clips(folder.names(), config.data.val_clips, config.run.seed, run_dir, by_order=by_order)
    if not isinstance(folder, ClipSets):
        return split
    return split._replace(train=[index for index in split.train for _ in range(folder.repeats[index])])


def count_latent_bytes(folder: VideoFolder | ToyboxClips, channels: int) -> int:
    """Count the bytes of the latents that a run caches: half precision, and each window of a long file."""
    return sum(
        2 * channels * num_entry_tokens(entry, (1, 1, 1)) * folder.num_windows(index)
        for index, entry in enumerate(folder.entries)
    )


def check_cache(num_bytes: int, folder: VideoFolder | ToyboxClips, data: DataConfig) -> None:
    """Raise a ValueError if the latents of a folder take more than data.cache_gb."""
    if data.cache_gb is not None and num_bytes > data.cache_gb * 1e9:
        raise ValueError(
            f"the latents of {len(folder.entries):,} clips take about {num_bytes / 1e9:.3g} GB, and data.cache_gb is "
            f"{data.cache_gb:g}; allow more, or lower data.max_tokens, data.windows or the number of clips"
        )


def num_entry_tokens(entry: ClipEntry | ToyboxEntry, patch: Patch) -> int:
    """Count a clip's tokens in patches of one size; 0 if the patch does not divide its latent."""
    latent = (1 + (entry.frames - 1) // TIME_STRIDE, entry.height // SPACE_STRIDE, entry.width // SPACE_STRIDE)
    if any(side % cut for side, cut in zip(latent, patch, strict=True)):
        return 0
    return math.prod(latent) // math.prod(patch)


def packed_lengths(entries: Sequence[ClipEntry | ToyboxEntry], patch: Patch, base: Patch) -> list[int]:
    """Count every clip's tokens in patches of one size; 0 for the clips that are not trained in it."""
    # An image is only a handful of coarse tokens, and cheap enough in fine ones.
    skip_images = math.prod(patch) > math.prod(base)
    return [0 if skip_images and entry.frames == 1 else num_entry_tokens(entry, patch) for entry in entries]


def plan_lengths(
    entries: Sequence[ClipEntry | ToyboxEntry], train: Sequence[int], patches: Sequence[Patch], config: TrainConfig
) -> tuple[dict[Patch, list[int]], dict[Patch, list[int]]]:
    """Count every clip's tokens in each patch size (the base first): in all of them, and in those that are trained.

    A ValueError where a trained size has no clip that fits a pack; clips that no size trains are warned of.
    """
    base = patches[0]
    lengths = {patch: packed_lengths(entries, patch, base) for patch in patches}
    check_patch_sizes(lengths, train, base, config)
    trained = {patch: counts for patch, counts in lengths.items() if step_share(patch, base, config.dit)}
    warn_untrained(trained, train)
    return lengths, trained


def check_patch_sizes(
    lengths: Mapping[Patch, Sequence[int]], train: Sequence[int], base: Patch, config: TrainConfig
) -> None:
    """Raise a ValueError if a patch size with a share of the steps makes a clip too long for a pack, or has no clip."""
    shares = {patch: share for patch in lengths if (share := step_share(patch, base, config.dit))}
    longest, patch = max((max(lengths[patch], default=0), patch) for patch in shares)
    if longest > (budget := config.data.token_budget):
        max_tokens = budget * math.prod(patch) // math.prod(base)
        scale_down = "" if config.data.toybox else f", or scale clips down to fit with --data.max-tokens {max_tokens}"
        raise ValueError(
            f"data.token_budget must hold the longest clip, of {longest} tokens in patches of {patch_name(patch)}, and "
            f"is {budget}; give --data.token-budget {longest} or more{scale_down}"
        )
    for patch, share in shares.items():
        if not any(lengths[patch][index] for index in train):
            raise ValueError(
                f"patches of {patch_name(patch)} have {share:.0%} of the steps, and no clip here is trained in them: "
                f"a patch must divide the clip's latent (one cell is {TIME_STRIDE} frames and {SPACE_STRIDE} pixels), "
                "and images are trained in no patch larger than dit.patch_size; remove this size from dit.patches, or "
                "choose another"
            )


def step_share(patch: Patch, base: Patch, dit: DitConfig) -> float:
    """Return the share of the steps in patches of one size; the base patch also has what dit.patches leaves."""
    left = 1 - sum(dit.patches.values())
    return dit.patches.get(patch_name(patch), 0.0) + (left if patch == base and left > 1e-6 else 0.0)


def warn_untrained(lengths: Mapping[Patch, Sequence[int]], train: Sequence[int]) -> None:
    """Warn of the clips that are trained in no patch size."""
    num_untrained = sum(not any(of_patch[index] for of_patch in lengths.values()) for index in train)
    if num_untrained:
        names = ", ".join(map(patch_name, lengths))
        message = "%d of %d clips are not trained: no patch of %s divides their cells"
        logger.warning(message, num_untrained, len(train), names)


def epoch_packs(
    lengths: Sequence[int], train: Sequence[int], data: DataConfig, seed: int, epoch: int
) -> list[list[int]]:
    """Pack one epoch: every training clip that has tokens, data.repeats times."""
    usable = [index for index in train if lengths[index]]
    order = epoch_order(usable * data.repeats, seed, epoch)
    return plan_packs(lengths, budget=data.token_budget, order=order)


def dit_options(dit: DitConfig, *, channels: object, text_dim: object) -> dict[str, object]:
    """Return the keyword arguments of the recipe's new VideoDiT."""
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
    """Return how many labels per token the recipe trains the network to predict."""
    return len(FACTS) if dit.facts else 0
