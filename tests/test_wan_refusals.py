"""Folders, images and sizes that a Wan model cannot use are refused in one sentence each."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline

from tests.test_wan_pipeline import PROMPT, SETTINGS, draw_image
from tests.test_wan_pipeline import folders as folders
from tests.test_wan_pipeline import without_ftfy as without_ftfy
from videogen.cli.main import sample
from videogen.models.checkpoint_config import read_checkpoint_info
from videogen.sampling.known import Known
from videogen.sampling.pipeline import ClipRequest, VideoPipeline
from videogen.sweep.plan import Run
from videogen.sweep.shared_calls import BatchedRuns


@pytest.mark.parametrize(
    ("kind", "images", "message"),
    [
        ("T2V 2.1", [Known.first(draw_image(0))], "makes clips from prompts alone, and other clips of a video"),
        ("I2V 2.1", [], r"begins with an image; give one for every clip \(--image\)"),
        (
            "I2V 2.1",
            [Known.at(draw_image(0), 0.1)],
            "takes an image as its first frame, and may take another as its last",
        ),
        ("I2V A14B", [Known.clip([draw_image(0)] * 5)], "takes an image as its first frame"),
        (
            "FLF2V 2.1",
            [Known.first(draw_image(0))],
            "reads 20 rows of a first and a last image a clip, got 10; give it",
        ),
    ],
)
def test_images_that_the_model_does_not_take_are_refused(
    kind: str, images: list[Known], message: str, folders: dict[str, tuple[Path, DiffusionPipeline]]
) -> None:
    with pytest.raises(ValueError, match=message):
        VideoPipeline.from_pretrained(folders[kind][0]).sample([ClipRequest(PROMPT, 5, images)], SETTINGS)


@pytest.mark.parametrize(
    ("kind", "names", "message"),
    [
        ("T2V 2.1", ["whole.png"], "makes clips from prompts alone"),
        ("FLF2V 2.1", ["whole.png"], "makes what lies between two images; give the last too (--image FILE@last)"),
        ("I2V 2.1", ["whole.png@0.5"], "takes an image as its first frame, and may take another as its last"),
        ("I2V 2.1", ["cut.png"], "cut.png: Pillow finds no whole picture in it"),
    ],
)
def test_unusable_images_are_refused_before_the_model_is_loaded(
    kind: str,
    names: list[str],
    message: str,
    folders: dict[str, tuple[Path, DiffusionPipeline]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("videogen.cli.sample.load", lambda *args: pytest.fail("the model was loaded"))
    draw_image(0).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    flags = [("--image", str(tmp_path / name)) for name in names]
    words = [PROMPT, "--model", str(folders[kind][0]), "--size", "32x64", "--frames", "9", "--dry-run"]
    assert sample([*words, *(word for pair in flags for word in pair)]) == 2
    assert message in capsys.readouterr().err


def test_a_sweep_of_an_image_to_video_model_fails_for_want_of_an_image(
    folders: dict[str, tuple[Path, DiffusionPipeline]],
) -> None:
    (result,) = BatchedRuns(VideoPipeline.from_pretrained(folders["I2V A14B"][0])).denoise([Run(PROMPT, 5, SETTINGS)])
    assert result.error == "this model begins with an image; give one for every clip (--image)"


def test_a_size_that_is_no_multiple_of_the_stride_is_refused(
    folders: dict[str, tuple[Path, DiffusionPipeline]],
) -> None:
    with pytest.raises(ValueError, match="multiples of 32, got 48x32; try 32x32 or 64x32"):
        VideoPipeline.from_pretrained(folders["TI2V 5B"][0]).sample(
            [ClipRequest(PROMPT, 5)], replace(SETTINGS, size="48x32")
        )
    assert sample([PROMPT, "--model", str(folders["TI2V 5B"][0]), "--size", "48x32", "--dry-run"]) == 2


BROKEN: list[tuple[str, object, str]] = [
    ("_class_name", "StableDiffusionPipeline", "holds a StableDiffusionPipeline; what runs here is a VideoPipeline, "),
    ("vae", ["diffusers", "AutoencoderKL"], "vae is a AutoencoderKL; what runs here is one of "),
    ("transformer", ["diffusers", "LTXVideoTransformer3DModel"], "transformer is a LTXVideoTransformer3DModel; what"),
]


@pytest.mark.parametrize(("key", "value", "message"), BROKEN, ids=["family", "vae", "transformer"])
def test_a_pipeline_of_another_family_is_refused_by_its_class(
    key: str, value: object, message: str, folders: dict[str, tuple[Path, DiffusionPipeline]], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["T2V 2.1"][0], tmp_path / "copy"))
    index = json.loads((folder / "model_index.json").read_text()) | {key: value}
    (folder / "model_index.json").write_text(json.dumps(index))
    for load in (VideoPipeline.load, VideoPipeline.from_pretrained, read_checkpoint_info):
        with pytest.raises(ValueError, match=message):
            load(folder)


def test_a_missing_shard_is_refused_by_its_name(
    folders: dict[str, tuple[Path, DiffusionPipeline]], tmp_path: Path
) -> None:
    folders["T2V 2.1"][1].save_pretrained(str(tmp_path), max_shard_size="20KB")
    shards = sorted((tmp_path / "transformer").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    VideoPipeline.load(tmp_path)
    shards[1].unlink()
    with pytest.raises(ValueError, match=f"transformer lacks {shards[1].name}, one of the files of its weights"):
        VideoPipeline.load(tmp_path)


def test_an_unknown_scheduler_is_refused(folders: dict[str, tuple[Path, DiffusionPipeline]], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["T2V 2.1"][0], tmp_path / "copy"))
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "DDIMScheduler"}))
    with pytest.raises(ValueError, match="the scheduler is a DDIMScheduler; what runs here is one of UniPC"):
        read_checkpoint_info(folder)
