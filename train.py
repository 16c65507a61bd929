"""Train from a recipe: python train.py configs/RECIPE.toml [--data FOLDER] [--run DIR] [--any.config.key VALUE ...]."""

from videogen.cli.train import train

if __name__ == "__main__":
    raise SystemExit(train())
