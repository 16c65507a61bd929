"""Find captions that are longer than the text encoder reads.

captions by file, folder of a text encoder and its tokenizer  ->  findings by file
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from videogen.data.findings import Finding

USUAL_LIMIT = 512  # tokens; Wan's text encoder, and BERT


def has_tokenizer(checkpoint: Path) -> bool:
    """True for a checkpoint folder whose tokenizer can count tokens."""
    return (checkpoint / "tokenizer" / "tokenizer.json").is_file()


def find_long_captions(captions: Mapping[Path, tuple[str, ...]], checkpoint: Path) -> dict[Path, Finding]:
    """Find the files with a caption of more tokens than the checkpoint's text encoder takes."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer" / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    limit, config = USUAL_LIMIT, checkpoint / "text_encoder" / "config.json"
    if config.is_file():
        limit = int(json.loads(config.read_text(encoding="utf-8")).get("max_position_embeddings") or limit)
    findings = dict[Path, Finding]()
    for path, texts in captions.items():
        longest = max(texts, key=len, default="")
        # A token is a character at least, but for the few that mark the ends.
        if len(longest) > limit - 8 and (num := len(tokenizer.encode(longest).ids)) > limit:
            words = f"a caption of {num} tokens; the text encoder reads the first {limit}"
            findings[path] = Finding("caption_long", words)
    return findings
