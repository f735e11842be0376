"""The hub: names of repositories, whether one is logged in, and rows of data sets."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Unreachable(ValueError):
    """A hub name whose files are not here and cannot be fetched now; nothing says that it is wrong."""


@dataclass(frozen=True)
class DatasetSplit:
    """A split of a data set on the hub; ``config`` is what the hub calls its subset."""

    name: str
    split: str
    config: str | None = None


def first_line(error: Exception) -> str:
    """What another library says, on one line of at most 160 characters."""
    return str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__


def read_split(source: DatasetSplit, field: str) -> list[tuple[str, dict[str, Any]]]:
    """Place and columns, named in lower case, of every row; fetched once, then from the hub's own cache.

    Raises:
        ValueError: if the library is missing or the data set cannot be had; ``field`` is the setting that
            a file can be given as instead.
        Unreachable: if the hub does not answer.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError(
            f"{field}: {source.name!r} needs the datasets library; pip install 'egspo[data]', or give a file"
        ) from None
    try:
        rows = load_dataset(source.name, source.config, split=source.split)
    except Exception as error:  # the library raises many kinds: no network, no such name, no such split
        # What the library raises offline and without a network, but for names that there are not.
        kind = Unreachable if isinstance(error, ConnectionError) else ValueError
        raise kind(
            f"{field}: {source.name!r} [{source.split}] could not be had from the hub ({first_line(error)}); "
            f"check name and network, or give a file as {field}"
        ) from error
    subset = f"/{source.config}" if source.config else ""
    place = f"{source.name}{subset}[{source.split}]"
    return [
        (f"{place} row {i}", {key.lower(): value for key, value in row.items()}) for i, row in enumerate(rows)
    ]


# An owner begins with a letter or digit: what begins with a dot is a path of this machine.
_NAME = re.compile(r"(\w[\w.-]*/[\w.-]+)(/[\w./-]+)?")


def hub_repository(name: str | None) -> str | None:
    """``owner/repository`` behind the name of a model; None for a folder here or a shipped model."""
    match = _NAME.fullmatch(name or "")
    return match[1] if match and not Path(name).exists() else None


def name_problem(repo: str) -> str | None:
    """What is wrong with the name of a repository to publish to, and the remedy."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError:
        return f"{repo!r} is no name of a hub repository; give OWNER/NAME of letters, digits, '-', '_', '.'"
    return None if "/" in repo else f"{repo!r} names no owner; give OWNER/{repo}"


def access_problem() -> str | None:
    """Why nothing can be uploaded from here, and the remedy."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set; unset it"
    return None if get_token() else "no hub token; log in with `hf auth login`, or set HF_TOKEN"
