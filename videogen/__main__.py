"""Run `python -m videogen COMMAND ...`."""

from videogen.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
