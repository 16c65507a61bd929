"""Put a trained checkpoint into assets/mini, its weights in half precision: python tests/bench/ship.py CHECKPOINT."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from videogen.pipeline import VideoPipeline
from videogen.stages import replace_folder

MINI = Path(__file__).parents[2] / "assets" / "mini"


def main() -> None:
    """The text encoder and tokenizer are there already, and stay."""
    pipeline = VideoPipeline.load(Path(sys.argv[1]))
    for name, model in (("transformer", pipeline.transformer), ("vae", pipeline.vae)):
        part = MINI / f"{name}.part"
        model.save_config(part)
        weights = {key: value.to(torch.float16).contiguous() for key, value in model.state_dict().items()}
        save_file(weights, part / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
        replace_folder(part, MINI / name)
    index = json.loads((Path(sys.argv[1]) / "model_index.json").read_text(encoding="utf-8"))
    (MINI / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
