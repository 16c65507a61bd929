"""Decide which clips share a pack, within a token budget.

lengths (tokens a clip), budget  ->  packs, each a list of clip indices
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, chain, count, islice
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")


class Dealt(NamedTuple):
    """Packs that a run has consumed: dealt to how many ranks, reordered over how many steps, and how many."""

    ranks: int
    steps: int
    num: int


def plan_packs(
    lengths: Sequence[int], *, budget: int, order: Sequence[int] | None = None, window: int = 64
) -> list[list[int]]:
    """Group clips into packs of at most budget tokens, each in exactly one; a pure function of its arguments.

    The packs are as few as the budget allows and share the tokens evenly, so that every step, and every process in it,
    has the same work and no step is left with a few clips. A pack opens with the clips that have waited longest, so
    none starves; the rest of it is the fullest subset of the next window clips. Inside a pack, clips of equal length
    are neighbours, so that attention runs over few groups. Raises a ValueError for a clip longer than the budget.
    """
    if (longest := max(lengths, default=0)) > budget:
        raise ValueError(f"the budget of a pack must hold the longest clip of {longest} tokens, got {budget}")
    queue = deque(order if order is not None else range(len(lengths)))  # A clip may be in it several times.
    tokens_left, packs = sum(lengths[clip] for clip in queue), list[list[int]]()
    spare = 2 * max((lengths[clip] for clip in queue), default=0)  # left to the subset sum: enough for an exact fit
    while queue:
        packed = [queue.popleft()]
        room = -(-tokens_left // -(-tokens_left // budget)) - lengths[packed[0]]  # tokens_left / packs left
        while queue and lengths[queue[0]] + spare <= room:
            packed.append(queue.popleft())
            room -= lengths[packed[-1]]
        candidates = [queue.popleft() for _ in range(min(window, len(queue)))]
        chosen = fullest_subset([lengths[clip] for clip in candidates], room)
        packed += [candidates[place] for place in chosen]
        queue.extendleft(candidates[place] for place in reversed(range(len(candidates))) if place not in chosen)
        tokens_left -= sum(lengths[clip] for clip in packed)
        packs.append(sorted(packed, key=lambda clip: -lengths[clip]))
    return packs


def group_by_budget(items: Iterable[Item], size: Callable[[Item], int], budget: int) -> Iterator[list[Item]]:
    """Yield lists of neighbouring items, in their order: as many as fit a budget of tokens, and at least one each."""
    group, room = list[Item](), budget
    for item in items:
        tokens = size(item)
        if group and tokens > room:
            yield group
            group, room = [], budget
        group.append(item)
        room -= tokens
    if group:
        yield group


def balance_ranks(packs: Iterable[Item], work: Callable[[Item], float], ranks: int, *, steps: int) -> Iterator[Item]:
    """Reorder packs so that those of one training step, one for each rank, are about the same work.

    Full packs have equally many tokens, but attention grows with the square of a clip's length, and a step waits for
    its slowest rank. So the packs of `steps` steps are sorted by work and cut into steps, which are then shuffled.
    """
    stream = iter(packs)
    for number in count() if ranks > 1 else ():
        window = sorted(islice(stream, ranks * steps), key=work)
        if not window:
            break
        groups = [window[i : i + ranks] for i in range(0, len(window), ranks)]
        incomplete = [groups.pop()] if len(groups[-1]) < ranks else []  # only at the end of the stream
        random.Random(number).shuffle(groups)
        yield from chain.from_iterable(groups + incomplete)
    yield from stream


def deal_packs(
    packs: Iterable[Item], work: Callable[[Item], float], ranks: int, steps: int, *, dealt: Sequence[Dealt] = ()
) -> Iterator[Item]:
    """Reorder packs by balance_ranks for a run of which packs were dealt to other numbers of ranks before.

    Every pack is dealt once: what was reordered and not reached by the ranks before is the first for those after.
    """
    stream = iter(packs)
    for ranks_before, steps_before, num in dealt:
        if ranks_before == 1:  # in their own order
            deque(islice(stream, num), maxlen=0)
            continue
        balanced = balance_ranks(stream, work, ranks_before, steps=steps_before)
        deque(islice(balanced, num), maxlen=0)
        stream = chain(list(islice(balanced, -num % (ranks_before * steps_before))), stream)
    return balance_ranks(stream, work, ranks, steps=steps)


def fullest_subset(lengths: Sequence[int], room: int) -> set[int]:
    """Return the places of the lengths with the largest sum within room; of equal sums, one with long clips.

    Bit s of an integer is 1 if the clips so far can sum to s: a subset sum by shifts of whole numbers.
    """
    places = sorted(range(len(lengths)), key=lambda place: lengths[place])
    mask = (1 << max(0, room) + 1) - 1
    reachable = list(accumulate(places, lambda sums, place: (sums | sums << lengths[place]) & mask, initial=1))
    chosen, total = set[int](), reachable.pop().bit_length() - 1
    for place, sums in zip(
        reversed(places), reversed(reachable), strict=True
    ):  # Long ones first: short ones fill gaps.
        if lengths[place] <= total and sums >> total - lengths[place] & 1:
            chosen.add(place)
            total -= lengths[place]
    return chosen
