"""What two things do together: pass each other, collide, or one passes behind the other.

two Things of known kind and radius, a frame's size  ->  the same Things with motions and places
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from videogen.toybox.world.motions import MAX_SPEED, Thing

Pair = tuple[Thing, Thing]
Stage = Callable[[np.random.Generator, Pair, int, int, int], Pair]
"""(rng, things, width, height, steps): which of the two comes from the left is drawn; the second hides the first."""


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A place drawn evenly; the middle where there is no room."""
    return float(rng.uniform(low, high)) if low < high else (low + high) / 2


def heights(rng: np.random.Generator, pair: Pair, height: int, apart: float) -> list[float]:
    """Two heights that far apart, either on top, both inside the frame."""
    sign = float(rng.choice((-1, 1)))
    middle = [-sign * apart / 2, sign * apart / 2]
    low = max(thing.radius + 1 - y for thing, y in zip(pair, middle, strict=True))
    high = min(height - thing.radius - 1 - y for thing, y in zip(pair, middle, strict=True))
    base = between(rng, low, high)
    return [base + y for y in middle]


def cross(rng: np.random.Generator, pair: Pair, width: int, height: int, steps: int) -> Pair:
    """Both move sideways, past each other, at the same pace."""
    touch = pair[0].radius + pair[1].radius
    gap = [touch * rng.uniform(1.05, 1.3) for _ in range(2)]
    way = min(sum(gap) / 2, MAX_SPEED * steps)
    y = heights(rng, pair, height, touch * rng.uniform(0.55, 1.0))
    first = int(rng.integers(2))  # which one starts on the left
    left, right = pair[first], pair[1 - first]
    low = max(left.radius + 1, right.radius + 1 - gap[0] + way)
    high = min(width - left.radius - 1 - way, width - right.radius - 1 - gap[0])
    x = between(rng, low, high)
    placed = {
        first: replace(left, motion="right", x=x, y=y[first], speed=way / steps),
        1 - first: replace(right, motion="left", x=x + gap[0], y=y[1 - first], speed=way / steps),
    }
    return placed[0], placed[1]


def collide(rng: np.random.Generator, pair: Pair, width: int, height: int, steps: int) -> Pair:
    """Both move towards each other, touch about half-way through, and go back."""
    touch = 0.85 * (pair[0].radius + pair[1].radius)  # the circles around them overlap where the things touch
    at = steps / 2 + rng.uniform(-1.5, 1.5)
    longest = max(at, steps - at)
    room = (width - touch - pair[0].radius - pair[1].radius - 2) / 2
    speed = min(rng.uniform(0.65, 0.95) * room / longest, 3.0)
    y = heights(rng, pair, height, touch * rng.uniform(0, 0.2))
    first = int(rng.integers(2))
    left, right = pair[first], pair[1 - first]
    low, high = left.radius + 1 + speed * longest, width - right.radius - 1 - touch - speed * longest
    x = between(rng, low, high)
    placed = {
        first: replace(left, motion="collide from the left", x=x, y=y[first], speed=speed, reach=at),
        1 - first: replace(right, motion="collide from the right", x=x + touch, y=y[1 - first], speed=speed, reach=at),
    }
    return placed[0], placed[1]


def behind(rng: np.random.Generator, pair: Pair, width: int, height: int, steps: int) -> Pair:
    """The first moves sideways behind the second, which stays still."""
    mover, front = pair
    touch, room = mover.radius + front.radius, width - 2 * mover.radius - 2
    gap = [min(touch * rng.uniform(1.02, 1.2), room / 2) for _ in range(2)]
    way = min(sum(gap), MAX_SPEED * steps)
    y = heights(rng, pair, height, touch * rng.uniform(0, 0.25))
    x = between(rng, max(gap[0] + mover.radius, front.radius) + 1, width - max(gap[1] + mover.radius, front.radius) - 1)
    right = bool(rng.integers(2))
    moving = replace(
        mover, motion="right" if right else "left", x=x - gap[0] if right else x + gap[1], y=y[0], speed=way / steps
    )
    return moving, replace(front, motion="still", x=x, y=y[1], speed=0.0)


EVENTS: dict[str, Stage] = {"cross": cross, "collide": collide, "behind": behind}
