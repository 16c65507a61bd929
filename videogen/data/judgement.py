"""Judge a file of a folder: what it is, what is wrong with it, and whether training can use it.

    path  ->  Judgement: facts, findings, usable or not

Training and `videogen doctor` share it. From a header, the index and one frame for training's start; the doctor has
every frame looked at (frame_findings.py), and training heeds what it found.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from videogen.data.file_format import sniff
from videogen.data.files import error_reason
from videogen.data.findings import LEVELS, Finding, UnreadableFile
from videogen.data.pictures import IMAGE_SUFFIXES
from videogen.data.video_decode import decode_frames, display_matrix, hdr_transfer, open_video
from videogen.data.video_io import VideoInfo, count_whole_frames, probe

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

Facts = dict[str, str | int | float | list[float]]
CONTAINERS = {  # suffixes whose files FFmpeg's format of this name holds
    "mov": (".mp4", ".mov", ".m4v", ".3gp", ".qt", ".f4v"), "matroska": (".mkv", ".webm"), "avi": (".avi",),
    "gif": (".gif",), "flv": (".flv",), "mpegts": (".ts", ".mts", ".m2ts"), "asf": (".wmv", ".asf"), "ogg": (".ogv",),
}  # fmt: skip


class Judgement(NamedTuple):
    """What is known of a file; info is None where it cannot be read."""

    info: VideoInfo | None = None
    facts: Facts = {}  # noqa: RUF012
    findings: tuple[Finding, ...] = ()
    fingerprint: bytes = b""  # what its frames look like, to find near duplicates; only where all were looked at

    @property
    def fault(self) -> Finding | None:
        """The finding that keeps training from using the file, if there is one."""
        return next((finding for finding in self.findings if finding.level == "unusable"), None)

    def with_findings(self, *more: Finding) -> Judgement:
        """Return it with more findings, the worst first."""
        findings = dict.fromkeys((*self.findings, *more))
        return self._replace(findings=tuple(sorted(findings, key=lambda finding: LEVELS.index(finding.level))))


def judge_header(path: Path) -> Judgement:
    """Judge a file by its header, its index and its first frame."""
    try:
        info = probe(path)
        is_image = path.suffix.lower() in IMAGE_SUFFIXES
        facts, findings = describe_image(path) if is_image else describe_video(path, info)
    except UnreadableFile as error:
        return Judgement(findings=(error.finding,))
    except OSError as error:
        return Judgement(findings=(Finding("unreadable", f"{error_reason(error)}; allow this user to read it"),))
    if info.width % 2 or info.height % 2:
        findings.append(Finding("odd_size", f"{info.width}x{info.height} is odd; the crop takes what is over"))
    return Judgement(info, facts).with_findings(*findings)


def describe_image(path: Path) -> tuple[Facts, list[Finding]]:
    """Describe a picture: its format, and what is lost when it is read as red, green and blue."""
    from PIL import Image

    findings = list[Finding]()
    with Image.open(path) as image:
        facts: Facts = {"container": image.format or "", "pixel_format": image.mode}
        if image.getexif().get(0x0112, 1) != 1:  # the orientation of EXIF and TIFF
            findings.append(Finding("rotated", "its EXIF data asks for it; it is read upright"))
        if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
            findings.append(Finding("alpha", "parts of it are transparent; what is hidden there is trained"))
        if image.mode.startswith(("I", "F")):
            findings.append(Finding("deep", f"pixels of {image.mode} are read as 8 bits"))
    with path.open("rb") as file:
        content = sniff(file.read(4096))
    if content not in {".png": ("PNG",), ".webp": ("WebP",), ".bmp": ("BMP",)}.get(path.suffix.lower(), ("JPEG",)):
        words = f"it is named {path.suffix} but is {facts['container']}; other programs may refuse it"
        findings.append(Finding("other_container", words))
    return facts, findings


def describe_video(path: Path, info: VideoInfo) -> tuple[Facts, list[Finding]]:
    """Describe a video by its header and its first frame, as it is before it is rotated and converted."""
    with open_video(path) as (container, stream):
        context, frame = stream.codec_context, next(decode_frames(path, container, stream))
        facts: Facts = {
            "container": container.format.name.split(",")[0],
            "codec": context.codec.canonical_name,
            "pixel_format": frame.format.name,
            "coded_width": frame.width,
            "coded_height": frame.height,
        }
        findings = describe_frame(path, frame)
        if (seconds := declared_seconds(path, container, stream)) > info.seconds + 0.25:
            words = f"{info.seconds:.1f} of {seconds:.1f} s are there; it is read up to where it ends"
            findings.append(Finding("cut_off", words))
        if (ratio := stream.sample_aspect_ratio or 1) != 1:
            words = f"its pixels are {ratio.numerator}:{ratio.denominator}; it is read with square ones"
            findings.append(Finding("oblong_pixels", words))
    if info.num_frames == 1:
        findings.append(Finding("one_frame", "it has one frame, and is read as an image"))
    suffixes = CONTAINERS.get(str(facts["container"]), ())
    is_known = path.suffix.lower() in {suffix for group in CONTAINERS.values() for suffix in group}
    if is_known and path.suffix.lower() not in suffixes:
        words = f"it is named {path.suffix} but is {facts['container']}; other programs may refuse it"
        findings.append(Finding("other_container", words))
    return facts, findings


def declared_seconds(path: Path, container: InputContainer, stream: av.VideoStream) -> float:
    """Return the length that the header of a file that is cut off declares; 0 for one that is whole."""
    whole, listed = count_whole_frames(stream, path.stat().st_size)
    if whole < listed or (listed < stream.frames and container.format.name == "avi"):
        return float((stream.duration or 0) * (stream.time_base or 0))
    if container.format.name.startswith("matroska"):  # It has no list of its frames; the sound may last longer.
        ends = (float((p.pts + (p.duration or 0)) * p.time_base) for p in container.demux() if p.pts is not None)
        seconds = (container.duration or 0) / 1e6
        return seconds if seconds > max(ends, default=0.0) + 0.25 else 0.0
    return 0.0


def describe_frame(path: Path, frame: av.VideoFrame) -> list[Finding]:
    """Find what the first decoded frame tells: HDR, interlacing, depth, transparency, rotation."""
    findings = list[Finding]()
    if transfer := hdr_transfer(frame):
        words = f"its brightness is {transfer}, which is read as if it were BT.709: it looks washed out"
        findings.append(Finding("hdr", words))
    if frame.interlaced_frame:
        findings.append(Finding("interlaced", "moving edges look like combs"))
    if (bits := max(component.bits for component in frame.format.components)) > 8:
        findings.append(Finding("deep", f"{bits} bits are read as 8"))
    if any(component.is_alpha for component in frame.format.components) and path.suffix.lower() != ".gif":
        findings.append(Finding("alpha", "it has transparency, which is left out; what is hidden there is trained"))
    if (matrix := display_matrix(frame)) != (1, 0, 0, 1):
        a, b, c, d = matrix
        turned = "mirrored" if a * d < b * c else "upright"
        findings.append(Finding("rotated", f"its header asks for it; it is read {turned}"))
    return findings
