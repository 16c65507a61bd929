"""One fixed scene for tests of the toybox: a red circle that moves right on black."""

from __future__ import annotations

from videogen.toybox import Scene, Thing

RED_CIRCLE = Thing(kind="circle", colour="red", size="large", motion="right", radius=13, x=20, y=32, speed=1.5)
SCENE = Scene(width=64, height=64, num_frames=17, fps=8, background="black", things=(RED_CIRCLE,), seed=0)
