"""Judge clips of the toybox world: detect what they show and compare it with what their captions state.

frames (t, h, w, 3) uint8 ─ read ──> Found: background, camera, things with their tracks
                 caption ─ parse ─> Clauses ─┴─ judge ─> {"class": True, ..., "all": True}

The judge sees the frames only. It measures by the world's own renderer: a thing is what, rendered, looks most like it.
"""

from videogen.intervals import wilson
from videogen.toybox.judge.caption_parser import Clauses, Said, parse
from videogen.toybox.judge.observations import Event, Found, FoundThing
from videogen.toybox.judge.read_clip import read
from videogen.toybox.judge.verdict import CLAUSES, judge, score

__all__ = ["CLAUSES", "Clauses", "Event", "Found", "FoundThing", "Said", "judge", "parse", "read", "score", "wilson"]
