"""Write the model card of what training has made: what it is, how to run it, how it was trained, as the Hub reads it.

TrainConfig, folder  ->  README.md
"""

from __future__ import annotations

from pathlib import Path

from videogen.config.parsing import format_toml
from videogen.config.train import TrainConfig
from videogen.data.files import save_text
from videogen.models.card import CARD, format_card, how_to_run

PLACES = {"folder", "decoded", "dir", "init", "vae", "text"}  # of a machine, which are nobody else's concern
TRAINED = """
## How it was trained

By videogen in {steps:,} steps on {clips:,} clips.

```toml
{recipe}
```
"""
USE_A_VAE = """```sh
python train.py configs/folder-dit.toml --data my-clips --dit.vae FOLDER
```

```python
from videogen import VideoVAE

vae = VideoVAE.from_pretrained("FOLDER", subfolder="vae")
```"""


def write_card(folder: Path, config: TrainConfig, *, num_clips: int) -> None:
    """Write the card of what a recipe has trained into the folder that holds it."""
    is_lora = bool(config.dit.lora_rank)
    prompt, base = (*config.run.sample_prompts, "a prompt")[0], None
    if config.stage == "vae":
        what, how, tags = "A video autoencoder, which a transformer is trained upon.", USE_A_VAE, ["vae"]
    elif is_lora:
        base, tags = Path(str(config.dit.init)).name, ["lora"]
        trigger = config.dit.lora_trigger
        called = f" Prompts call it by the words {trigger!r}." if trigger else ""
        what = f"A LoRA of rank {config.dit.lora_rank} for {base}.{called}"
        how = how_to_run(prompt if trigger.lower() in prompt.lower() else f"{trigger}, {prompt}", base=base)
    else:
        what, how, tags = "A text-to-video checkpoint.", how_to_run(prompt), []
    recipe = [line for line in format_toml(config).splitlines() if line.split(" = ")[0] not in PLACES]
    more = TRAINED.format(steps=config.run.steps, clips=num_clips, recipe="\n".join(recipe).rstrip())
    title = config.run.dir.resolve().name
    save_text(folder / CARD, format_card(title=title, what=what, how=how, more=more, tags=tags, base=base))
