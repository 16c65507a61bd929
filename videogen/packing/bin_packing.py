"""Decide which clips share a pack, within a token budget.

lengths (tokens a clip), budget  ->  packs, each a list of clip indices
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, chain, count, islice

from videogen.packing.packs import Item


def check_budget(lengths: Sequence[int], budget: int) -> None:
    """Refuse a budget that is smaller than the longest clip."""
    if (longest := max(lengths, default=0)) > budget:
        raise ValueError(f"the budget of a pack must hold the longest clip of {longest} tokens, got {budget}")


def plan_packs(
    lengths: Sequence[int], *, budget: int, order: Sequence[int] | None = None, window: int = 64
) -> list[list[int]]:
    """Group clips into packs of at most budget tokens, each in exactly one; a pure function of its arguments.

    The packs are as few as the budget allows and share the tokens evenly, so that every step, and every process in it,
    has the same work and no step has a few clips alone. A pack opens with the clips that have waited longest, so none
    starves; its last part is the fullest choice among the next window clips. Inside a pack clips of equal length stand
    together, so that attention runs over few groups.
    """
    check_budget(lengths, budget)
    line = deque(order if order is not None else range(len(lengths)))  # a clip may stand in it several times
    left, packs = sum(lengths[clip] for clip in line), list[list[int]]()
    spare = 2 * max((lengths[clip] for clip in line), default=0)  # what is left to choose: enough for an exact fit
    while line:
        packed = [line.popleft()]
        room = -(-left // -(-left // budget)) - lengths[packed[0]]
        while line and lengths[line[0]] + spare <= room:
            packed.append(line.popleft())
            room -= lengths[packed[-1]]
        near = [line.popleft() for _ in range(min(window, len(line)))]
        chosen = fullest([lengths[clip] for clip in near], room)
        packed += [near[place] for place in chosen]
        line.extendleft(near[place] for place in reversed(range(len(near))) if place not in chosen)
        left -= sum(lengths[clip] for clip in packed)
        packs.append(sorted(packed, key=lambda clip: -lengths[clip]))
    return packs


def deal(packs: Iterable[Item], work: Callable[[Item], float], ranks: int, *, steps: int) -> Iterator[Item]:
    """The same packs in another order: those of a step, one for each of so many ranks, are about the same work.

    Full packs have as many tokens as each other, but attention grows with the square of a clip's, and a step waits for
    its slowest rank. So many steps' packs are sorted by work and cut into steps, which follow in any order.
    """
    stream = iter(packs)
    for number in count() if ranks > 1 else ():
        window = sorted(islice(stream, ranks * steps), key=work)
        if not window:
            break
        cut = [window[i : i + ranks] for i in range(0, len(window), ranks)]
        last = [cut.pop()] if len(cut[-1]) < ranks else []  # of the end of the stream
        random.Random(number).shuffle(cut)
        yield from chain.from_iterable(cut + last)
    yield from stream


def fullest(lengths: Sequence[int], room: int) -> set[int]:
    """The places of lengths whose sum is the largest within room; of equal sums, one with long clips.

    Bit s of a number says whether the sum s can be reached with the clips so far: a subset sum in whole-number shifts.
    """
    places = sorted(range(len(lengths)), key=lambda place: lengths[place])
    within = (1 << max(0, room) + 1) - 1
    reached = list(accumulate(places, lambda sums, place: (sums | sums << lengths[place]) & within, initial=1))
    chosen, total = set[int](), reached.pop().bit_length() - 1
    for place, sums in zip(reversed(places), reversed(reached), strict=True):  # long ones first: short ones fill gaps
        if lengths[place] <= total and sums >> total - lengths[place] & 1:
            chosen.add(place)
            total -= lengths[place]
    return chosen


def group_by_budget(items: Iterable[Item], size: Callable[[Item], int], budget: int) -> Iterator[list[Item]]:
    """Group neighbouring items, as many together as the budget of tokens holds, and at least one."""
    group, room = list[Item](), budget
    for item in items:
        if group and size(item) > room:
            yield group
            group, room = [], budget
        group.append(item)
        room -= size(item)
    if group:
        yield group
