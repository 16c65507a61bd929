"""The commands as a user types them: their files, their output and their exit status."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from videogen.cli.main import main, sample
from videogen.cli.train import train
from videogen.data.video_io import probe, read_settings

ROOT = Path(__file__).parents[1]
QUICK = ["--steps", "2", "--size", "32x32", "--frames", "5"]


def refused(capsys: pytest.CaptureFixture[str], status: int, *messages: str, code: int = 2) -> None:
    """Check that a command printed one line on stderr, which holds these messages, and ended with this status."""
    output = capsys.readouterr()
    assert status == code, output.err
    assert output.out == ""
    assert len(output.err.strip().splitlines()) == 1, output.err
    for message in messages:
        assert message in output.err, output.err


def test_a_prompt_becomes_a_clip_that_carries_its_settings(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "clip.mp4"
    assert sample(["a red circle", "--out", str(out), "--seed", "7", "--model", str(checkpoint), *QUICK]) == 0
    assert str(out) in capsys.readouterr().out
    info = probe(out)
    assert (info.width, info.height, info.num_frames) == (32, 32, 5)
    settings = read_settings(out)
    assert settings["prompt"] == "a red circle"
    assert settings["seed"] == 7
    assert settings["steps"] == 2
    assert settings["checkpoint"]["name"] == checkpoint.name  # type: ignore[index]
    assert [path.name for path in out.parent.iterdir()] == ["clip.mp4"]


def test_from_repeats_a_clip_byte_for_byte_and_flags_override_its_settings(checkpoint: Path, tmp_path: Path) -> None:
    first, again, other = (tmp_path / f"{name}.mp4" for name in ("first", "again", "other"))
    model = ["--model", str(checkpoint)]
    assert sample(["a blue star", "--seed", "3", "--out", str(first), *model, *QUICK]) == 0
    assert sample(["--from", str(first), "--out", str(again), *model]) == 0
    assert again.read_bytes() == first.read_bytes()
    assert sample(["--from", str(first), "--steps", "3", "--out", str(other), *model]) == 0
    assert read_settings(other)["steps"] == 3
    assert read_settings(other)["seed"] == 3


def test_files_are_named_after_prompt_and_seed(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["a red circle", "a blue star", "--num", "2", "--out", str(tmp_path), "--model", str(checkpoint), "--json"]
    assert sample([*words, *QUICK]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(Path(row["path"]).name for row in rows) == [
        "a-blue-star-0.mp4",
        "a-blue-star-1.mp4",
        "a-red-circle-0.mp4",
        "a-red-circle-1.mp4",
    ]


@pytest.mark.parametrize("suffix", [".gif", ".webm", ".png"])
def test_gif_webm_and_png_are_written_with_their_settings(suffix: str, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / f"clip{suffix}"
    frames = "1" if suffix == ".png" else "5"
    words = ["a red circle", "--out", str(out), "--model", str(checkpoint), "--steps", "1", "--size", "32x32"]
    assert sample([*words, "--frames", frames]) == 0
    assert (probe(out).width, probe(out).num_frames) == (32, int(frames))
    assert read_settings(out)["prompt"] == "a red circle"


def test_rows_of_a_prompts_file_override_the_settings_of_the_command(checkpoint: Path, tmp_path: Path) -> None:
    table = tmp_path / "prompts.csv"
    table.write_text(
        'prompt,seed,steps,size,negative\n"a red circle, alone",4,1,32x48,7\na blue star,,,,\n', encoding="utf-8"
    )
    out = tmp_path / "out"
    assert sample(["--prompts", str(table), "--out", str(out), "--model", str(checkpoint), *QUICK]) == 0
    first, second = read_settings(out / "a-red-circle-alone-4.mp4"), read_settings(out / "a-blue-star-0.mp4")
    assert first["negative"] == "7"
    assert (first["steps"], first["size"], second["steps"], second["size"]) == (1, "32x48", 2, "32x32")


def test_save_latents_writes_the_latent_next_to_the_clip(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "clip.mp4"
    assert sample(["x", "--out", str(out), "--model", str(checkpoint), "--save-latents", *QUICK]) == 0
    assert load_file(tmp_path / "clip.safetensors")["latent"].shape[1:] == (2, 4, 4)


def test_a_dry_run_prints_tokens_evaluations_and_memory_and_writes_nothing(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["x", "--out", str(tmp_path / "clip.mp4"), "--model", str(checkpoint), "--dry-run", "--json", *QUICK]
    assert sample(words) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["tokens"] == 8
    assert row["evaluations"] == 4
    assert row["memory_gb"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x", "--stpes", "3"], "did you mean '--steps'"),
        (["x", "--steps", "-3"], "steps must be above 0, got -3"),
        (["x", "--steps", "many"], "many"),
        (["x", "--size", "60x64"], "try 48x64 or 64x64"),
        (["x", "--size", "big"], "WIDTHxHEIGHT"),
        (["x", "--frames", "16"], "try 13 or 17"),
        (["x", "--sampler", "eular"], "euler, heun, dpmpp_2m"),
        (["x", "--guidance", "-1"], "guidance must be 0 or more"),
        (["x", "--num", "0"], "num must be at least 1"),
        (["x", "--out", "clip.avi"], ".mp4, .mov, .mkv, .webm, .gif, .png"),
        (["x", "y", "--out", "clip.mp4"], "one file for 2 clips"),
        (["x", "--out", "clip.png"], "--frames 1"),
        (["x", "--out", "clip.gif", "--fps", "120"], "fps of a .gif must be above 0 and at most 100"),
        (["x", "--device", "cuda"], "--device cpu"),
        (["x", "--offload", "model"], "leave it out with --device cpu"),
        (["x", "--image", "missing.png"], "there is no file missing.png; give another with --image"),
        (["x", "--image", "missing.png@later"], "behind the @ stands first, last or a time in seconds, got 'later'"),
        (["x", "--seed", str(2**64)], "seed must be a whole number from -2^63 to 2^64 - 1"),
        (["x", "--lora", "missing.safetensors"], "there is no LoRA missing.safetensors"),
        (["--prompts", "missing.txt"], "no prompts file"),
        ([], "give a prompt"),
    ],
)
def test_a_wrong_flag_is_refused_in_one_sentence(
    words: list[str], message: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "cuda" in words and torch.cuda.is_available():
        words = ["x", "--device", "mps"]
    refused(capsys, sample([*words, "--model", str(checkpoint)]), message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a", "steps": 2}\n{"steps": 4}\n', "row 2: every row needs a prompt"),
        ('{"prompt": "a", "stepz": 2}\n', "row 1: unknown column 'stepz'; did you mean 'steps'"),
        ('{"prompt": "a", "steps": "two"}\n', "row 1: steps must be of type int"),
        ('{"prompt": "a"}\n{prompt\n', "row 2:"),
    ],
)
def test_an_invalid_row_of_a_prompts_file_is_named_by_its_number(
    text: str, message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text, encoding="utf-8")
    refused(capsys, sample(["--prompts", str(path), "--model", str(checkpoint)]), message)


def test_an_existing_file_is_not_overwritten_without_the_flag(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "clip.mp4"
    out.write_text("precious", encoding="utf-8")
    refused(capsys, sample(["x", "--out", str(out), "--model", str(checkpoint), *QUICK]), "exists; add --overwrite")
    assert out.read_text(encoding="utf-8") == "precious"


def test_a_missing_checkpoint_is_refused_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, sample(["x", "--model", str(tmp_path / "none")]), "no checkpoint folder")
    refused(capsys, sample(["x", "--model", str(tmp_path)]), "model_index.json")


@pytest.mark.parametrize(
    ("change", "message"), [("drop", "lacks proj_out.bias"), ("add", "has an extra weight surplus")]
)
def test_a_checkpoint_with_a_missing_or_extra_weight_is_refused(
    change: str, message: str, own_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = next((own_checkpoint / "transformer").glob("*.safetensors"))
    weights = load_file(path)
    weights = {k: v for k, v in weights.items() if k != "proj_out.bias"} if change == "drop" else weights
    save_file(weights if change == "drop" else weights | {"surplus": torch.zeros(1)}, path, metadata={"format": "pt"})
    refused(capsys, sample(["x", "--model", str(own_checkpoint), *QUICK]), message)


def test_latents_that_are_not_finite_fail_before_a_file_is_written(own_checkpoint: Path, tmp_path: Path) -> None:
    path = next((own_checkpoint / "transformer").glob("*.safetensors"))
    weights = load_file(path)
    weights["proj_out.bias"] = torch.full_like(weights["proj_out.bias"], float("nan"))
    save_file(weights, path, metadata={"format": "pt"})
    out = tmp_path / "out"
    assert sample(["x", "--out", str(out / "clip.mp4"), "--model", str(own_checkpoint), *QUICK]) == 1
    assert not out.exists()


def test_a_full_disk_fails_without_a_traceback_and_leaves_no_file(checkpoint: Path, tmp_path: Path) -> None:
    words = ["x", "--out", str(tmp_path / "o" / "clip.mp4"), "--model", str(checkpoint), *QUICK]
    code = (  # SIGXFSZ would end the process at the limit; ignored, the write fails as on a full disk.
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "import videogen.sampling.pipeline, videogen.cli.main; resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500));"
        f"raise SystemExit(videogen.cli.main.sample({words!r}))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 1, process.stderr
    assert "could not write" in process.stderr
    assert "Traceback" not in process.stderr
    assert not list((tmp_path / "o").glob("*"))


def test_ctrl_c_exits_with_130_and_leaves_no_file(checkpoint: Path, tmp_path: Path) -> None:
    words = ["x", "--out", str(tmp_path / "clip.mp4"), "--model", str(checkpoint), "--steps", "100000"]
    process = subprocess.Popen([sys.executable, "sample.py", *words], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    time.sleep(12)  # Loading takes some seconds, and the signal should arrive while the clip is denoised.
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []


def test_help_imports_neither_torch_nor_the_other_slow_libraries() -> None:
    code = (
        "import sys, videogen.cli.main\n"
        "try: videogen.cli.main.sample(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'decord'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs a folder"),
        (["configs/none.toml"], "no config file"),
        (["configs/folder-vae.toml", "--run.stepz", "3"], "did you mean '--run.steps'"),
        (["configs/folder-vae.toml", "--optim.lr", "0"], "lr must be above 0"),
        (["configs/folder-vae.toml", "--data", "no-such-folder"], "no folder no-such-folder"),
    ],
)
def test_a_wrong_training_command_is_refused_in_one_sentence(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    refused(capsys, train(words), message)


def build_dit_command(checkpoint: Path, out: Path, *flags: str) -> list[str]:
    """Build the words of train.py that train the toybox recipe's DiT on the parts of a checkpoint."""
    words = ["--dit.vae", str(checkpoint), "--dit.text", str(checkpoint), "--run", str(out / "run"), *flags]
    return [str(ROOT / "configs" / "toybox-dit.toml"), *words]


