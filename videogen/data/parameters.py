"""Write a clip's settings as galleries of generated pictures read them: the text `parameters` of AUTOMATIC1111.

settings  ->  "a cat\nNegative prompt: blurry\nSteps: 12, Sampler: dpmpp_2m_sde, CFG scale: 3, Seed: 0, Size: 64x64"
"""

from __future__ import annotations

import json
from collections.abc import Mapping

NAMES = {"steps": "Steps", "sampler": "Sampler", "guidance": "CFG scale", "seed": "Seed", "size": "Size"}


def format_parameters(settings: Mapping[str, object]) -> str:
    """Format settings as that text; empty where they are not those of a sampled clip."""
    if "prompt" not in settings or not settings.keys() >= NAMES.keys():
        return ""
    facts = {label: settings[name] for name, label in NAMES.items()}
    facts |= {"Shift": settings["shift"]} if "shift" in settings else {}
    checkpoint = settings.get("checkpoint")
    if isinstance(checkpoint, Mapping):
        labels = {"sha256": "Model hash", "name": "Model"}
        facts |= {label: checkpoint[name] for name, label in labels.items() if name in checkpoint}
    versions = settings.get("versions")
    if isinstance(versions, Mapping) and "videogen" in versions:
        facts["Version"] = f"videogen {versions['videogen']}"
    lines = [str(settings["prompt"])]
    lines += [f"Negative prompt: {settings['negative']}"] if settings.get("negative") else []
    return "\n".join([*lines, ", ".join(f"{label}: {quote(value)}" for label, value in facts.items())])


def quote(value: object) -> str:
    """Format a value; one with a comma, a colon or a line's end in it is quoted, as readers of the text expect."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',:\n"') else text
