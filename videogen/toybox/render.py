"""Paint a scene: smooth edges from signed distances, computed only around each thing.

    Scene  ->  render: frames (t, h, w, 3) uint8, masks: what is seen of each thing (t, n, h, w) float32
"""

from collections.abc import Callable
from math import ceil, cos, pi, sin, sqrt

import numpy as np
from einops import rearrange

from videogen.toybox.scenes import BACKGROUNDS, COLOURS, Scene, track

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Signed distance to a shape inside the unit circle, from points (x to the right, y up); below zero is inside."""


def circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Fills the unit circle."""
    return np.hypot(x, y) - 1


def ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A circle with a hole of half its radius."""
    return np.abs(np.hypot(x, y) - 0.76) - 0.24


def box(x: np.ndarray, y: np.ndarray, width: float, height: float) -> np.ndarray:
    """A rectangle, given by half its width and height."""
    return np.maximum(np.abs(x) - width, np.abs(y) - height)


def square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Flat on its side."""
    return box(x, y, sqrt(0.5), sqrt(0.5))


def cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A plus sign."""
    length, width = sqrt(1 - 0.3**2), 0.3
    return np.minimum(box(x, y, length, width), box(x, y, width, length))


def diamond(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Narrower than high, so that no turned square is one."""
    width = 0.65
    return (np.abs(x) / width + np.abs(y) - 1) / sqrt(1 / width**2 + 1)


def triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """With equal sides, pointing up."""
    return np.maximum(sqrt(0.75) * np.abs(x) + 0.5 * y, -y) - 0.5


def star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Five points, one of them up."""
    tenth, inner = pi / 5, 0.45
    # Every point is mirrored into the half of the upper point, where the outline is one straight edge.
    angle = np.abs((np.arctan2(x, y) + tenth) % (2 * tenth) - tenth)
    along, across = 1 - inner * cos(tenth), inner * sin(tenth)
    rho = np.hypot(x, y)
    return ((rho * np.cos(angle) - 1) * across + rho * np.sin(angle) * along) / np.hypot(along, across)


def heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Two half discs on a square on its corner (Quilez, 2D distance functions), about its centre of mass."""
    scale = 0.6567  # height of the centre of mass over the tip, which is also the farthest point from it
    x, y = np.abs(x) * scale, (y + 1) * scale
    lobe = np.hypot(x - 0.25, y - 0.75) - sqrt(2) / 4
    along = np.maximum(x + y, 0) / 2
    side = np.minimum(np.hypot(x, y - 1), np.hypot(x - along, y - along)) * np.sign(x - y)
    return np.where(x + y > 1, lobe, side) / scale


DISTANCES: dict[str, Distance] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "star": star,
    "heart": heart,
    "diamond": diamond,
    "cross": cross,
    "ring": ring,
}


def plain(scene: Scene, colours: np.ndarray) -> np.ndarray:
    """One colour everywhere."""
    return np.broadcast_to(colours[0], (scene.height, scene.width, 3))


def gradient(scene: Scene, colours: np.ndarray) -> np.ndarray:
    """From the first colour at the top to the second at the bottom."""
    share = rearrange(np.linspace(0, 1, scene.height, dtype=np.float32), "h -> h 1 1")
    return np.broadcast_to(colours[0] + share * (colours[1] - colours[0]), (scene.height, scene.width, 3))


def checkerboard(scene: Scene, colours: np.ndarray) -> np.ndarray:
    """Eight fields along the shorter side."""
    field = min(scene.height, scene.width) // 8
    row, column = np.indices((scene.height, scene.width)) // field
    return colours[(row + column) % 2]


def night_sky(scene: Scene, colours: np.ndarray) -> np.ndarray:
    """Stars that stand still; where, and how bright, comes from the scene's seed."""
    sky = plain(scene, colours).copy()
    rng = np.random.default_rng([scene.seed, 2])
    num_stars = scene.height * scene.width // 160
    rows, columns = rng.integers(scene.height, size=num_stars), rng.integers(scene.width, size=num_stars)
    sky[rows, columns] = rng.uniform(90, 230, size=(num_stars, 1))
    return sky


PAINTERS: dict[str, Callable[[Scene, np.ndarray], np.ndarray]] = {
    "black": plain,
    "white": plain,
    "grey": plain,
    "dark blue": plain,
    "gradient": gradient,
    "checkerboard": checkerboard,
    "night sky": night_sky,
}
"""How each background is painted from its colours: (h, w, 3) float32 in 0 ... 255."""


def coverage(scene: Scene) -> np.ndarray:
    """How much of each pixel each thing covers, as if it were alone: (t, n, h, w) in 0 ... 1."""
    pose = track(scene)
    span = 2 * ceil(pose.radius.max() + 1) + 1
    # A border of one span takes what lies outside the frame, so that no window has to be cut.
    padded = np.zeros(
        (scene.num_frames, len(scene.things), scene.height + 2 * span, scene.width + 2 * span), np.float32
    )
    frame = rearrange(np.arange(scene.num_frames), "t -> t 1 1")
    for i, thing in enumerate(scene.things):
        x, y, radius, angle = (rearrange(part[:, i], "t -> t 1 1") for part in pose)
        rows = rearrange(window(pose.y[:, i], span, scene.height), "t h -> t h 1")
        columns = rearrange(window(pose.x[:, i], span, scene.width), "t w -> t 1 w")
        right, down = ((columns + 0.5 - x) / radius).astype(np.float32), ((rows + 0.5 - y) / radius).astype(np.float32)
        cosine, sine = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        distance = DISTANCES[thing.shape](cosine * right + sine * down, sine * right - cosine * down)
        padded[frame, i, rows + span, columns + span] = np.clip(0.5 - radius * distance, 0, 1)
    return padded[:, :, span:-span, span:-span]


def window(centre: np.ndarray, span: int, length: int) -> np.ndarray:
    """The span of whole pixels around each centre, (t,) -> (t, span); one that is out of sight waits at the border."""
    first = np.clip(np.floor(centre).astype(int) - span // 2, -span, length)
    return rearrange(first, "t -> t 1") + np.arange(span)


def masks(scene: Scene) -> np.ndarray:
    """How much of each pixel shows each thing, (t, n, h, w): later things hide earlier ones."""
    visible = coverage(scene)
    free = np.ones_like(visible[:, 0])
    for i in reversed(range(len(scene.things))):
        visible[:, i] *= free
        free -= visible[:, i]
    return visible


def render(scene: Scene) -> np.ndarray:
    """The frames of a scene, (t, h, w, 3) uint8."""
    visible = rearrange(masks(scene), "t n h w -> t h w n")
    behind = PAINTERS[scene.background](scene, np.array(BACKGROUNDS[scene.background], np.float32))
    colours = np.array([COLOURS[thing.colour] for thing in scene.things], np.float32)
    free = 1 - visible.sum(axis=-1, keepdims=True)
    return (free * behind + visible @ colours + 0.5).clip(0, 255).astype(np.uint8)
