"""Write the page of an examined folder: every file with a picture and its findings, in one file that opens from disk.

Examination  ->  HTML
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterable
from pathlib import Path

from videogen.data.findings import KINDS, LEVELS, Finding, printable
from videogen.data.pictures import IMAGE_SUFFIXES, read_image_file
from videogen.data.video_decode import FrameRequest, decode_pyav
from videogen.data.video_io import VideoInfo
from videogen.doctor.examine import Examination, ExaminedClip
from videogen.doctor.summary import describe_epoch, group_by_kind, relative_name
from videogen.doctor.threads import thread_pool

TEMPLATE = Path(__file__).with_name("page.html")
MAX_FILES = 1000  # on the page, the worst first: with more, a browser crawls
PICTURE_SIDE = 128


def render_page(
    found: Examination,
    tokens_per_second: float | None,
    *,
    num_threads: int = 1,
    on_file: Callable[[int, int], object] = lambda done, total: None,
) -> str:
    """Render the whole page; on_file is told how many pictures are made, and of how many."""
    folder = found.folder
    clips = sorted(found.clips, key=lambda clip: LEVELS.index(clip.worst) if clip.worst else len(LEVELS))[:MAX_FILES]
    cards = list[str]()
    with thread_pool(num_threads) as pool:
        for clip, uri in zip(clips, pool.map(picture_uri, clips), strict=True):
            cards.append(clip_card(clip, uri, folder))
            on_file(len(cards), len(clips))
    others = [file_card(relative_name(path, folder), [finding], "", "") for path, finding in found.others]
    used, left_out = sum(clip.shape is not None for clip in found.clips), len(found.clips) - len(clips)
    kinds = group_by_kind(found)
    options = [f'<option value="">all files ({len(found.clips)})</option>']
    options += [f'<option value="{kind}">{KINDS[kind].title} ({len(where)})</option>' for kind, where in kinds.items()]
    title = f"{printable(folder)}: {len(found.clips)} files, {used} can be used"
    parts = {
        "<!-- title -->": html.escape(title),
        "<!-- epoch -->": html.escape(describe_epoch(found, tokens_per_second)),
        "<!-- table -->": kind_table((kind, len(where)) for kind, where in kinds.items()),
        "<!-- options -->": "".join(options),
        "<!-- files -->": "\n".join([*others[:MAX_FILES], *cards]),
        "<!-- left out -->": f"{left_out} files more are not on this page; --json has all" if left_out else "",
    }
    page = TEMPLATE.read_text(encoding="utf-8")
    for placeholder, content in parts.items():
        page = page.replace(placeholder, content)
    return page


def kind_table(counts: Iterable[tuple[str, int]]) -> str:
    """Render how many files have findings of each kind."""
    rows = "".join(
        f'<tr><td class="{KINDS[kind].level}">{KINDS[kind].level}</td><td>{num}</td><td>{KINDS[kind].title}</td></tr>'
        for kind, num in counts
    )
    return f"<table><thead><tr><th></th><th>files</th><th>what</th></tr></thead><tbody>{rows}</tbody></table>"


def clip_card(clip: ExaminedClip, uri: str, folder: Path) -> str:
    """Render a file with what it is and what training makes of it."""
    info, shape, parts = clip.judgement.info, clip.shape, list[str]()
    if info is not None:
        codec = clip.judgement.facts.get("codec", clip.judgement.facts.get("container", ""))
        parts.append(f"{info.width}x{info.height}, {info.seconds:.1f} s, {info.fps:.4g} fps, {codec}")
    if shape is not None:
        parts.append(f"trained as {shape.width}x{shape.height}, {shape.frames} frames, {shape.num_tokens} tokens")
    return file_card(relative_name(clip.path, folder), clip.judgement.findings, "; ".join(parts), uri)


def file_card(name: str, findings: Iterable[Finding], about: str, uri: str) -> str:
    """Render a file as HTML; all that a file can say is escaped."""
    items = "".join(
        f'<li class="{f.level}">{html.escape(KINDS[f.kind].title)}: {html.escape(printable(f.words))}</li>'
        for f in findings
    )
    kinds = " ".join(finding.kind for finding in findings)
    picture = f'<img class="picture" src="{uri}" alt="" loading="lazy">' if uri else '<div class="picture"></div>'
    return (
        f'<article data-kinds="{kinds}">{picture}<div><p class="name">{html.escape(printable(name))}</p>'
        f'<ul>{items}</ul><p class="quiet">{html.escape(about)}</p></div></article>'
    )


def picture_uri(clip: ExaminedClip) -> str:
    """Return a small picture from the middle of a file as a data URI; empty where it has none that can be read."""
    from PIL import Image

    info = clip.judgement.info
    if info is None:
        return ""
    try:
        if clip.path.suffix.lower() in IMAGE_SUFFIXES:
            pixels = read_image_file(clip.path)[0]
        else:
            pixels = next(decode_pyav(clip.path, FrameRequest(info.seconds / 2, 0.0, 1)))[0]
    except (ValueError, OSError, StopIteration):
        return ""
    file = io.BytesIO()
    Image.fromarray(pixels).resize(picture_size(info)).save(file, "webp", quality=60)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def picture_size(info: VideoInfo) -> tuple[int, int]:
    """Return the width and height of a file's small picture."""
    scale = min(1.0, PICTURE_SIDE / max(info.width, info.height))
    return max(1, round(info.width * scale)), max(1, round(info.height * scale))
