"""Write the model card of a checkpoint, a VAE or a LoRA as the Hub reads it: what it is, and how to run it.

title, what it is, its program  ->  the text of README.md, which its author completes
"""

from __future__ import annotations

from collections.abc import Sequence

CARD = "README.md"
TEXT = """---
{data}
---

# {title}

{what}

{how}

## To be written by its author

What the clips showed and whose they are, what it is good for and what not, and the licence: nobody else can choose it.
{more}"""
HOW = """```sh
python sample.py {prompt} {flags}
```

```python
from videogen import VideoPipeline

pipeline = VideoPipeline.from_pretrained({folder!r}){more}
pipeline({prompt})[0].save("clip.mp4")
```"""


def format_card(
    *, title: str, what: str, how: str, more: str = "", tags: Sequence[str] = (), base: str | None = None
) -> str:
    """Format a card; more is what follows the part that its author writes."""
    from huggingface_hub import ModelCardData  # it takes long to import

    data = ModelCardData(
        library_name="videogen",
        pipeline_tag="text-to-video",
        tags=["text-to-video", "videogen", *tags],
        base_model=base,
    )
    return TEXT.format(data=data.to_yaml(), title=title, what=what, how=how, more=more)


def how_to_run(prompt: str = "a prompt", *, base: str | None = None) -> str:
    """Format the commands that make a clip: with a checkpoint, or with a LoRA of a base model."""
    return HOW.format(
        prompt='"{}"'.format(prompt.replace('"', "'")),
        flags=f"--model {base} --lora FOLDER" if base else "--model FOLDER",
        folder=base or "FOLDER",
        more='\npipeline.add_loras(["FOLDER"])' if base else "",
    )
