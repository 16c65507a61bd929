"""Write a clip's settings as galleries of generated pictures read them: the text `parameters` of AUTOMATIC1111.

settings  ->  "a cat\nNegative prompt: blurry\nSteps: 12, Sampler: DPM++ 2M SDE, CFG scale: 3, Seed: 0, Size: 64x64"
"""

from __future__ import annotations

import json
from collections.abc import Mapping

# The names that galleries filter by; any other sampler keeps its own.
SAMPLERS = {
    "euler": "Euler", "heun": "Heun", "dpmpp_2m": "DPM++ 2M", "dpmpp_2m_sde": "DPM++ 2M SDE", "unipc": "UniPC",
    "deis": "DEIS", "dpmpp_multistep": "DPM++ 2M", "flow_euler": "Euler", "flow_heun": "Heun",
}  # fmt: skip
HASH_LETTERS = 10
NAMES = {"steps": "Steps", "sampler": "Sampler", "guidance": "CFG scale", "seed": "Seed", "size": "Size"}


def format_parameters(settings: Mapping[str, object]) -> str:
    """Format settings as that text; empty where they are not those of a sampled clip."""
    if "prompt" not in settings or not settings.keys() >= NAMES.keys():
        return ""
    facts = {label: settings[name] for name, label in NAMES.items()}
    facts["Sampler"] = SAMPLERS.get(str(facts["Sampler"]), facts["Sampler"])
    facts |= {"Shift": settings["shift"]} if "shift" in settings else {}
    checkpoint = settings.get("checkpoint")
    if isinstance(checkpoint, Mapping):
        labels = {"sha256": "Model hash", "name": "Model"}
        facts |= {label: str(checkpoint[name]) for name, label in labels.items() if name in checkpoint}
        facts |= {"Model hash": str(facts["Model hash"])[:HASH_LETTERS]} if "Model hash" in facts else {}
    versions = settings.get("versions")
    if isinstance(versions, Mapping) and "videogen" in versions:
        facts["Version"] = f"videogen {versions['videogen']}"
    lines = [str(settings["prompt"])]
    lines += [f"Negative prompt: {settings['negative']}"] if settings.get("negative") else []
    lines.append(", ".join(f"{label}: {quote(value)}" for label, value in facts.items()))
    return "\n".join(lines).replace("\0", " ")  # at which a container would end the text


def quote(value: object) -> str:
    """Format a value; one with a comma, a colon or a line's end in it is quoted, as readers of the text expect."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',:\n"') else text
