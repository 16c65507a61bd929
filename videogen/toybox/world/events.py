"""Stage events between two things: they pass each other, they collide, or one passes behind the other.

two Things of known kind and radius, a frame's size  ->  the same Things with motions and places
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from videogen.toybox.world.motions import MAX_SPEED, Thing

Pair = tuple[Thing, Thing]
EventSampler = Callable[[np.random.Generator, Pair, int, int, int], Pair]
"""(rng, things, width, height, steps) -> things in the same order, of which the second hides the first."""


def sample_between(rng: np.random.Generator, low: float, high: float) -> float:
    """Sample uniformly between low and high, or take their middle if the interval is empty."""
    return float(rng.uniform(low, high)) if low < high else (low + high) / 2


def sample_heights(rng: np.random.Generator, pair: Pair, height: int, distance: float) -> list[float]:
    """Sample two heights at a distance, with either thing on top and both inside the frame."""
    sign = float(rng.choice((-1, 1)))
    offsets = [-sign * distance / 2, sign * distance / 2]
    low = max(thing.radius + 1 - y for thing, y in zip(pair, offsets, strict=True))
    high = min(height - thing.radius - 1 - y for thing, y in zip(pair, offsets, strict=True))
    middle = sample_between(rng, low, high)
    return [middle + y for y in offsets]


def sample_crossing(rng: np.random.Generator, pair: Pair, width: int, height: int, steps: int) -> Pair:
    """Move both things sideways past each other, at the same speed."""
    contact = pair[0].radius + pair[1].radius
    gaps = [contact * rng.uniform(1.05, 1.3) for _ in range(2)]
    path = min(sum(gaps) / 2, MAX_SPEED * steps)
    y = sample_heights(rng, pair, height, contact * rng.uniform(0.55, 1.0))
    first = int(rng.integers(2))  # index of the thing that starts on the left
    left, right = pair[first], pair[1 - first]
    low = max(left.radius + 1, right.radius + 1 - gaps[0] + path)
    high = min(width - left.radius - 1 - path, width - right.radius - 1 - gaps[0])
    x = sample_between(rng, low, high)
    left = replace(left, motion="right", x=x, y=y[first], speed=path / steps)
    right = replace(right, motion="left", x=x + gaps[0], y=y[1 - first], speed=path / steps)
    return (right, left) if first else (left, right)


def sample_collision(rng: np.random.Generator, pair: Pair, width: int, height: int, steps: int) -> Pair:
    """Move both things towards each other until they touch about half-way through, and back."""
    contact = 0.85 * (pair[0].radius + pair[1].radius)  # Where two things touch, their enclosing circles overlap.
    frame = steps / 2 + rng.uniform(-1.5, 1.5)
    longest = max(frame, steps - frame)
    room = (width - contact - pair[0].radius - pair[1].radius - 2) / 2
    speed = min(rng.uniform(0.65, 0.95) * room / longest, 3.0)
    y = sample_heights(rng, pair, height, contact * rng.uniform(0, 0.2))
    first = int(rng.integers(2))  # index of the thing that starts on the left
    left, right = pair[first], pair[1 - first]
    low, high = left.radius + 1 + speed * longest, width - right.radius - 1 - contact - speed * longest
    x = sample_between(rng, low, high)
    left = replace(left, motion="collide from the left", x=x, y=y[first], speed=speed, reach=frame)
    right = replace(right, motion="collide from the right", x=x + contact, y=y[1 - first], speed=speed, reach=frame)
    return (right, left) if first else (left, right)


def sample_occlusion(rng: np.random.Generator, pair: Pair, width: int, height: int, steps: int) -> Pair:
    """Move the first thing sideways behind the second, which stays still."""
    mover, front = pair
    contact, room = mover.radius + front.radius, width - 2 * mover.radius - 2
    gaps = [min(contact * rng.uniform(1.02, 1.2), room / 2) for _ in range(2)]
    speed = min(sum(gaps), MAX_SPEED * steps) / steps
    y = sample_heights(rng, pair, height, contact * rng.uniform(0, 0.25))
    low = max(gaps[0] + mover.radius, front.radius) + 1
    high = width - max(gaps[1] + mover.radius, front.radius) - 1
    x = sample_between(rng, low, high)
    start = {"right": x - gaps[0], "left": x + gaps[1]}
    motion = "right" if rng.integers(2) else "left"
    mover = replace(mover, motion=motion, x=start[motion], y=y[0], speed=speed)
    return mover, replace(front, motion="still", x=x, y=y[1], speed=0.0)


EVENTS: dict[str, EventSampler] = {"cross": sample_crossing, "collide": sample_collision, "behind": sample_occlusion}
