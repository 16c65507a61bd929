"""The mended copy of a folder: what was found is gone, what was not is there, and the folder itself is as it was."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.bad_files import CASES
from tests.test_judgement import PATCH, bad_files, examined  # noqa: F401
from tests.test_video_io import H264, make_video, psnr
from videogen.cli.main import main
from videogen.config.train import DataConfig
from videogen.data.folder import VideoFolder
from videogen.data.frame_findings import judge_frames
from videogen.data.tone_mapping import compress, decode_pq, encode_pq, tone_map
from videogen.data.video_io import probe, read_video
from videogen.doctor import mend
from videogen.doctor.examine import Examination, ExaminedClip, examine
from videogen.doctor.mend import Mended, mend_folder

MENDED_KINDS = {
    "rotated", "oblong_pixels", "interlaced", "hdr", "bars", "jump", "variable_rate", "cuts", "size_change", "cut_off",
    "other_container", "name",
}  # fmt: skip

MIN_PSNR = 25  # of a test picture of sharp colours after H.264 of 4:2:0 twice


def without_duplicates(clip: ExaminedClip) -> ExaminedClip:
    """Forget that a clip looks like another, so that it is mended as well."""
    findings = tuple(finding for finding in clip.judgement.findings if finding.kind != "duplicate")
    return clip._replace(judgement=clip.judgement._replace(findings=findings))


@pytest.fixture(scope="module")
def mended(
    examined: Examination,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, Mended]]:
    """Mend every case."""
    out = tmp_path_factory.mktemp("mended") / "copy"
    found = replace(examined, clips=[without_duplicates(clip) for clip in examined.clips])
    results = mend_folder(found, out)
    return out, {result.source.relative_to(examined.folder).as_posix(): result for result in results}


def outputs_of(mended: tuple[Path, dict[str, Mended]], name: str) -> list[Path]:
    out, results = mended
    return [out / path for path in results[name].outputs]


@pytest.mark.parametrize("name", [name for name, (_, kinds) in CASES.items() if kinds & MENDED_KINDS])
def test_what_was_found_is_mended(mended: tuple[Path, dict[str, Mended]], name: str) -> None:
    outputs = outputs_of(mended, name)
    assert outputs
    for path in outputs:
        judgement = judge_frames(path)
        assert judgement.info is not None
        assert {finding.kind for finding in judgement.findings} & MENDED_KINDS == set(), judgement.findings
        assert path.name.isprintable()
        assert ":" not in path.name


def test_every_file_is_copied_mended_or_left_out_with_a_reason(
    mended: tuple[Path, dict[str, Mended]],
    bad_files: Path,  # noqa: F811
) -> None:
    out, results = mended
    names = {name for name in CASES if not name.endswith(".txt")}
    assert results.keys() == names
    unusable = {name for name in names if CASES[name][1] & {"empty", "not_video", "damaged", "no_index", "no_picture"}}
    for name, result in results.items():
        assert bool(result.outputs) == (not result.words.startswith("left out: "))
        assert name not in unusable or not result.outputs
    assert (out / "good.webm").read_bytes() == (bad_files / "good.webm").read_bytes()
    written = [path.relative_to(out) for path in out.rglob("*") if path.is_file()]
    listed = [path for result in results.values() for path in result.outputs]
    assert sorted(written) == sorted([*listed, Path("metadata.csv")])
    with (out / "metadata.csv").open(newline="", encoding="utf-8") as file:
        assert {row["file_name"]: row["text"] for row in csv.DictReader(file)} == dict.fromkeys(
            (path.as_posix() for path in listed), "a test picture"
        )


def test_training_reads_the_copy(mended: tuple[Path, dict[str, Mended]]) -> None:
    folder = VideoFolder(DataConfig(folder=mended[0], val_clips=0), PATCH, log=lambda message: None)
    assert {path.name for path, _ in folder.problems} == {"oblong.png"}
    for index, entry in enumerate(folder.entries):
        assert folder.read(index).video.shape == (3, entry.frames, entry.height, entry.width)


def test_mended_pictures_are_those_that_were_meant(
    mended: tuple[Path, dict[str, Mended]],
    bad_files: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    (upright,) = outputs_of(mended, "rotated.mp4")
    assert psnr(read_video(upright), read_video(bad_files / "rotated.mp4")) > MIN_PSNR
    (square,) = outputs_of(mended, "oblong pixels.mp4")
    assert psnr(read_video(square), read_video(bad_files / "oblong pixels.mp4")) > MIN_PSNR
    plain = read_video(make_video(tmp_path / "plain.mp4", size="96x64", seconds=2))
    for name in ("letterbox.mp4", "pillarbox.mp4", "windowbox.mp4"):
        (trimmed,) = outputs_of(mended, name)
        assert psnr(read_video(trimmed), plain) > MIN_PSNR
    (on_time,) = outputs_of(mended, "late.mp4")
    assert probe(on_time)[2:] == (24, pytest.approx(24), pytest.approx(1))
    assert psnr(read_video(on_time), read_video(bad_files / "late.mp4")) > MIN_PSNR
    (constant,) = outputs_of(mended, "variable.mp4")
    assert (
        psnr(read_video(constant), read_video(bad_files / "variable.mp4", fps=24)[: probe(constant).num_frames])
        > MIN_PSNR
    )
    for name in ("two sizes.mp4", "two sizes.mkv"):
        first, second = (probe(path) for path in outputs_of(mended, name))
        assert (first[:2], second[:3]) == ((96, 64), (64, 96, 24))
        assert first.num_frames in (23, 24)  # FFmpeg's decoder may lose the last picture before a change
    scenes = [read_video(path) for path in outputs_of(mended, "cut.mp4")]
    assert [len(scene) for scene in scenes] == [24, 24]
    assert psnr(torch.cat(scenes), read_video(bad_files / "cut.mp4")) > MIN_PSNR
    (turned,) = outputs_of(mended, "rotated.jpg")
    assert torch.equal(read_video(turned), read_video(bad_files / "rotated.jpg"))


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """Make a folder with a clip and a smaller copy of it, each with two captions."""
    folder = tmp_path / "pair"
    folder.mkdir()
    make_video(folder / "large.mp4", size="128x96")
    make_video(folder / "small.mp4", *H264, "-vf", "scale=64:48", size="128x96")
    rows = "file_name,text\n" + "".join(f"{n}.mp4,{t}\n" for n in ("large", "small") for t in ("one", "two"))
    (folder / "metadata.csv").write_text(rows, encoding="utf-8")
    return folder


def test_the_command_says_what_it_did_and_keeps_all_captions(
    pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in pair.iterdir()}
    assert main(["doctor", str(pair), "--fix", str(tmp_path / "new" / "copy"), "--quiet"]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ["small.mp4: left out: it looks like large.mp4", "1 files copied as they are"]
    assert {path.name: path.read_bytes() for path in pair.iterdir()} == before
    assert main(["doctor", str(tmp_path / "new" / "copy"), "--quiet", "--json"]) == 0
    (file,) = json.loads(capsys.readouterr().out)["files"]
    assert (file["path"], file["captions"]) == ("large.mp4", 2)
    assert main(["doctor", str(pair), "--fix", str(tmp_path / "json"), "--quiet", "--json"]) == 3
    assert [row["outputs"] for row in json.loads(capsys.readouterr().out)["mended"]] == [["large.mp4"], []]


def test_a_copy_is_never_written_over_or_into_a_folder(pair: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for out, message in ((pair, "exists already"), (pair / "copy", "--fix writes beside the folder, not into it")):
        assert main(["doctor", str(pair), "--fix", str(out), "--quiet"]) == 2
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in pair.iterdir()) == ["large.mp4", "metadata.csv", "small.mp4"]


def test_an_interrupted_copy_leaves_nothing(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    begun: list[object] = []
    mend_one = mend.mend_clip
    monkeypatch.setattr(mend, "mend_clip", lambda *args: begun.append(args) or mend_one(*args))
    found = examine(DataConfig(folder=pair), PATCH)
    many = replace(found, clips=[without_duplicates(clip) for clip in found.clips] * 50)
    with pytest.raises(KeyboardInterrupt):
        mend_folder(many, tmp_path / "copy", on_file=stop)
    assert 1 <= len(begun) < 50  # the others had not begun
    monkeypatch.setattr(mend.shutil, "copyfile", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        mend_folder(found, tmp_path / "copy")
    assert [path.name for path in tmp_path.iterdir()] == ["pair"]


def test_a_file_that_goes_away_meanwhile_is_named(pair: Path, tmp_path: Path) -> None:
    found = examine(DataConfig(folder=pair), PATCH)
    (pair / "large.mp4").unlink()
    results = mend_folder(found, tmp_path / "copy")
    assert [result.outputs for result in results] == [(), ()]
    assert "does not exist" in results[0].words


# --- tone mapping


def test_pq_is_that_of_the_standard() -> None:
    """BT.2408, table 1: 203 nits are 58% of a PQ signal, 1000 nits 75%."""
    assert encode_pq(np.array([203.0, 1000.0])) == pytest.approx([0.58, 0.75], abs=0.003)
    nits = np.geomspace(0.1, 10000, 50)
    assert decode_pq(encode_pq(nits)) == pytest.approx(nits, rel=1e-6)


def test_dark_pixels_keep_their_brightness_and_lights_are_compressed_in_order() -> None:
    nits = np.geomspace(0.01, 1000, 100)
    mapped = compress(nits)
    assert mapped[nits < 80] == pytest.approx(nits[nits < 80], rel=1e-3)
    assert (np.diff(mapped) > 0).all()
    assert mapped[-1] == pytest.approx(203, rel=1e-3)


@pytest.mark.parametrize("transfer", ["PQ", "HLG"])
def test_gray_stays_gray_from_black_to_white(transfer: str) -> None:
    signal = np.linspace(0, encode_pq(np.float32(1000)) if transfer == "PQ" else 1, 64)
    mapped = tone_map(np.repeat(signal[:, None], 3, axis=1).astype(np.float32), transfer).astype(int)
    assert np.ptp(mapped, axis=1).max() <= 1
    assert (np.diff(mapped[:, 0]) >= 0).all()
    assert (mapped[0, 0], mapped[-1, 0]) == (0, 255)
