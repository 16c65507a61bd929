"""Put a trained checkpoint into assets/mini, its weights in half precision: python tests/bench/ship.py CHECKPOINT."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from videogen.data.files import atomic_folder, save_tensors
from videogen.data.words import FILE
from videogen.sampling.pipeline import VideoPipeline

MINI = Path(__file__).parents[2] / "assets" / "mini"


def main() -> None:
    """Write transformer, VAE, settings and the words of training; text encoder and tokenizer stay as they are."""
    pipeline = VideoPipeline.load(Path(sys.argv[1]))
    for name, model in (("transformer", pipeline.transformer), ("vae", pipeline.vae)):
        with atomic_folder(MINI / name) as part:
            config = json.loads(model.to_json_string())
            config.pop("_name_or_path", None)  # a folder of the machine that trained it
            (part / model.config_name).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            weights = {key: value.to(torch.float16) for key, value in model.state_dict().items()}
            save_tensors(weights, part / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    index = json.loads((Path(sys.argv[1]) / "model_index.json").read_text(encoding="utf-8"))
    (MINI / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    (MINI / FILE).write_bytes((Path(sys.argv[1]) / FILE).read_bytes())


if __name__ == "__main__":
    main()
