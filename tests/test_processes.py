"""Two CPU processes started by torchrun train one model, with one log and one checkpoint, which Ctrl-C saves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from videogen.training.run_checkpoints import saved_steps

ROOT = Path(__file__).resolve().parent.parent
TINY = "--dit.num-layers 1 --dit.num-attention-heads 1 --dit.attention-head-dim 12 --dit.ffn-dim 16 --dit.facts-until 1"
RUN = "--run.sample-every 0 --run.val-every 5000 --run.save-every 5000 --run.mixed-precision no"
CLIPS = "--data.toybox 60 --data.val-clips 4 --data.token-budget 400"
LAUNCH = "-m torch.distributed.run --nproc-per-node 2 --rdzv-backend c10d --rdzv-endpoint localhost:0 --"


def command(checkpoint: Path, out: Path, steps: int) -> list[str]:
    folders = ["--dit.vae", str(checkpoint), "--dit.text", str(checkpoint), "--run.dir", str(out)]
    recipe = [str(ROOT / "configs" / "toybox-dit.toml"), *folders, *TINY.split(), *RUN.split(), *CLIPS.split()]
    return [sys.executable, *LAUNCH.split(), "train.py", *recipe, "--run.steps", str(steps)]


def logged_steps(out: Path) -> list[int]:
    path = out / "log.jsonl"
    rows = map(json.loads, path.read_text().splitlines()) if path.is_file() else ()
    return [row["step"] for row in rows if "grad_norm" in row]


def test_two_processes_train_one_model_and_ctrl_c_saves_it(checkpoint: Path, tmp_path: Path) -> None:
    """A terminal's Ctrl-C reaches torchrun and both processes."""
    out = tmp_path / "run"
    process = subprocess.Popen(command(checkpoint, out, 10_000), cwd=ROOT, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while 20 not in logged_steps(out):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    [stopped_at] = saved_steps(out)
    assert stopped_at >= 20
    steps = stopped_at - stopped_at % 10 + 20
    resumed = subprocess.run(command(checkpoint, out, steps), capture_output=True, text=True, cwd=ROOT, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert saved_steps(out)[-1] == steps
    assert sorted(logged_steps(out)) == list(range(10, steps + 1, 10))  # only the main process logs
    assert (out / "checkpoint" / "transformer").is_dir()
