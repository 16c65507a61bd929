"""Several processes on CPUs, as torchrun starts them: one run, one log, one checkpoint, and it goes on."""

import json
import subprocess
import sys
from pathlib import Path

from videogen.training import saved_steps

ROOT = Path(__file__).resolve().parent.parent
TINY = "--dit.num-layers 1 --dit.num-attention-heads 1 --dit.attention-head-dim 12 --dit.ffn-dim 16 --dit.facts 0"
RUN = "--run.sample-every 0 --run.val-every 40 --run.save-every 20 --run.mixed-precision no"
CLIPS = "--data.toybox 60 --data.val-clips 4 --data.token-budget 400"
LAUNCH = "-m torch.distributed.run --nproc-per-node 2 --rdzv-backend c10d --rdzv-endpoint localhost:0 --"


def test_two_processes_train_one_model(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    folders = ["--dit.vae", str(checkpoint), "--dit.text", str(checkpoint), "--run.dir", str(out)]
    recipe = [str(ROOT / "configs" / "toybox-dit.toml"), *folders, *TINY.split(), *RUN.split(), *CLIPS.split()]
    for steps in (20, 40):
        words = [sys.executable, *LAUNCH.split(), "train.py", *recipe, "--run.steps", str(steps)]
        done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stderr
        assert saved_steps(out)[-1] == steps
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "grad_norm" in row] == [10, 20, 30, 40]  # each step once
    assert (out / "checkpoint" / "transformer").is_dir()
