"""Say what the flags of other programs are called here: those of diffusers' scripts, Wan, Wan2GP and the trainers.

--num_inference_steps, the flags of a command  ->  --steps N
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

SIZE = ("--size WIDTHxHEIGHT", "--data.max-tokens N (clips keep their own sizes; this is the most tokens of one)")
FRAMES = ("--frames N, or --seconds S", "--data.max-seconds S")
OUT = ("--out PATH", "--run.dir DIR", "--run DIR")
MODEL = ("--model FOLDER", "--dit.init FOLDER")
DTYPE = ("--dtype bfloat16", "--run.mixed-precision bf16")
OFFLOAD = ("--offload model",)
PROMPT = ('the prompt itself, without a flag: python sample.py "a red circle moves right"',)
SEED = ("--seed N", "--run.seed N")
DATA = ("--data.folder FOLDER", "the folder itself, without a flag: python train.py FOLDER")
STEPS = ("--run.steps N", "--minutes M")
RANK = ("--dit.lora-rank N, with --dit.init FOLDER",)
LORA = ("--lora FILE=SCALE",)
BATCH = ("--num N (clips a prompt)", "--data.token-budget N (a batch is so many video tokens)")
TRACKERS = ("--run.report-to NAME",)
CACHE = ("--first-block-cache 0.1, or --mag-cache 0.1",)
SMALLER = ("--dit.base-dtype fp8 (or nf4), --dit.gradient-checkpointing", "--quantise fp8")
EPOCHS = ("--run.steps N (--dry-run says how many steps an epoch has)", "--minutes M")
RESUME = ("--run.resume STEP (the same command again resumes by itself)", "the same command again, which resumes")

FOREIGN_FLAGS: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(("num-inference-steps", "num-steps", "sample-steps", "infer-steps"), ("--steps N",)),
    **dict.fromkeys(("height", "width", "resolution", "video-size"), SIZE),
    **dict.fromkeys(("num-frames", "frame-num", "video-length", "length", "max-num-frames"), FRAMES),
    **dict.fromkeys(("guidance-scale", "cfg", "cfg-scale", "sample-guide-scale", "true-cfg-scale"), ("--guidance W",)),
    "guidance-scale-2": ("--guidance-2 W",),
    **dict.fromkeys(("negative-prompt", "neg-prompt", "n-prompt"), ("--negative TEXT",)),
    **dict.fromkeys(("flow-shift", "sample-shift", "discrete-flow-shift"), ("--shift N", "--sample.shift N")),
    **dict.fromkeys(("sample-solver", "scheduler", "sampler-name"), ("--sampler NAME",)),
    **dict.fromkeys(("output-dir", "output", "output-path", "save-path", "save-file", "save-dir"), OUT),
    **dict.fromkeys(("base-seed", "manual-seed"), SEED),
    "seed": SEED,
    **dict.fromkeys(("batch-size", "train-batch-size", "num-videos-per-prompt"), BATCH),
    **dict.fromkeys(("ckpt", "ckpt-dir", "checkpoint", "model-path", "model-id", "dit"), MODEL),
    "pretrained-model-name-or-path": MODEL,
    "task": ("--model FOLDER, which says by itself what it is",),
    **dict.fromkeys(("lora-path", "lora-weight", "lora-multiplier", "loras"), LORA),
    **dict.fromkeys(("fp16", "bf16", "precision", "torch-dtype", "mixed-precision"), DTYPE),
    **dict.fromkeys(("offload-model", "cpu-offload", "enable-model-cpu-offload", "lowvram"), OFFLOAD),
    "group-offload": ("--offload group",),
    **dict.fromkeys(("image-path", "image-start", "init-image"), ("--image FILE",)),
    "image-end": ("--image FILE@last",),
    **dict.fromkeys(("prompt", "text-prompt"), PROMPT),
    **dict.fromkeys(("prompt-file", "from-file", "txt-path"), ("--prompts FILE",)),
    **dict.fromkeys(("frame-rate", "sample-fps", "target-fps"), ("--fps F", "--data.fps F")),
    **dict.fromkeys(("teacache", "teacache-thresh", "enable-teacache"), CACHE),
    **dict.fromkeys(("vae-tiling", "enable-tiling"), ("nothing: a clip is decoded in parts whatever its size",)),
    "learning-rate": ("--optim.lr X",),
    **dict.fromkeys(("lr-warmup-steps", "warmup-steps"), ("--optim.warmup-steps N",)),
    **dict.fromkeys(("max-train-steps", "max-steps", "train-steps"), STEPS),
    **dict.fromkeys(("num-train-epochs", "max-train-epochs", "epochs"), EPOCHS),
    **dict.fromkeys(("report-to", "log-with", "tracker-name"), TRACKERS),
    "logging-dir": ("--run.dir DIR", "--run DIR"),
    **dict.fromkeys(("train-data-dir", "instance-data-dir", "data-dir", "dataset-dir"), DATA),
    "dataset-config": ("--data.folder dataset.toml",),
    **dict.fromkeys(("rank", "lora-rank", "network-dim"), RANK),
    **dict.fromkeys(("checkpointing-steps", "save-every-n-steps", "save-steps"), ("--run.save-every N",)),
    "validation-steps": ("--run.val-every N",),
    **dict.fromkeys(("validation-prompt", "validation-prompts", "sample-prompts"), ("--run.sample-prompts TEXT ...",)),
    **dict.fromkeys(("resume", "resume-from-checkpoint"), RESUME),
    "blocks-to-swap": SMALLER,
    "load-in-4bit": ("--dit.base-dtype nf4", "--base-dtype nf4"),
    "gradient-checkpointing": ("--dit.gradient-checkpointing",),
    "max-grad-norm": ("--optim.grad-clip X",),
    "gradient-accumulation-steps": ("--optim.accumulate N",),
    "use-8bit-adam": ("--optim.optimizer adamw8bit",),
    **dict.fromkeys(("fp8-base", "fp8-scaled"), ("--dit.base-dtype fp8", "--base-dtype fp8")),
    **dict.fromkeys(("dataloader-num-workers", "num-workers"), ("--data.workers N",)),
    **dict.fromkeys(("optimizer", "optimizer-type", "optimizer-args"), ("--optim.optimizer NAME",)),
}  # fmt: skip
"""Names of flags elsewhere, with what stands for them here: the first whose flag the command has."""


def translate(flag: str, known: Collection[str], values: Mapping[str, Sequence[Sequence[str]]]) -> str | None:
    """Say what a flag of another program is called in a command that knows these flags; None where it is no such flag.

    values: the words behind each flag, of which a size is put together. A hint that begins without a flag is for any
    command.
    """
    if (hints := FOREIGN_FLAGS.get(flag.lstrip("-").replace("_", "-"))) is None:
        return None
    for hint in hints:
        name = hint.split()[0].rstrip(",")
        if not name.startswith("--") or name in known:
            sides = [values.get(side, [[]])[-1][:1] for side in ("--width", "--height")]
            size = f"--size {sides[0][0]}x{sides[1][0]}" if name == "--size" and all(sides) else hint
            return f"{flag} is a flag of other programs; here it is {size}"
    return f"{flag} is a flag of other programs, and here one of another command: {hints[0]}"
