"""A sweep of clips that begin with a picture or a clip: each is that of its own command, and the page says how."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.conftest import seeded
from tests.sweeps import PROMPTS, plan_of
from tests.test_cli import refused
from tests.test_known_command import draw_clip
from videogen.cli.main import sample
from videogen.data.video_io import read_settings, read_video, write_video
from videogen.sampling.known import Known
from videogen.sampling.pipeline import ClipRequest, VideoPipeline
from videogen.sweep.results import read_rows
from videogen.sweep.shared_calls import BatchedRuns


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay a picture, a clip and a mask into the working folder."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (48, 32), "red").save("red.png")
    mask = Image.new("L", (48, 32), 0)
    mask.paste(255, (16, 8, 32, 24))
    mask.save("mask.png")
    write_video(Path("given.mp4"), draw_clip(9), fps=12.0)


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("flags", "axes"),
    [
        (["--image", "red.png", "--image", "red.png@last"], ["steps=1,2", "guidance=1,3"]),
        (["--video", "given.mp4", "--mask", "mask.png"], ["steps=1,2", "first_block_cache=0,0.1"]),
        (["--video", "given.mp4"], ["strength=0.5,1", "sampler=euler,dpmpp_2m_sde"]),
    ],
    ids=["image", "mask", "strength"],
)
def test_a_run_is_the_clip_of_its_command_with_what_was_given(
    flags: list[str], axes: list[str], checkpoint: Path
) -> None:
    words = ["a red circle", "--model", str(checkpoint), "--steps", "2", "--dtype", "float32", *flags]
    assert sample([*words, "--sweep", *axes, "--reference", "4", "--out", "s"]) == 0
    rows, given = (
        list(read_rows(Path("s")).values()),
        ["red.png", "red.png@last"] if "--image" in flags else "given.mp4",
    )
    assert len(rows) == 4
    for row in rows:
        assert row["error"] is None
        command = shlex.split(str(row["command"]))[2:]
        assert sample([*command, "--out", "alone.mp4", "--overwrite"]) == 0
        together, alone = (read_video(Path(path)).float() for path in (f"s/{row['clip']}", "alone.mp4"))
        assert (together - alone).abs().mean() < 0.5  # to rounding in a pack, which H.264 may quantise otherwise
        recorded = read_settings(Path(f"s/{row['clip']}"))
        is_free = row["strength"] == 1 and len(flags) == 2  # of the video
        assert recorded.get(flags[0][2:]) == (None if is_free else given)
    for path in Path("s/clips").iterdir():
        assert read_video(path).shape == (9, 32, 48, 3)


def test_the_same_noise_beside_a_picture_at_another_frame_is_another_question(pipeline: VideoPipeline) -> None:
    """Half a second is the fifth frame of 8 a second and the ninth of 16, in the second and the third latent frame."""
    picture = Known.at(torch.randint(256, (32, 32, 3), generator=seeded(0), dtype=torch.uint8), 0.5)
    runs = plan_of(["fps=8,16", "frames=9", "guidance=1,2"], prompts=PROMPTS).runs()
    batch = BatchedRuns(pipeline, tokens_per_pack=40 * 8, known=[picture])
    latents = {}
    for pack in batch.packs(runs):
        for run, result in zip(pack, batch.denoise(pack), strict=True):
            assert result.latent is not None, result.error
            (alone,) = pipeline.sample([ClipRequest(run.prompt, run.seed, [picture])], run.config)
            torch.testing.assert_close(result.latent, alone, atol=1e-4, rtol=0)  # float32's over the steps
            latents[run.config.fps, run.config.guidance, run.prompt] = result.latent
    slow, fast = (latents[fps, 2.0, PROMPTS[0]] for fps in (8.0, 16.0))
    assert not torch.allclose(slow, fast, atol=0.1)


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--video", "given.mp4", "--extend", "1", "--sweep", "steps=1,2"], "--extend makes one in windows"),
        (["--video", "given.mp4", "--sweep", "steps=1,2"], "say what to do with it"),
        (["--image", "red.png@1", "--sweep", "frames=9,5"], "red.png at 1 s lies behind a clip of 5 frames"),
        (["--video", "given.mp4", "--sweep", "strength=0.5,1", "size=48x32,32x32"], "a sweep says 32x32"),
    ],
)
def test_what_a_sweep_cannot_make_is_refused_before_the_model_is_loaded(
    flags: list[str],
    message: str,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("videogen.cli.sweep.load", lambda *args: pytest.fail("the model was loaded"))
    words = ["a red circle", "--model", str(checkpoint), "--steps", "2", "--out", "s"]
    refused(capsys, sample([*words, *flags]), message)
    assert not Path("s").exists()


@pytest.mark.usefixtures("files")
def test_a_folder_of_another_picture_is_another_sweep(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["a red circle", "--model", str(checkpoint), "--sweep", "steps=1,2", "--reference", "0", "--out", "s"]
    assert sample([*words, "--image", "red.png"]) == 0
    Image.new("RGB", (48, 32), "blue").save("red.png")
    capsys.readouterr()
    refused(capsys, sample([*words, "--image", "red.png"]), "another sweep (its image_sha256 differs")
