"""Collect the words of the captions that a checkpoint is trained on, for the checkpoint to keep.

clips, indices to train on, checkpoint begun from  ->  [Word]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from videogen.data.folder import VideoFolder
from videogen.data.words import Word, add_words, count_words, read_words
from videogen.toybox.dataset import ToyboxClips
from videogen.toybox.words import kind_of

MAX_CLIPS = 5000  # of the toybox, whose scenes take a millisecond each to draw: they hold every word but the rarest


def training_words(clips: VideoFolder | ToyboxClips, indices: Sequence[int], begun_from: Path | None) -> list[Word]:
    """Count the words of the captions to train on, and add those of the checkpoint that training began from."""
    if isinstance(clips, ToyboxClips):
        epochs = range(clips.config.toybox_captions)
        captions = (clips.caption(index, epoch) for index in indices[:MAX_CLIPS] for epoch in epochs)
        words = count_words(captions, kind_of)
    else:
        words = count_words(caption for index in indices for caption in clips.entries[index].captions)
    return add_words(words, read_words(begun_from) if begun_from is not None else [])
