"""Collect the words of the captions that a checkpoint is trained on, for the checkpoint to keep.

clips, indices to train on, checkpoint begun from  ->  [Word]
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from videogen.data.folder import VideoFolder
from videogen.data.words import Word, add_words, count_words, read_words
from videogen.toybox.dataset import ToyboxClips
from videogen.toybox.words import kind_of

logger = logging.getLogger(__name__)
MAX_CLIPS = 5000  # of the toybox, whose scenes take a millisecond each to draw: they hold every word but the rarest


def training_words(clips: VideoFolder | ToyboxClips, indices: Sequence[int], begun_from: Path | None) -> list[Word]:
    """Count the words of the captions to train on, and add those of the checkpoint that training began from."""
    captions = captions_of(clips, indices)
    words = count_words(captions, kind_of) if isinstance(clips, ToyboxClips) else count_words(captions)
    return add_words(words, read_words(begun_from) if begun_from is not None else [])


def captions_of(clips: VideoFolder | ToyboxClips, indices: Sequence[int]) -> Iterator[str]:
    """Yield the captions of clips; of the toybox's first MAX_CLIPS."""
    if isinstance(clips, ToyboxClips):
        epochs = range(clips.config.toybox_captions)
        yield from (clips.caption(index, epoch) for index in indices[:MAX_CLIPS] for epoch in epochs)
    else:
        yield from (caption for index in indices for caption in clips.entries[index].captions)


def check_trigger(trigger: str, clips: VideoFolder | ToyboxClips, indices: Sequence[int]) -> None:
    """Refuse trigger words of a LoRA that stand in no caption, and warn where some captions lack them."""
    captions = list(captions_of(clips, indices))
    num = sum(trigger.lower() in caption.lower() for caption in captions)
    if not num:
        raise ValueError(
            f"dit.lora_trigger = {trigger!r} stands in none of {len(captions)} captions, so that it would call "
            "nothing; write it into them, or leave it out"
        )
    if num < len(captions):
        logger.warning("dit.lora_trigger = %r stands in %d of %d captions", trigger, num, len(captions))
