"""Device descriptions for compiling without the device: `description("h100")` is XLA's GPU target config."""

from importlib import resources


def description(name: str) -> str:
    """The text proto of a GPU target. Raises FileNotFoundError for a name without one."""
    return resources.files(__name__).joinpath(f"{name}.textproto").read_text()
