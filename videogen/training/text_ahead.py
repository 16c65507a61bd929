"""Embed the captions of batches to come in one call: a small encoder then takes less than half of its time for each.

TextCache, clips, requests of batches  ->  one step of the iterator for each batch, whose captions are embedded by then
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from typing import Protocol

from videogen.training.batches import BatchRequest
from videogen.training.caches import TextCache

BATCHES_AHEAD = 16


class CaptionedClips(Protocol):
    """Clips whose captions the epochs read in turn."""

    def caption(self, index: int, epoch: int) -> str:
        """Return the caption of a clip in an epoch."""
        ...


def group_end(number: int) -> int:
    """Return the batch that follows the group of a batch: groups grow to sixteen, so that the first steps come soon.

    They depend on the batch's number alone. The last bits of an embedding depend on what it is computed with, and a
    run that was stopped and goes on shall compute the same together.
    """
    if number < BATCHES_AHEAD:
        return 1 << number.bit_length()
    return (number // BATCHES_AHEAD + 1) * BATCHES_AHEAD


def embed_ahead(
    texts: TextCache, clips: CaptionedClips, requests: Iterator[BatchRequest], start: int
) -> Iterator[None]:
    """Yield for each batch from number start on, once the captions of its clips are embedded; without end."""
    end = start
    for number in count(start):
        if number == end:
            end = group_end(number)
            group = islice(requests, end - number)
            texts.read([clips.caption(index, request.epoch) for request in group for index in request.indices])
        yield
