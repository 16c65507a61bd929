"""Make clips from prompts: python sample.py "a large red circle moves right on a black background"."""

from videogen.cli.main import sample

if __name__ == "__main__":
    raise SystemExit(sample())
