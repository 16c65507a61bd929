"""Each word of other programs that is asked for has a row in the bench of borders, and gets its answer."""

from __future__ import annotations

import json
import re

import pytest

from tests.bench import border_calls, border_files, border_install
from tests.bench.border_desk import DIFFERS, REFUSED, TAKEN, Desk, DifferenceError, Row, ask, is_as_wanted
from tests.bench.flags import BENCH

ROWS = (*border_calls.ROWS, *border_files.ROWS, *border_install.ROWS)
QUICK = ("diffusers: the call", "brought along: tables", "brought along: devices", "libraries: video")
# What those who come from other programs have in their fingers, and what they look for.
ASKED = [
    "prompt:",
    "negative_prompt",
    "height",
    "width",
    "num_frames",
    "num_inference_steps",
    "guidance_scale",
    "guidance_scale_2",
    "num_videos_per_prompt",
    "generator",
    "latents",
    "prompt_embeds",
    "negative_prompt_embeds",
    "output_type:",
    "return_dict=False",
    "callback_on_step_end",
    "callback_on_step_end_tensor_inputs:",
    "_interrupt",
    "attention_kwargs:",
    "max_sequence_length",
    "encode_prompt",
    "set_progress_bar_config",
    ".frames",
    "prepare_latents",
    "export_to_video(list(clip.numpy()))",
    "pipe.scheduler",
    "vae.enable_tiling()",
    "vae.enable_slicing()",
    "transformer.enable_cache(...)",
    "trust_remote_code=True",
    "notebook",
    "clip.save",
    "from_single_file",
    "attn_processors",
    "fuse_qkv_projections",
    "tiled_decode",
    "latent_dist",
    "CLIPVisionModelWithProjection",
    "image_dim",
    "compile_repeated_blocks(fullgraph=True)",
    "T5EncoderModel",
    "variant:",
    "boundary_ratio=1.0",
    "num_frames=7,",
    "HF_HUB_OFFLINE=1",
    "local_files_only=True",
    "revision",
    "ComfyUI",
    "rank",
    "alpha",
    "trigger",
    "ss_*",
    "modelspec.*",
    "adapter",
    "umask's",
    "push_to_hub",
    "VAE",
    "LoRA",
    "checkpoint",
    "parameters",
    "PNG",
    "caption",
    "text",
    "file_name",
    "video",
    "video_path",
    "media_path",
    "videos.txt",
    "[[data.sets]]",
    "musubi-tuner's",
    "diffusion-pipe's",
    "--num_inference_steps",
    "--height",
    "--width",
    "--guidance_scale",
    "--cfg",
    "--flow_shift",
    "--output_dir",
    "--learning_rate",
    "--report_to",
    "--w",
    "--h",
    "--n",
    "--s",
    "--d",
    "auto",
    "cuda:1",
    "xpu",
    "float16",
    "tensorboard",
    "wandb,",
    "trackio,",
    "mlflow,",
    "8-bit",
    "--gradient_accumulation_steps",
    "--fp8_base",
    "run.keep",
    "run.resume",
    "75",
    "PyAV,",
    "AV1",
    "HEVC",
    "decord",
    "torchcodec",
    "estimates",
    "completion",
    "--",
    "sweep",
    "handler",
    "Student's",
    "property",
    "renamed",
    "schema",
    "clone",
    "dir(videogen)",
    "wheel:",
    "judge",
    "toybox",
    "huggingface-hub,",
    "ftfy",
    "regex,",
    "bitsandbytes",
    "constraints",
    "lowest",
    "py.typed",
    "--version",
    "videogen",
    "classifiers,",
    "URLs",
    "NO_COLOR",
    "-v",
    "affinity",
    "CHANGELOG",
    "--dry-run",
]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(tmp_path_factory.mktemp("desk"))


def test_every_word_that_is_asked_for_has_a_row() -> None:
    tried = " ".join(row.tried for row in ROWS)
    assert [word for word in ASKED if not re.search(rf"(?<![\w-]){re.escape(word)}(?!\w)", tried)] == []
    assert len({(row.part, row.tried) for row in ROWS}) == len(ROWS)


def test_the_published_answers_are_those_of_the_rows_and_none_failed() -> None:
    result = json.loads((BENCH / "borders.json").read_text(encoding="utf-8"))
    assert [(row["part"], row["tried"]) for row in result["answers"]] == [(row.part, row.tried) for row in ROWS]
    for row, published in zip(ROWS, result["answers"], strict=True):
        assert is_as_wanted(row, published["answer"]), published
        assert row.says in published["said"] or published["answer"] == TAKEN


@pytest.mark.parametrize("row", [row for row in ROWS if row.part in QUICK], ids=lambda row: row.tried[:60])
def test_a_word_gets_its_answer(row: Row, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk.place)
    answer = ask(row, desk)
    assert is_as_wanted(row, answer.answer), answer


@pytest.mark.parametrize(
    ("error", "says", "answer"),
    [
        (ValueError("--cfg is --guidance here"), "--guidance", REFUSED),
        (ValueError("something is wrong"), "--guidance", "failed"),
        (DifferenceError("in another way"), "another", DIFFERS),
        (TypeError("unexpected keyword"), "", "failed"),
        (None, "--guidance", TAKEN),
    ],
)
def test_an_answer_is_what_a_trial_does(error: Exception | None, says: str, answer: str, desk: Desk) -> None:
    def trial(desk: Desk) -> None:
        if error is not None:
            raise error

    assert ask(Row("part", "word", trial, says=says), desk).answer == answer


def test_a_refusal_that_is_taken_in_silence_is_not_as_wanted() -> None:
    assert not is_as_wanted(Row("", "", print, REFUSED), TAKEN)
    assert is_as_wanted(Row("", "", print, DIFFERS), TAKEN)
