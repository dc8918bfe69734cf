"""The checkpoints that come with the package, and where they lie."""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).resolve().parent
CHASE, LEDGER = "chase", "ledger"
FAMILIES = {CHASE: ASSETS, LEDGER: ASSETS / LEDGER}  # each: checkpoints that differ in size, and their problems


def family_models(family: str) -> list[str]:
    """Names of a family's checkpoints that come with the package, smallest first."""
    folders = [path.parent for path in FAMILIES[family].glob("*/model.safetensors")]
    return [folder.name for folder in sorted(folders, key=lambda folder: (folder / "model.safetensors").stat().st_size)]


def builtin_models() -> list[str]:
    """Names of the chase family: what the demo runs and the built-in task is for."""
    return family_models(CHASE)


def builtin_folders() -> dict[str, Path]:
    """Every checkpoint that comes with the package, of any family, by name."""
    return {name: folder / name for family, folder in FAMILIES.items() for name in family_models(family)}
