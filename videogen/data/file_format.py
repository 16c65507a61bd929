"""Tell the format of a file by its first bytes, and why FFmpeg or Pillow cannot read it.

path, error  ->  UnreadableFile
"""

from __future__ import annotations

import errno
import struct
from pathlib import Path

from videogen.data.files import error_reason
from videogen.data.findings import UnreadableFile

SIGNATURES: dict[str, tuple[int, bytes]] = {  # format: where its first bytes say so, and how
    "MP4": (4, b"ftyp"), "Matroska": (0, b"\x1a\x45\xdf\xa3"), "AVI": (8, b"AVI "), "GIF": (0, b"GIF8"),
    "PNG": (0, b"\x89PNG"), "JPEG": (0, b"\xff\xd8\xff"), "WebP": (8, b"WEBP"), "BMP": (0, b"BM"),
    "Flash": (0, b"FLV"), "Ogg": (0, b"OggS"), "ASF": (0, b"\x30\x26\xb2\x75"), "PDF": (0, b"%PDF"),
    "ZIP": (0, b"PK\x03"),
}  # fmt: skip


def sniff(head: bytes) -> str:
    """Name the format of a file by its first bytes: "text" for text, empty for what is unknown."""
    for name, (start, signature) in SIGNATURES.items():
        if head[start : start + len(signature)] == signature:
            return name
    text = head.rstrip(b"\x00")
    return "text" if text and all(byte >= 32 or byte in b"\t\r\n\x1b" for byte in head) else ""


def has_index(path: Path) -> bool:
    """True if one of the boxes at the top of an MP4 is its index, moov, and lies in the file."""
    size, place = path.stat().st_size, 0
    with path.open("rb") as file:
        while place + 8 <= size:
            file.seek(place)
            length, name = struct.unpack(">I4s", file.read(8))
            length = int.from_bytes(file.read(8), "big") if length == 1 else length or size - place
            if name == b"moov":
                return place + length <= size
            place += max(length, 8)
    return False


def explain_failure(path: Path, error: Exception) -> UnreadableFile:
    """Say why FFmpeg cannot read a file, from its first bytes."""
    reason = error_reason(error)
    if getattr(error, "errno", None) == errno.EACCES:  # FFmpeg has EPERM for damaged streams as well.
        return UnreadableFile(path, "unreadable", f"{reason}; allow this user to read it")
    if path.stat().st_size == 0:
        return UnreadableFile(path, "empty", "the file is empty: 0 bytes")
    with path.open("rb") as file:
        content = sniff(file.read(4096))
        if content == "MP4" and not has_index(path):
            words = f"its index (moov) is missing: the recording was not finished, or not all was copied ({reason})"
            return UnreadableFile(path, "no_index", words)
    if content in ("", "text", "PDF", "ZIP"):
        return UnreadableFile(path, "not_video", f"it is no video{f' but {content}' if content else ''} ({reason})")
    return UnreadableFile(path, "damaged", f"{reason}: it is damaged")


def explain_picture(path: Path, error: Exception) -> UnreadableFile:
    """Say why Pillow cannot read a file, from its first bytes."""
    if isinstance(error, PermissionError):
        return UnreadableFile(path, "unreadable", f"{error_reason(error)}; allow this user to read it")
    with path.open("rb") as file:
        content = sniff(file.read(4096))
    reason = f"Pillow finds no whole picture in it ({error_reason(error)})"
    if path.stat().st_size == 0:
        return UnreadableFile(path, "empty", f"the file is empty: 0 bytes; {reason}")
    if content in ("MP4", "Matroska", "AVI", "Flash", "Ogg", "ASF"):
        return UnreadableFile(path, "wrong_suffix", f"it is named {path.suffix} but is {content}; rename it")
    kind = "damaged" if content in ("PNG", "JPEG", "WebP", "BMP", "GIF") else "not_video"
    return UnreadableFile(path, kind, reason)
