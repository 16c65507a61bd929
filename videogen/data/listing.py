"""List the clips of a folder and their captions, and what is wrong with its names, links, metadata and rights.

folder  ->  Listing: clip files, their captions, findings about files that are no clips
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from videogen.data.captions import CaptionTable, find_prompt_list, find_tables, read_caption_tables, read_utf8
from videogen.data.files import error_reason
from videogen.data.findings import Finding, printable
from videogen.data.pictures import IMAGE_SUFFIXES

SUFFIXES = (
    ".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp",
    ".ogv", ".vob", ".mxf", ".f4v", ".asf", ".mpe", ".m2v", ".qt", ".y4m", ".gif", *IMAGE_SUFFIXES,
)  # fmt: skip

LocatedFinding = tuple[Path, Finding]


class Listing(NamedTuple):
    """The clip files of a folder, sorted, with the captions that its tables give them."""

    folder: Path
    clips: list[Path]
    captions: dict[Path, tuple[str, ...]]
    findings: list[LocatedFinding]  # about folders, links, tables and rows, and names of clips

    def check_tables(self) -> None:
        """Raise a ValueError that names the first row that cannot be read: a clip would lose its caption unseen."""
        for path, finding in self.findings:
            if finding.kind == "bad_row":
                raise ValueError(f"{path} {finding.words}")


def list_folder(folder: Path, *, follow_links: bool = False) -> Listing:
    """List a folder and its sub-folders; links that leave it are followed only where asked.

    Raises a ValueError where there is no such folder, or nothing in it.
    """
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}; give one with videos in it and captions beside them")
    findings = list[LocatedFinding]()
    files = sorted(walk(folder, findings, follow_links=follow_links))
    table_paths = find_tables(files)
    table = read_caption_tables(table_paths)
    findings += table.findings
    captions = locate_captions(folder, files, table, findings)
    clips = sorted(captions.keys() | find_clip_files(files))
    if not clips and not findings:
        raise ValueError(f"no videos in {folder}; it may hold {', '.join(SUFFIXES)} in any sub-folders")
    captioned = {path.with_suffix("") for path in clips}
    lists = {path for table in table_paths for path in (table, find_prompt_list(table))}
    for path in files:
        if path.suffix == ".txt" and path not in lists and path.with_suffix("") not in captioned:
            findings.append((path, Finding("caption_alone", "no clip has its name; a caption, or only a note")))
    for path in clips:
        name = path.relative_to(folder).as_posix()
        if printable(name) != name or ":" in name or "\\" in name:
            findings.append((path, Finding("name", "its name has characters that not every system and program takes")))
    return Listing(folder, clips, captions, findings)


def walk(folder: Path, findings: list[LocatedFinding], *, follow_links: bool) -> Iterator[Path]:
    """Yield the files of a folder and its sub-folders, each folder once; name those and the links that are not read."""
    root, visited = os.path.realpath(folder), set[str]()
    folders, linked = [str(folder)], list[str]()  # Links come last, so that a file has its own name where it has one.
    while folders or linked:
        path = (folders or linked).pop()
        if (real_path := os.path.realpath(path)) in visited:
            findings.append((Path(path), Finding("link_loop", "it links to a folder that is read under another name")))
            continue
        visited.add(real_path)
        try:
            entries = list(os.scandir(path))
        except OSError as error:
            words = f"{error_reason(error)}: nothing in this folder is used; allow this user to read it"
            findings.append((Path(path), Finding("unreadable", words)))
            continue
        for entry in entries:
            if entry.is_symlink() and (fault := find_link_fault(entry.path, root, follow_links=follow_links)):
                findings.append((Path(entry.path), fault))
            elif entry.is_dir():
                (linked if entry.is_symlink() else folders).append(entry.path)
            else:
                yield Path(entry.path)


def find_link_fault(link: str, root: str, *, follow_links: bool) -> Finding | None:
    """Say why a link is not followed: it leads nowhere, or leaves the folder unasked."""
    if not os.path.exists(link):  # noqa: PTH110  # Path.exists raises for a link to itself
        return Finding("link_broken", f"it links to {os.readlink(link)}, which does not exist")  # noqa: PTH115
    target = os.path.realpath(link)
    if not follow_links and os.path.commonpath([root, target]) != root:
        return Finding("link_outside", f"it links to {target}, outside the folder; --data.follow-links reads it")
    return None


def find_clip_files(files: list[Path]) -> set[Path]:
    """Return the files with a video's suffix, and those whose .txt caption belongs to no file with such a suffix."""
    clips = {path for path in files if path.suffix.lower() in SUFFIXES}
    captioned = {path.with_suffix("") for path in files if path.suffix == ".txt"}
    captioned -= {path.with_suffix("") for path in clips}
    return clips | {path for path in files if path.suffix not in ("", ".txt") and path.with_suffix("") in captioned}


def locate_captions(
    folder: Path, files: list[Path], table: CaptionTable, findings: list[LocatedFinding]
) -> dict[Path, tuple[str, ...]]:
    """Find the files that the rows of the tables name, and name the rows whose file is not there or outside."""
    known = {path.relative_to(folder).as_posix() for path in files}
    composed = {unicodedata.normalize("NFC", name): name for name in known}
    root, captions = os.path.abspath(folder), dict[Path, dict[str, None]]()  # noqa: PTH100
    for (parent, cell), texts in table.texts.items():
        row_name = cell if (parent / cell).exists() else cell.replace("\\", "/")  # as Windows writes it
        full = os.path.normpath(os.path.join(os.path.abspath(parent), row_name))  # noqa: PTH100, PTH118
        name = os.path.relpath(full, root)
        if name.startswith("../"):
            words = f"the metadata in {parent} names it, but it lies outside the folder; copy it in"
            findings.append((Path(row_name), Finding("outside", words)))
            continue
        if name not in known and (found := composed.get(unicodedata.normalize("NFC", name))):
            words = "the metadata writes its name in another Unicode form (NFC or NFD); they are taken for one"
            findings.append((folder / found, Finding("name_form", words)))
            name = found
        if name not in known:
            words = "it has a caption in the metadata, but the file does not exist"
            findings.append((folder / name, Finding("missing", words)))
            continue
        captions.setdefault(folder / name, {}).update(dict.fromkeys(texts))
    return {path: tuple(texts) for path, texts in captions.items()}


def caption_of(path: Path, captions: Mapping[Path, tuple[str, ...]]) -> tuple[tuple[str, ...], Finding | None]:
    """Return the captions of a clip, from the tables or the .txt beside it, and what is to be said of them."""
    texts = captions.get(path, ())
    if not texts and (caption_path := path.with_suffix(".txt")).is_file():
        try:
            texts = (read_utf8(caption_path).strip(),)
        except ValueError as error:
            return (), Finding("caption_encoding", str(error))
        except OSError as error:
            return (), Finding("unreadable", f"{caption_path.name}: {error_reason(error)}; allow this user to read it")
    if not texts:
        words = f"no caption; add a row to metadata.csv or write {path.with_suffix('.txt').name} beside it"
        return (), Finding("no_caption", words)
    if len(texts) > 1:
        return texts, Finding("captions", f"{len(texts)} captions; the epochs read them in turn")
    if texts == ("",):
        return texts, Finding("caption_empty", "its caption is empty; it is trained without words")
    return texts, None
