"""A folder of clips: no frame is distorted, no file dropped in silence, and every run reads the same."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import seeded
from videogen.config.train import DataConfig
from videogen.data.clip_plan import fit_size
from videogen.data.folder import VideoFolder, epoch_order, scale_and_crop
from videogen.data.video_io import write_video
from videogen.models.vae import VideoVAE
from videogen.packing.packs import pack
from videogen.packing.patch_schedule import Patch
from videogen.toybox import draw_scene, render
from videogen.training.caches import LatentCache
from videogen.training.vae_stage import sample_crops

PATCH: Patch = (1, 2, 2)


def open_folder(folder: Path, log: list[str] | None = None, *, patch: Patch = PATCH, **options: object) -> VideoFolder:
    config = DataConfig(folder=folder, **({"max_tokens": 80, "val_clips": 2} | options))  # type: ignore[arg-type]
    return VideoFolder(config, patch, log=(log if log is not None else []).append)


def write_clip(
    path: Path, *, num_frames: int = 9, width: int = 48, height: int = 48, fps: float = 8, seed: int = 0
) -> Path:
    scene = draw_scene(seed, sizes=((width, height),), lengths=(num_frames,))
    write_video(path, torch.from_numpy(render(scene)), fps=fps)
    return path


def write_caption(path: Path, text: str = "a red circle") -> Path:
    path.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")
    return path


# --- sizes


@pytest.mark.parametrize("cell", [8, 16])
def test_a_frame_is_not_distorted_and_the_crop_is_less_than_half_a_cell(cell: int) -> None:
    """Of 2000 random sizes, both sides have one scale but for rounding to pixels."""
    rng = random.Random(0)
    for _ in range(2000):
        width, height = rng.randint(8, 2000), rng.randint(8, 2000)
        if max(width, height) > 12 * min(width, height):
            continue
        new_width, new_height = fit_size(width, height, cell=cell, max_cells=(max_cells := rng.randint(16, 400)))
        case = f"{width}x{height} -> {new_width}x{new_height}, {max_cells} cells"
        assert new_width % cell == new_height % cell == 0, case
        assert (new_width // cell) * (new_height // cell) <= max_cells, case
        scale = max(new_width / width, new_height / height)
        assert width * scale - new_width <= cell / 2 + 1e-6, case
        assert height * scale - new_height <= cell / 2 + 1e-6, case
        if min(width, height) >= 2 * cell:
            assert scale <= 1 + 1e-9, case  # never enlarged


def test_both_sides_of_a_frame_have_the_same_scale() -> None:
    """The width and height of a circle differ by the rounding of a pixel at most."""
    y, x = torch.meshgrid(torch.arange(200), torch.arange(311), indexing="ij")
    disc = ((x - 155) ** 2 + (y - 100) ** 2 < 60**2).to(torch.uint8) * 255
    frames = disc[None, :, :, None].expand(1, -1, -1, 3)
    for width, height in ((80, 48), (96, 64), (48, 32), (160, 96)):
        video = scale_and_crop(frames, width, height)
        assert video.shape == (1, 3, height, width)
        inside = video[0, 0] > 0
        columns, rows = inside.any(0).sum().item(), inside.any(1).sum().item()
        assert abs(columns - rows) <= 2  # a pixel for the grid, one for rounding the covering size
        assert video.min() >= -1
        assert video.max() <= 1


def test_a_frame_of_the_target_size_keeps_its_pixels() -> None:
    frames = torch.randint(256, (3, 32, 48, 3), generator=seeded()).to(torch.uint8)
    video = scale_and_crop(frames, 48, 32)
    assert torch.equal(((video + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1), frames)


def test_a_frame_too_oblong_for_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="3200x16 needs at least 200 tokens a frame, got room for 100"):
        fit_size(3200, 16, cell=16, max_cells=100)


# --- the files of a folder


@pytest.mark.parametrize("patch", [(1, 1, 1), (1, 2, 2), (1, 1, 2)])
@pytest.mark.parametrize("max_tokens", [400, 40, 9])
def test_token_counts_of_entries_equal_those_of_encoded_clips(
    clips_folder: Path, vae: VideoVAE, patch: Patch, max_tokens: int
) -> None:
    folder = open_folder(clips_folder, patch=patch, max_tokens=max_tokens)
    assert len(folder.entries) == 10
    for index in (0, 1, 2, 3, 4):
        entry, clip = folder.entries[index], folder.read(index)
        assert clip.video.shape == (3, entry.frames, entry.height, entry.width)
        packed = pack([vae.encode(clip.video[None])[0]], patch)
        assert packed.lengths == (entry.num_tokens,)
        assert entry.num_tokens <= max_tokens


def test_a_clip_equals_the_rendered_frames(tmp_path: Path) -> None:
    scene = draw_scene(5, sizes=((48, 48),), lengths=(9,))
    write_caption(write_clip(tmp_path / "clip.mp4", seed=5))
    clip = open_folder(tmp_path, max_tokens=400).read(0)
    expected = torch.from_numpy(render(scene)).permute(3, 0, 1, 2).float() / 127.5 - 1
    assert clip.video.shape == expected.shape
    assert (clip.video - expected).abs().mean() < 0.04  # H.264 with 4:2:0 chroma
    assert clip.video.abs().max() <= 1


def test_a_clip_depends_on_seed_epoch_and_name_alone(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_caption(write_clip(tmp_path / f"{name}.mp4", num_frames=33, seed=ord(name)))
    folder, reopened = (open_folder(tmp_path, max_seconds=1.2, windows=3) for _ in range(2))
    for index in range(3):
        for epoch in (0, 1, 2):
            assert torch.equal(folder.read(index, epoch).video, reopened.read(index, epoch).video)
        starts, entry = {folder.start_seconds(index, epoch) for epoch in range(9)}, folder.entries[index]
        assert len(starts) == 3  # windows
        assert all(0 <= start <= entry.info.seconds - entry.frames / 8 for start in starts)
    config = DataConfig(folder=tmp_path, max_seconds=1.2, windows=3)
    reseeded = VideoFolder(config, PATCH, seed=1, log=lambda message: None)
    assert reseeded.start_seconds(0, 0) != folder.start_seconds(0, 0)
    starts = [folder.start_seconds(index, epoch) for index in range(3) for epoch in range(3)]
    write_caption(write_clip(tmp_path / "0.mp4"))  # one more file, which all others come after
    more = VideoFolder(config, PATCH, log=lambda message: None)
    assert [more.start_seconds(index, epoch) for index in range(1, 4) for epoch in range(3)] == starts


def test_an_epoch_order_holds_every_index_and_changes_with_epoch_and_seed() -> None:
    indices = [3, 5, 8, 13, 21, 34, 55]
    orders = [epoch_order(indices, 0, epoch) for epoch in range(5)]
    assert all(sorted(order) == indices for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    assert epoch_order(indices, 0, 2) == orders[2]
    assert epoch_order(indices, 1, 2) != orders[2]


def test_every_video_of_a_mixed_folder_is_used_or_reported(tmp_path: Path, clips_folder: Path) -> None:
    """The folder mixes sizes, rates, lengths and formats, images, sub-folders, and files that are no video."""
    messages: list[str] = []
    write_caption(write_clip(tmp_path / "slow.mp4", fps=4))
    write_caption(write_clip(tmp_path / "sub" / "deep" / "wide.webm", width=96, height=48, num_frames=17))
    write_caption(write_clip(tmp_path / "image.png", num_frames=1))
    write_caption(write_clip(tmp_path / "moving.gif"))
    write_caption(write_clip(tmp_path / "fast.mp4", fps=30, num_frames=33))
    write_clip(tmp_path / "silent.mp4")
    write_caption(tmp_path / "empty.mp4").touch()
    write_caption(tmp_path / "text.mp4").write_text("this is no video", encoding="utf-8")
    video = (clips_folder / "clips" / "000000.mp4").read_bytes()
    write_caption(tmp_path / "cut.mp4").write_bytes(video[: len(video) // 2])
    (tmp_path / "notes.md").write_text("not a video's suffix", encoding="utf-8")

    folder = open_folder(tmp_path, messages)
    assert [entry.path.name for entry in folder.entries] == [
        "fast.mp4", "image.png", "moving.gif", "slow.mp4", "wide.webm",
    ]  # fmt: skip
    assert {path.name for path, _ in folder.problems} == {"silent.mp4", "empty.mp4", "text.mp4", "cut.mp4"}
    text = "\n".join(messages)
    for path, reason in folder.problems:
        assert path.name in text
        assert reason in text
    assert "no caption; add a row to metadata.csv or write silent.txt beside it" in text
    assert "4 of 9 files" in messages[-1]
    for index, entry in enumerate(folder.entries):
        assert folder.read(index).video.shape == (3, entry.frames, entry.height, entry.width)


def test_a_file_that_fails_while_it_is_read_is_reported_once(clips_folder: Path) -> None:
    messages: list[str] = []
    folder = open_folder(clips_folder, messages)
    folder.report(3, "cannot read it")
    folder.report(3, "cannot read it")
    assert len(messages) == 1
    assert folder.entries[3].path.name in messages[0]
    assert "cannot read it" in messages[0]


def test_a_folder_without_usable_videos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no folder .*nowhere; give one with videos in it and captions beside them"):
        open_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no videos in .*; it may hold \.mp4, "):
        open_folder(tmp_path)
    write_clip(tmp_path / "clip.mp4")
    with pytest.raises(ValueError, match=r"none of the 1 videos in .* can be used: no caption; .*clip\.txt"):
        open_folder(tmp_path)


# --- captions


def test_captions_are_read_from_metadata_first_and_then_from_a_text_file(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "one" / "sub" / "clip.mp4")
    for name in ("two", "three", "four"):
        shutil.copytree(tmp_path / "one", tmp_path / name)
    (tmp_path / "one" / "metadata.csv").write_text(
        'file_name,text\nsub/clip.mp4,"a ""red"" circle, moving"\n', encoding="utf-8"
    )
    row = json.dumps({"file_name": "sub/clip.mp4", "text": "ein grüner Kreis", "extra": 1}, ensure_ascii=False)
    (tmp_path / "two" / "metadata.jsonl").write_text(row + "\n\n", encoding="utf-8")
    write_caption(tmp_path / "three" / "sub" / "clip.mp4", "beside the clip")
    write_caption(tmp_path / "four" / "sub" / "clip.mp4", "beside the clip")
    (tmp_path / "four" / "metadata.csv").write_text("file_name,text\nsub/clip.mp4,in the table\n", encoding="utf-8")
    expected = ['a "red" circle, moving', "ein grüner Kreis", "beside the clip", "in the table"]
    assert clip.is_file()
    for name, text in zip(("one", "two", "three", "four"), expected, strict=True):
        assert open_folder(tmp_path / name).read(0).caption == text


def test_files_with_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    """Excel writes both."""
    write_clip(tmp_path / "clip.mp4")
    (tmp_path / "clip.txt").write_bytes("\ufeffa blue star\r\n".encode())
    assert open_folder(tmp_path).read(0).caption == "a blue star"
    (tmp_path / "metadata.csv").write_bytes("\ufefffile_name,text\r\nclip.mp4,a red circle\r\n".encode())
    assert open_folder(tmp_path).read(0).caption == "a red circle"


VALID_ROW = '{"file_name": "a.mp4", "text": "x"}'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", "file_name,text\na.mp4,red\nb.mp4\n", "row 3: every row needs file_name and text"),
        ("metadata.csv", "file,caption\na.mp4,red\n", "row 2: every row needs file_name and text"),
        ("metadata.csv", "file_name,text\na.mp4,a cat, at night\n", "row 2: it has more cells than the table"),
        ("metadata.csv", f'file_name,text\na.mp4,"{"red " * 40000}\n', "row .*: field larger than field limit"),
        ("metadata.csv", "file_name,text\na.mp4,caf\udce9\n", "is not encoded in UTF-8: .* can't decode byte 0xe9"),
        ("metadata.jsonl", "caf\udce9\n", "is not encoded in UTF-8: .* can't decode byte 0xe9"),
        ("metadata.jsonl", f'{VALID_ROW}\n{{"file_name": "b.mp4"}}\n', "row 2: every row needs file_name and text"),
        ("metadata.jsonl", f'{VALID_ROW}\n\n{{"text": "b"}}\n', "row 3: every row needs file_name and text"),
        ("metadata.jsonl", f'{VALID_ROW}\n{{"file_name": \n', "row 2: it is not JSON"),
        ("metadata.jsonl", '["a.mp4", "x"]\n', "row 1: every row needs file_name and text"),
        ("metadata.jsonl", '{"file_name": "a.mp4", "text": 7}\n', "row 1: every row needs file_name and text"),
    ],
    ids=[
        "short",
        "header",
        "comma",
        "quote",
        "Latin-1",
        "Latin-1 lines",
        "no text",
        "blank",
        "no JSON",
        "list",
        "number",
    ],
)
def test_an_invalid_row_is_named_by_its_number(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=rf"{name} {message}"):
        open_folder(tmp_path)


def test_a_file_beside_a_caption_is_a_clip_unless_a_video_has_that_caption(tmp_path: Path) -> None:
    messages: list[str] = []
    write_clip(tmp_path / "clip.mp4")
    for name in ("clip.json", "clip.srt", "notes.json"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    (tmp_path / "photo.heic").write_bytes(b"no picture that is read")
    for name in ("clip.txt", "photo.txt"):
        (tmp_path / name).write_text("red", encoding="utf-8")
    linked = tmp_path / "elsewhere"
    write_clip(linked / "more.mp4")
    (linked / "more.txt").write_text("blue", encoding="utf-8")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "link").symlink_to(linked, target_is_directory=True)
    folder = open_folder(tmp_path, messages)
    assert {entry.captions for entry in folder.entries} == {("red",), ("blue",)}
    assert [path.name for path, _ in folder.problems] == ["photo.heic"]


def test_a_metadata_row_without_its_file_is_reported(tmp_path: Path) -> None:
    messages: list[str] = []
    write_clip(tmp_path / "here.mp4")
    (tmp_path / "metadata.csv").write_text("file_name,text\nhere.mp4,red\ngone.mp4,blue\n", encoding="utf-8")
    assert len(open_folder(tmp_path, messages).entries) == 1
    assert "gone.mp4" in "\n".join(messages)


# --- the latent cache


def latent_of(cache: LatentCache, encode: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.from_numpy(cache.complete_entry(0, 0, cache.load_entry(0, 0), encode)["latent"]).float()


def test_a_clip_is_encoded_once_and_its_latent_cached(clips_folder: Path, vae: VideoVAE, tmp_path: Path) -> None:
    folder, encoded_videos = open_folder(clips_folder), []

    def encode(video: Tensor) -> Tensor:
        encoded_videos.append(video)
        return vae.encode(video[None])[0]

    cache = LatentCache(folder, "vae", tmp_path / "cache")
    first = latent_of(cache, encode)
    exact = vae.encode(folder.read(0).video[None])[0]
    torch.testing.assert_close(first, exact, atol=5e-3, rtol=1e-3)  # float16 on disk
    assert torch.equal(latent_of(cache, encode), first)
    assert torch.equal(latent_of(LatentCache(folder, "vae", tmp_path / "cache"), encode), first)
    assert len(encoded_videos) == 1
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".shard", ".sqlite"]


def test_another_file_vae_rate_or_size_gives_another_latent(own_clips: Path, vae: VideoVAE, tmp_path: Path) -> None:

    def cache(folder: VideoFolder, vae_id: str = "vae") -> LatentCache:
        return LatentCache(folder, vae_id, tmp_path / "cache")

    def encode(video: Tensor) -> Tensor:
        return vae.encode(video[None])[0]

    folder = open_folder(own_clips)
    before = latent_of(cache(folder), encode)
    path = folder.entries[0].path
    assert cache(folder, "another").key(0, 0) != cache(folder).key(0, 0)
    assert cache(open_folder(own_clips, fps=4.0)).key(0, 0) != cache(folder).key(0, 0)
    assert cache(open_folder(own_clips, max_tokens=9)).key(0, 0) != cache(folder).key(0, 0)
    info = folder.entries[0].info
    stamp = path.stat()
    path.unlink()
    write_clip(path, num_frames=info.num_frames, width=info.width, height=info.height, seed=77)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    after = latent_of(cache(open_folder(own_clips)), encode)
    assert after.shape == before.shape
    assert not torch.allclose(after, before, atol=0.1)


def test_all_epochs_of_a_short_file_share_one_cached_latent(clips_folder: Path, tmp_path: Path) -> None:
    cache = LatentCache(open_folder(clips_folder), "vae", tmp_path)
    assert len({cache.key(0, epoch) for epoch in range(20)}) == 1


# --- crops


def test_crops_have_the_requested_size_and_favour_busy_places() -> None:
    video = torch.arange(64 * 64).reshape(1, 1, 64, 64).float().expand(3, 9, -1, -1)
    busy = torch.zeros(9, 64, 64)
    busy[:, 6:14, 46:54] = 1.0
    crops = list(sample_crops(video, busy, side=16, frames=5, num=200, generator=seeded()))
    assert all(crop.shape == (3, 5, 16, 16) for crop in crops)
    share = sum(bool((crop[0, 0] == 10 * 64 + 50).any()) for crop in crops) / 200
    assert share == pytest.approx(0.47, abs=0.12)  # 65 of 147 draws by weight, 1 in 16 of the others; deviation 0.035


def test_crops_reach_every_pixel_and_shrink_to_a_small_clip() -> None:
    video = torch.arange(32 * 32).reshape(1, 1, 32, 32).float().expand(3, 1, -1, -1)
    options = {"side": 16, "frames": 9, "generator": seeded()}
    crops = sample_crops(video, torch.zeros(1, 32, 32), num=300, **options)  # type: ignore[arg-type]
    assert len(torch.cat([crop[0, 0].flatten() for crop in crops]).unique()) == 32 * 32
    (small,) = sample_crops(video[..., :8, :], torch.zeros(1, 8, 32), num=1, **options)  # type: ignore[arg-type]
    assert small.shape == (3, 1, 8, 16)
