"""Name the kinds of what can be wrong with a file of a folder, and the error of a file that cannot be read.

kind, words  ->  Finding;  file, kind, words  ->  UnreadableFile, a ValueError
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

Level = Literal["unusable", "warning", "note"]
LEVELS: tuple[Level, ...] = ("unusable", "warning", "note")


class Kind(NamedTuple):
    """How bad findings of a kind are, and their heading in a report."""

    level: Level
    title: str


KINDS: dict[str, Kind] = {
    # Files that training cannot use: it names each, with the words of the finding.
    "missing": Kind("unusable", "no such file"),
    "no_file": Kind("unusable", "not a regular file"),
    "unreadable": Kind("unusable", "no permission to read, or a failing disk"),
    "link_outside": Kind("unusable", "link that leaves the folder"),
    "link_broken": Kind("unusable", "link to nothing"),
    "outside": Kind("unusable", "metadata names a file outside the folder"),
    "bad_row": Kind("unusable", "metadata that cannot be read"),
    "empty": Kind("unusable", "empty file"),
    "no_index": Kind("unusable", "recording that was not finished"),
    "not_video": Kind("unusable", "not a video"),
    "wrong_suffix": Kind("unusable", "video named as a picture"),
    "no_picture": Kind("unusable", "sound alone"),
    "no_frames": Kind("unusable", "no frames"),
    "no_times": Kind("unusable", "no times"),
    "huge_picture": Kind("unusable", "picture too large to open"),
    "size_change": Kind("unusable", "size that changes on the way"),
    "damaged": Kind("unusable", "damaged inside"),
    "no_caption": Kind("unusable", "no caption"),
    "caption_encoding": Kind("unusable", "caption that is not UTF-8"),
    "too_oblong": Kind("unusable", "too oblong for the budget of tokens"),
    # Files that training uses, though it may not see what was meant.
    "cut_off": Kind("warning", "cut off before its end"),
    "hdr": Kind("warning", "HDR"),
    "interlaced": Kind("warning", "interlaced"),
    "alpha": Kind("warning", "transparency"),
    "jump": Kind("warning", "times that jump"),
    "black": Kind("warning", "black"),
    "frozen": Kind("warning", "frozen"),
    "cuts": Kind("warning", "hard cuts inside"),
    "bars": Kind("warning", "black bars"),
    "duplicate": Kind("warning", "near duplicate"),
    "caption_long": Kind("warning", "caption longer than the text encoder reads"),
    "link_loop": Kind("warning", "link into a folder that is read already"),
    "other_container": Kind("warning", "name of another format"),
    # What training handles, for those who wonder.
    "caption_empty": Kind("note", "empty caption"),
    "captions": Kind("note", "several captions"),
    "caption_alone": Kind("note", "text beside no clip"),
    "separator": Kind("note", "metadata with semicolons or tabs"),
    "name_form": Kind("note", "name in another Unicode form"),
    "name": Kind("note", "unusual name"),
    "one_frame": Kind("note", "video of one frame"),
    "repeats": Kind("note", "repeated frames"),
    "variable_rate": Kind("note", "variable frame rate"),
    "rotated": Kind("note", "rotated or mirrored"),
    "oblong_pixels": Kind("note", "oblong pixels"),
    "odd_size": Kind("note", "odd size"),
    "deep": Kind("note", "more than 8 bits"),
}


class Finding(NamedTuple):
    """Something found in a file: its kind, and a sentence about it."""

    kind: str
    words: str

    @property
    def level(self) -> Level:
        """How bad it is."""
        return KINDS[self.kind].level


class UnreadableFile(ValueError):
    """A file that cannot be read; its finding has the reason without the file's name."""

    def __init__(self, path: Path, kind: str, words: str) -> None:
        super().__init__(path, kind, words)  # All arguments, so that it can be pickled.
        self.path, self.finding = path, Finding(kind, words)

    def __str__(self) -> str:
        return f"cannot read {self.path}: {self.finding.words}"


def printable(name: object) -> str:
    r"""Return a name on one line, of characters that every terminal prints: a newline in it becomes \n."""
    text = str(name).encode("utf-8", "backslashreplace").decode("utf-8")  # Names may hold bytes that are not UTF-8.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
