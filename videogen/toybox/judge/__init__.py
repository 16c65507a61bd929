"""Judge clips of the toybox world: what they show, and whether that is what their caption says.

frames (t, h, w, 3) uint8 ─ read ──> Found: background, camera, things with their tracks
                 caption ─ parse ─> Clauses ─┴─ judge ─> {"class": True, ..., "all": True}

Nothing but the frames is looked at. The world's own renderer is the measure: a thing is what would look most like it.
"""

from videogen.intervals import wilson
from videogen.toybox.judge.caption_parser import Clauses, Said, parse
from videogen.toybox.judge.observations import Event, Found, FoundThing
from videogen.toybox.judge.read_clip import read
from videogen.toybox.judge.verdict import CLAUSES, judge, score

__all__ = ["CLAUSES", "Clauses", "Event", "Found", "FoundThing", "Said", "judge", "parse", "read", "score", "wilson"]