def test_a_dry_run_of_training_prints_clips_packs_and_memory_and_writes_nothing(
    clips_folder: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(clips_folder), "--data.toybox", "0", "--data.val-clips", "2", "--data.token-budget", "160"]
    words = build_dit_command(checkpoint, tmp_path, *data, "--dit.patches", "1x1x1", "0.7")
    assert train([*words, "--dry-run"]) == 0
    table = capsys.readouterr().out
    assert train([*words, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert sum(row["clips"] for row in plan["clips"]) == 10
    videos = [probe(path) for path in clips_folder.rglob("*.mp4")]
    assert {(row["width"], row["height"], row["frames"]) for row in plan["clips"]} == {
        (video.width, video.height, video.num_frames) for video in videos
    }
    for row in plan["clips"]:
        assert row["tokens"] == row["width"] // 16 * (row["height"] // 16) * (1 + (row["frames"] - 1) // 4)
        assert f"{row['width']}x{row['height']}" in table
    assert 0.5 < plan["fill"] <= 1
    assert plan["tokens"] == round(plan["fill"] * plan["steps_per_epoch"] * 160)
    assert plan["more_steps"]["1x1x1"] > 3 * plan["steps_per_epoch"] - 3
    assert list(plan["more_steps"]) == ["1x1x1"]
    assert f"{plan['tokens']} tokens to train on" in table
    assert f"{plan['steps_per_epoch']} packs of at most 160 tokens" in table
    assert f"about {plan['memory_gb']:.1f} GB" in table
    assert plan["memory_gb"] > 0
    assert (plan["seconds_per_step"] or 1) > 0
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_counts_only_the_clips_that_divide_into_a_patch_size(
    clips_folder: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No clip of the folder divides into 1x4x4 patches: a share of 0 makes no packs of them, any other is refused."""
    recipe = tmp_path / "recipe.toml"
    data = ["--data", str(clips_folder), "--data.toybox", "0", "--data.val-clips", "2"]
    text = (ROOT / "configs" / "toybox-dit.toml").read_text(encoding="utf-8")
    for share in (0.0, 0.1):
        recipe.write_text(f"{text}\n[dit.patches]\n1x4x4 = {share}\n", encoding="utf-8")
        status = train([str(recipe), *build_dit_command(checkpoint, tmp_path, *data)[1:], "--dry-run", "--json"])
        if share:
            refused(capsys, status, "1x4x4 have 10% of the steps, and no clip here is trained in them")
        else:
            assert status == 0
            assert json.loads(capsys.readouterr().out)["more_steps"]["1x4x4"] == 0


def test_a_dry_run_names_unreadable_files(
    own_clips: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own_clips / "clips" / "broken.mp4").write_text("not a video", encoding="utf-8")
    (own_clips / "clips" / "broken.txt").write_text("a caption", encoding="utf-8")
    data = ["--data", str(own_clips), "--data.toybox", "0"]
    assert train(build_dit_command(checkpoint, tmp_path, *data, "--dry-run")) == 0
    output = capsys.readouterr()
    assert "broken.mp4" in output.err
    assert "1 files not usable" in output.out


def test_a_dry_run_of_the_dit_runs_before_its_vae_exists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "missing"
    assert train(build_dit_command(missing, tmp_path, "--data.toybox", "500", "--dry-run")) == 0
    table = capsys.readouterr().out
    assert "500 clips" in table
    assert f"memory and time are not known before {missing} is there" in table


def test_a_dry_run_of_the_vae_counts_the_steps_of_an_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(ROOT / "configs" / "toybox-vae.toml"), "--data.toybox", "400", "--run", str(tmp_path / "run")]
    assert train([*words, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["steps_per_epoch"], plan["fill"], plan["memory_gb"]) == (45, None, None)  # 45 is (400 - 40) / 8.
    assert train([*words, "--dry-run"]) == 0
    table = capsys.readouterr().out
    assert "45 steps an epoch of 8 clips each" in table
    assert f"{len(plan['clips']) - 16} more" in table  # The table lists the 16 most frequent sizes and lengths.


@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_a_token_budget_below_the_longest_clip_is_refused_before_training_with_one_that_works(
    dry_run: list[str], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = build_dit_command(checkpoint, tmp_path, "--data.toybox", "50", "--data.token-budget", "60", *dry_run)
    message = "longest clip, of 80 tokens in patches of 1x2x2, and is 60"
    refused(capsys, train(words), message, "--data.token-budget 80 or more")
    assert not (tmp_path / "run").exists()


def test_an_unknown_key_in_a_recipe_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('stage = "vae"\n[optim]\nlearning_rate = 1e-3\nwarmup_step = 3\n', encoding="utf-8")
    refused(capsys, train([str(recipe)]), "unknown key", "optim.")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "no videos in"),
        ({"clip.mp4": "not a video", "clip.txt": "a caption"}, "clip.mp4"),
        ({"clip.mp4": "not a video"}, "no caption"),
    ],
)
def test_a_folder_without_usable_clips_is_refused_before_training(
    content: dict[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    for name, text in content.items():
        (folder / name).write_text(text, encoding="utf-8")
    status = train([str(ROOT / "configs" / "folder-vae.toml"), "--data", str(folder), "--run", str(tmp_path / "run")])
    assert status == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_toybox_command_writes_clips_of_its_size_and_length_and_keeps_another_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "toybox"
    assert main(["toybox", str(out), "--clips", "3", "--frames", "9", "--size", "48x64"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    info = probe(out / "clips" / "000000.mp4")
    assert (info.width, info.height, info.num_frames) == (48, 64, 9)
    refused(capsys, main(["toybox", str(out), "--clips", "3", "--seed", "1"]), "holds something else")


def test_an_unknown_command_is_refused_with_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, main(["trian"]), "did you mean 'train'")
