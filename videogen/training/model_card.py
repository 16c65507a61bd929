"""Write the model card of a checkpoint or a LoRA: what it is, how to run it, how it was trained, as the Hub reads it.

TrainConfig, folder  ->  README.md
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from videogen.config.parsing import format_toml
from videogen.config.train import TrainConfig

CARD = "README.md"
PLACES = {"folder", "decoded", "dir", "init", "vae", "text"}  # of a machine, which are nobody else's concern
TEXT = """---
{data}
---

# {title}

{what} Trained by [videogen](https://pypi.org/project/videogen) in {steps:,} steps on {clips:,} clips.

```sh
python sample.py {prompt} {model}
```

```python
from videogen import VideoPipeline

pipeline = VideoPipeline.from_pretrained({folder!r}){more}
pipeline({prompt})[0].save("clip.mp4")
```

## To be written by its author

What the clips showed and whose they are, what it is good for and what not, and the licence: nobody else can choose it.

## How it was trained

```toml
{recipe}
```
"""


def write_card(folder: Path, config: TrainConfig, *, num_clips: int) -> None:
    """Write the card of what a recipe has trained into the folder that holds it."""
    is_lora, run = bool(config.dit.lora_rank), config.run.dir.resolve().name
    base = Path(str(config.dit.init)).name if is_lora else None
    data = ModelCardData(
        library_name="videogen",
        pipeline_tag="text-to-video",
        tags=["text-to-video", "videogen", *(["lora"] if is_lora else [])],
        base_model=base,
    )
    lines = [line for line in format_toml(config).splitlines() if line.split(" = ")[0] not in PLACES]
    prompt = '"{}"'.format((config.run.sample_prompts or ("a prompt",))[0].replace('"', "'"))
    text = TEXT.format(
        data=data.to_yaml(),
        title=run,
        what=f"A LoRA of rank {config.dit.lora_rank} for {base}." if is_lora else "A text-to-video checkpoint.",
        steps=config.run.steps,
        clips=num_clips,
        prompt=prompt,
        model=f"--model {base} --lora FOLDER" if is_lora else "--model FOLDER",
        folder=base or "FOLDER",
        more='\npipeline.add_loras(["FOLDER"])' if is_lora else "",
        recipe="\n".join(lines).rstrip(),
    )
    ModelCard(text).save(folder / CARD)
