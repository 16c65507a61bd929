"""What a command gives of its clips beforehand: --image, --video with --extend, --join, --loop, --mask or --strength.

SampleArgs, CheckpointInfo  ->  SampleArgs with the size, rate and length of the files, Layout; from headers alone
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from videogen.cli.arguments import is_given
from videogen.cli.storyboards import fit_storyboard, list_shot_windows, list_shots
from videogen.config.sample import SampleConfig, resolve_frames
from videogen.data.pictures import IMAGE_SUFFIXES, read_image_file
from videogen.data.video_io import probe
from videogen.models.checkpoint_config import ENDS_ALONE, NO_IMAGE, NO_START, TEXT_ONLY, CheckpointInfo
from videogen.packing.patch_schedule import coarsest_patch
from videogen.packing.windows import plan_windows

if TYPE_CHECKING:
    from videogen.cli.sample_arguments import SampleArgs

USES = "--extend, --join, --loop, --mask or --strength"


class ImageFlag(NamedTuple):
    """A picture of --image, and when it is on screen."""

    path: Path
    seconds: float  # infinity for the last frame


class Layout(NamedTuple):
    """Where given clips lie in the one to be made, in frames."""

    starts: tuple[int, ...]  # of --video, and of --join or the beginning of --video once more
    num_frames: int  # of the clip that is denoised, 1 + a multiple of the stride
    num_written: int  # of it, from its beginning: a loop ends where its first frame comes again
    skipped: int = 0  # frames of --video that precede the first latent frame, and are written as they are
    left_over: int = 0  # frames of the last clip behind its last whole latent frame, likewise


def parse_image(text: str) -> ImageFlag:
    """Parse FILE[@first|@last|@SECONDS]; a name with an @ of its own is taken as it is where there is such a file."""
    path, at, when = text.rpartition("@")
    if not at or Path(text).is_file():
        return ImageFlag(Path(text), 0.0)
    if when in ("first", "last"):
        return ImageFlag(Path(path), 0.0 if when == "first" else math.inf)
    if not re.fullmatch(r"\d+(\.\d*)?|\.\d+", when):
        raise ValueError(f"--image {text}: behind the @ stands first, last or a time in seconds, got {when!r}")
    return ImageFlag(Path(path), float(when))


def latent_frame_of(image: ImageFlag, config: SampleConfig, info: CheckpointInfo) -> int:
    """Return the latent frame that shows a picture's time."""
    last = resolve_frames(config, info.time_stride) - 1
    return -(-(last if math.isinf(image.seconds) else round(image.seconds * config.fps)) // info.time_stride)


def check_material(args: SampleArgs, info: CheckpointInfo) -> None:
    """Refuse flags that do not go together, files that are not there, and what a model does not take."""
    if args.video is None:
        for flag in ("extend", "join", "mask", "loop"):
            if getattr(args, flag):
                raise ValueError(f"--{flag} needs the clip that it works on; give it with --video")
        if args.sample.strength < 1:
            raise ValueError(NO_START)
    elif not (args.extend is not None or args.join or args.loop or args.mask or varies_strength(args)):
        raise ValueError(f"--video {args.video}: say what to do with it, by {USES}")
    if args.join and args.loop:
        raise ValueError("--join leads to another clip and --loop to the beginning of --video; give one of them")
    if (args.join or args.loop) and not (args.extend or 0) > 0:
        flag = "join" if args.join else "loop"
        raise ValueError(f"--{flag} needs to know how long the made part is; give it with --extend SECONDS")
    if args.extend is not None and (args.mask or args.image or args.sample.strength < 1):
        raise ValueError("--extend takes no --image, --mask or --strength beside it; make one after the other")
    images = [parse_image(text) for text in args.image]
    if images and info.needs_image and sorted(image.seconds for image in images) not in ([0.0], [0.0, math.inf]):
        raise ValueError(ENDS_ALONE)
    check_model(args, info, images)
    for path, flag in [(image.path, "image") for image in images] + [
        (getattr(args, flag), flag) for flag in ("video", "join", "mask")
    ]:
        if path is not None and not path.is_file():
            raise ValueError(f"there is no file {path}; give another with --{flag}")
    for image in images:
        read_image_file(image.path)  # so that a damaged one is refused before anything is loaded


def varies_strength(args: SampleArgs) -> bool:
    """True if --video is a start: --strength is below 1, or on an axis of a sweep."""
    if args.sample.strength < 1 or not args.sweep:
        return args.sample.strength < 1
    from videogen.sweep.axes import read_axes  # which a command without a sweep does without

    return any("strength" in axis.names for axis in read_axes(args.sweep))


def check_model(args: SampleArgs, info: CheckpointInfo, images: Sequence[ImageFlag]) -> None:
    """Refuse what a model does not take, and a model that is not given the images it needs."""
    if info.needs_image:
        if args.video is not None:
            raise ValueError(ENDS_ALONE)
        if not images:
            raise ValueError(NO_IMAGE)
        if info.needs_last_image and len(images) < 2:
            raise ValueError("this model makes what lies between two images; give the last too (--image FILE@last)")
    elif not info.takes_known and (images or args.extend is not None or args.mask):
        raise ValueError(TEXT_ONLY)


def fit_settings(args: SampleArgs, info: CheckpointInfo, argv: Sequence[str]) -> SampleArgs:
    """Check the given files, and take from them the size, the frame rate and the length that no flag says.

    A clip keeps its own frame rate, unless --fps says another: then it shows at each time the frame on screen. A
    picture is fitted to the clip's size, by --fit size the clip to the picture's. A clip of --from is as it was.
    """
    for flag in ("frames", "seconds"):
        says = "storyboard" if args.storyboard is not None else "extend"
        if getattr(args, says) is not None and is_given(argv, f"--{flag}"):
            raise ValueError(f"--{says} says how long the clip becomes; leave --{flag} out")
    if args.storyboard is not None:
        return fit_storyboard(args, info)
    check_material(args, info)
    config, is_new = args.sample, any(is_given(argv, f"--{flag}") for flag in ("video", "image", "extend"))
    if args.video is not None and is_new:
        video = probe(args.video)
        if not is_given(argv, "--fps") and args.video.suffix.lower() not in IMAGE_SUFFIXES:
            config = replace(config, fps=video.fps)
        if not is_given(argv, "--size"):
            config = replace(config, size=own_size(args.video, info, config))
        if args.extend is not None or (not is_given(argv, "--frames") and not is_given(argv, "--seconds")):
            config = replace(config, frames=1, seconds=None)  # until the lengths are known
            config = replace(config, frames=lay_out(replace(args, sample=config), info).num_frames)
    elif args.image and args.fit == "size" and is_new and not is_given(argv, "--size"):
        config = replace(config, size=own_size(parse_image(args.image[0]).path, info, config))
    args = replace(args, sample=config)
    if args.video is not None or args.image:
        check_places(args, info)
        say_what_fits(args)
    return args


def check_rows(configs: Sequence[SampleConfig], args: SampleArgs) -> None:
    """Refuse clips of a prompts file or a sweep that do not have the size, length and rate of the given video."""
    if args.video is None and any(config.strength < 1 for config in configs):
        raise ValueError(NO_START)
    for config in configs if args.video is not None else ():
        for name in ("size", "frames", "seconds", "fps"):
            if (own := getattr(config, name)) != (shared := getattr(args.sample, name)):
                raise ValueError(
                    f"a clip made from {args.video} has {name} {shared}, and a row of the prompts file or a sweep says "
                    f"{own}; leave that column or axis out"
                )


def window_length(info: CheckpointInfo) -> int:
    """Return the latent frames that a model denoises at once where a clip is extended: those it was trained with."""
    return 1 + (resolve_frames(info.defaults, info.time_stride) - 1) // info.time_stride


def is_long(args: SampleArgs, info: CheckpointInfo, config: SampleConfig) -> bool:
    """True if a clip is made in windows: it is extended, or more than twice as long as those of training.

    A model without a noise level for each token makes every clip at once, and so does one whose positions are scaled.
    """
    if args.extend is not None or args.storyboard is not None:
        return True
    can = info.takes_known and config.position_scaling == "none"
    return can and info.latent_grid(config)[0] > 2 * window_length(info)


def list_windows(args: SampleArgs, info: CheckpointInfo, config: SampleConfig) -> list[SampleConfig]:
    """List the settings of the windows in which a clip is denoised."""
    if not is_long(args, info, config):
        return [config]
    stride, length = info.time_stride, window_length(info)
    if args.storyboard is not None:
        shots = list_shots(args, config, info)
        windows = [num for shot in shots for num in list_shot_windows(shot, stride, length)]
    else:
        windows = [high - low for low, high in plan_windows(list_known_frames(args, info, config), length)]
    return [replace(config, frames=1 + (num - 1) * stride, seconds=None) for num in windows]


def count_frames(args: SampleArgs, info: CheckpointInfo, config: SampleConfig) -> int:
    """Count the frames that are written of a clip."""
    if args.storyboard is not None:
        return sum(shot.num_frames - shot.blend for shot in list_shots(args, config, info))
    if args.extend is None:
        return resolve_frames(config, info.time_stride)
    layout = lay_out(args, info)
    return layout.skipped + layout.num_written + layout.left_over


def list_known_frames(args: SampleArgs, info: CheckpointInfo, config: SampleConfig) -> list[bool]:
    """List which latent frames of a clip are given wholly."""
    stride, is_known = info.time_stride, [False] * info.latent_grid(config)[0]
    for image in map(parse_image, args.image):
        is_known[latent_frame_of(image, config, info)] = True
    if args.extend is not None and args.video is not None:
        layout = lay_out(args, info)
        whole = 1 + (num_frames_of(args.video, args.sample.fps) - 1) // stride * stride
        ends = [layout.starts[0] + whole, layout.num_frames]
        for start, end in zip(layout.starts, ends, strict=False):
            low, high = start // stride + (start > 0), 1 + (end - 1) // stride
            is_known[low:high] = [True] * (high - low)
    return is_known


def own_size(path: Path, info: CheckpointInfo, config: SampleConfig) -> str:
    """Return the size of a file, cut to a multiple of the model's strides."""
    _, ph, pw = coarsest_patch(config, info.patches[0], info.patches[0])
    picture = probe(path)
    width, height = (
        max(step, side // step * step)
        for side, step in ((picture.width, info.space_stride * pw), (picture.height, info.space_stride * ph))
    )
    return f"{width}x{height}"


def num_frames_of(path: Path, fps: float) -> int:
    """Count the frames of a file at a frame rate; a picture has one."""
    info = probe(path)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return 1
    return info.num_frames if math.isclose(info.fps, fps) else math.ceil(info.seconds * fps - 0.01)


def lay_out(args: SampleArgs, info: CheckpointInfo) -> Layout:
    """Place the given clips in the one to be made."""
    assert args.video is not None
    stride, fps = info.time_stride, args.sample.fps
    num = num_frames_of(args.video, fps)
    whole = 1 + (num - 1) // stride * stride
    if args.extend is None:
        return Layout((0,), whole, whole)
    made = round(abs(args.extend) * fps / stride)  # latent frames
    if made < 1:
        least = stride / fps / 2
        raise ValueError(
            f"--extend {args.extend:g} is less than a latent frame, which holds {stride} frames ({stride / fps:g} s); "
            f"give at least {math.ceil(100 * least) / 100:g} s"
        )
    if args.extend < 0:
        if whole == 1:
            raise ValueError(
                f"{args.video} has {num} frames, and a clip is extended backward from at least {1 + stride}"
            )
        total = stride * made + whole
        return Layout((stride * made,), total, total, left_over=num - whole)
    start = whole - 1 + stride * made  # of what follows: its first frame is the last of a made latent frame
    if not (args.join or args.loop):
        return Layout((0,), start + 1, start + 1, skipped=num - whole)
    following = num_frames_of(args.join or args.video, fps)
    if args.loop:
        following = min(following, 1 + 2 * stride)
    rest = 1 + (following - 1) // stride * stride
    if rest == 1:
        raise ValueError(
            f"{args.join or args.video} has {following} frames, and one needs at least {1 + stride} to lead to"
        )
    written = start if args.loop else start + rest
    left_over = 0 if args.loop else following - rest
    return Layout((0, start), start + rest, written, skipped=num - whole, left_over=left_over)


def check_places(args: SampleArgs, info: CheckpointInfo) -> None:
    """Refuse images and clips that do not lie in the clip to be made, and masks that do not fit or mask nothing."""
    frames, fps = resolve_frames(args.sample, info.time_stride), args.sample.fps
    images = [parse_image(text) for text in args.image]
    for image in images:
        if math.isfinite(image.seconds) and round(image.seconds * fps) >= frames:
            raise ValueError(
                f"{image.path} at {image.seconds:g} s lies behind a clip of {frames} frames ({frames / fps:g} s); "
                "make it longer (--seconds), or give an earlier time"
            )
    places = [latent_frame_of(image, args.sample, info) for image in images]
    for i, image in enumerate(images):
        if places[i] in places[:i] and frames > 1:
            other = images[places.index(places[i])]
            raise ValueError(
                f"{other.path} and {image.path} are shown in the same latent frame, which holds {info.time_stride}; "
                "give one of them another time (@last, @SECONDS)"
            )
    if frames == 1 and len(images) > 1:
        raise ValueError("frames must be more than 1 to begin and end with an image, got 1")
    if args.video is not None and (given := num_frames_of(args.video, fps)) > frames and args.extend is None:
        whole = 1 + (given - 1) // info.time_stride * info.time_stride
        if frames < whole:
            raise ValueError(f"{args.video} has {given} frames and the clip {frames}; leave --frames and --seconds out")
    if args.mask is not None and args.video is not None:
        size, mask = probe(args.video), probe(args.mask)
        if (size.width, size.height) != (mask.width, mask.height):
            raise ValueError(
                f"{args.mask} is {mask.width}x{mask.height} and {args.video} {size.width}x{size.height}; "
                f"give a mask of {size.width}x{size.height}"
            )
        if args.mask.suffix.lower() in IMAGE_SUFFIXES:
            pixels = read_image_file(args.mask)
            for colour, is_all in (("black", (pixels < 128).all()), ("white", (pixels >= 128).all())):
                if is_all:
                    raise ValueError(
                        f"{args.mask} is all {colour}; white is made anew and black is kept, give some of both"
                    )


def say_what_fits(args: SampleArgs) -> None:
    """Say on stderr what of a picture or clip is cropped or padded, where its aspect is not the clip's."""
    width, height = args.sample.width, args.sample.height
    for path in [*(parse_image(text).path for text in args.image), *filter(None, (args.video, args.join))]:
        picture = probe(path)
        # A few pixels of a side, cut to the strides, change no picture.
        ratio = picture.width * height / (picture.height * width)
        if abs(math.log(ratio)) < 0.02:
            continue
        size = f"{path} is {picture.width}x{picture.height} and the clip {width}x{height}"
        if args.fit == "pad":
            print(f"{size}: bars of black are added", file=sys.stderr)
        else:
            sides, share = ("left and right", 1 - 1 / ratio) if ratio > 1 else ("above and below", 1 - ratio)
            print(
                f"{size}: {share:.0%} is cropped {sides}; --fit pad keeps it, --fit size fits the clip", file=sys.stderr
            )
