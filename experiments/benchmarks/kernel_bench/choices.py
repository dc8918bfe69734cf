"""What can be measured on a device: the backends of an op, and the options a kernel takes beyond the reference's."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
from kinetics_kernels import reference
from kinetics_kernels.backends import implementation, kernel_backends
from kinetics_kernels.kernel_files import runs_on

# Values worth trying, by the name of the option.
VALUES = {
    "splits": (1, 2, 4, 8, 16, 32),
    "tokens": (16, 32, 64, 128),
    "stages": (2, 3, 4),
    "fused": (True, False),
    "block_tokens": (128, 256, 512, 1024, 2048),
    "block_pages": (128, 256, 512, 1024),
}
NOT_TUNED = {"interpret"}


@dataclasses.dataclass(frozen=True)
class Choice:
    """A backend and the options it is called with."""

    backend: str
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        options = ",".join(f"{name}={value}" for name, value in self.options)
        return f"{self.backend}({options})" if options else self.backend

    def function(self, op: str) -> Callable[..., Any]:
        """The op of kinetics_kernels with these options. Raises NotImplementedError if the backend does not have it."""
        kernel = implementation(op, self.backend)
        options = dict(self.options)
        return lambda *arguments, **keywords: kernel(*arguments, **keywords, **options)


def backends(op: str, platform: str | None = None) -> list[str]:
    """The backends for a platform (default: the current one) that have an op; the reference last."""
    here = platform or jax.default_backend()
    return [*(name for name in kernel_backends(op) if runs_on(op, name, here)), "xla"]


def options_of(op: str, backend: str) -> list[str]:
    """Names of the options that a kernel takes beyond the reference's arguments."""
    specified = inspect.signature(getattr(reference, op)).parameters
    own = inspect.signature(implementation(op, backend)).parameters
    return [name for name in own if name not in specified and name not in NOT_TUNED]


def candidates(op: str, backend: str) -> list[Choice]:
    """The backend with its own defaults, then one option at a time at every value worth trying."""
    names = [name for name in options_of(op, backend) if name in VALUES]
    return [Choice(backend), *(Choice(backend, ((name, value),)) for name in names for value in VALUES[name])]
