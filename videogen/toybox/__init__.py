"""Render a captioned world whose ground truth is exact, so that a model can be trained and judged on a laptop.

seed ─ draw_scene ─> Scene ─┬─ render ──> frames (t, h, w, 3) uint8
                            ├─ caption ─> "a large red circle moves right on a black background"
                            └─ track ───> pose of every thing in every frame
"""

from videogen.toybox.folder import write_folder
from videogen.toybox.world.captions import caption
from videogen.toybox.world.free_captions import free_caption
from videogen.toybox.world.motions import Thing
from videogen.toybox.world.render import masks, render
from videogen.toybox.world.scenes import Scene, draw_scene, track

__all__ = ["Scene", "Thing", "caption", "draw_scene", "free_caption", "masks", "render", "track", "write_folder"]
