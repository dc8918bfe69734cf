"""Downloads from the Hugging Face hub, and what its failures mean, in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from kinetics_jax.errors import UserError


class HubError(UserError):
    """What the hub, or its cache on this machine, did not give; the message says why and what to do."""


def download(name: str, *, kind: Literal["model", "dataset"] = "model", **patterns: list[str]) -> Path:
    """The directory of a repository's files, downloaded or from the hub's cache, which needs no network.

    `patterns` are huggingface_hub's `allow_patterns` and `ignore_patterns`. Raises HubError.
    """
    from huggingface_hub import snapshot_download

    return _fetched(snapshot_download, name, repo_type=kind, **patterns)


def download_file(name: str, file: str) -> Path:
    """One file of a model's repository, downloaded or from the hub's cache. Raises HubError."""
    from huggingface_hub import hf_hub_download

    return _fetched(hf_hub_download, name, filename=file)


def _fetched(fetch: Any, name: str, **options: Any) -> Path:
    try:
        return Path(fetch(name, **options))
    except Exception as error:  # the hub's, its HTTP client's and the disk's errors have no other parent
        raise HubError(hub_failure(name, error)) from error


def hub_failure(name: str, error: Exception) -> str:
    """One line for a user about what huggingface_hub raised while `name` (a model or a data set) was fetched."""
    from huggingface_hub import errors

    hub, cause = f"{name}: not on disk, and the hub", error.__cause__
    if isinstance(error, errors.GatedRepoError):  # before its parent, RepositoryNotFoundError
        return f"{name}: gated on the hub; accept its terms on its page there and log in with `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{hub} has no repository of this name; if it is a private one, log in with `hf auth login`"
    if isinstance(error, errors.HfHubHTTPError):
        return f"{hub} refused: {_first_line(error)}"
    if isinstance(error, errors.LocalEntryNotFoundError):
        if isinstance(cause, errors.HfHubHTTPError):
            return f"{hub} answered {cause.response.status_code}; try again later"
        offline = " (HF_HUB_OFFLINE is set)" if isinstance(cause, errors.OfflineModeIsEnabled) else ""
        partly = type(error).__name__ == "IncompleteSnapshotError"  # new in huggingface_hub 2
        whole = "only partly on disk" if partly else "not on disk"
        return f"{name}: {whole}, and the hub cannot be reached{offline}; download it where there is a network"
    if isinstance(error, errors.HFValidationError):
        return f"{name}: not on disk, and not a name on the hub ({_first_line(error)})"
    return f"{name}: the download broke off ({type(error).__name__}: {_first_line(error)}); the same command resumes it"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0].strip().rstrip(".")
