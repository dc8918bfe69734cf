"""The checkpoints that come with the package, and where they lie."""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).resolve().parent


def builtin_models() -> list[str]:
    """Names of the checkpoints that come with the package, smallest first."""
    folders = [path.parent for path in ASSETS.glob("*/model.safetensors")]
    return [folder.name for folder in sorted(folders, key=lambda folder: (folder / "model.safetensors").stat().st_size)]
