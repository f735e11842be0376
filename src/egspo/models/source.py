"""Where a model's files are: in the package, in a run folder, in a folder, or on the hub."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

from egspo import registry
from egspo.hub import Unreachable, first_line, hub_repository

SMALL = ("*.json", "*.txt", "*.jinja")
"""Configuration and tokenizer."""
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def shipped_models() -> list[str]:
    """Names of the models in the package, to be used as ``tiny:NAME``."""
    folder = shipped_folder(".")
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def shipped_folder(name: str) -> Path:
    return Path(str(resources.files("egspo") / "models" / "shipped" / name))


def locate(name: str, field: str, patterns: tuple[str, ...] = SMALL) -> Path:
    """The folder behind a name, fetched from the hub if it is a hub name: files of ``patterns`` only.

    ``owner/repository/sub/folder`` is a folder of a hub repository. Python files are never fetched.

    Raises:
        ValueError: naming ``field`` if there is no such model.
        Unreachable: if the hub does not answer.
    """
    if name.startswith("tiny:"):
        shipped = name.removeprefix("tiny:")
        if shipped not in shipped_models():
            raise ValueError(
                f"{field}: no shipped model {name!r}{registry.suggest(shipped, shipped_models())}"
            )
        return shipped_folder(shipped)
    inside = Path(name) / "model"
    if inside.is_dir():
        return inside
    if (Path(name) / "metrics.jsonl").is_file():
        raise ValueError(
            f"{field}: the run in {name!r} is not finished and has no model yet; the command that began it "
            "goes on with it"
        )
    if Path(name).is_dir():
        return Path(name)
    if hub_repository(name) is None:
        raise ValueError(f"{field}: no folder {name!r}; give {_remedy()}")
    return _fetch(name, field, patterns)


def read_json(file: Path, field: str) -> dict[str, Any]:
    """A JSON object of a model folder.

    Raises:
        ValueError: naming ``field`` if it is missing or broken.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise ValueError(f"{field}: {file.parent} has no {file.name}; give {_remedy()}") from None
    except ValueError as error:
        raise ValueError(f"{field}: {file} is no JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{field}: {file} holds no JSON object")
    return values


def _fetch(name: str, field: str, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    owner, repository, *rest = name.split("/")
    inside = "/".join(rest)
    wanted = [f"{inside}/{pattern}" if inside else pattern for pattern in patterns]
    try:
        folder = Path(snapshot_download(f"{owner}/{repository}", allow_patterns=wanted)) / inside
    except Exception as error:  # network, permission, unknown name: the hub's own words are the best
        # Releases before 1.0 count a file that is not in the cache among what the hub answered.
        answered = isinstance(error, HfHubHTTPError) and not isinstance(error, LocalEntryNotFoundError)
        kind = ValueError if answered else Unreachable
        raise kind(
            f"{field}: {name!r} is no folder here and not to be had from the hub ({first_line(error)}); "
            f"give {_remedy()}"
        ) from None
    if not folder.is_dir():
        raise ValueError(f"{field}: hub repository {owner}/{repository} has no folder {inside!r}")
    return folder


def _remedy() -> str:
    shipped = ", ".join(f"tiny:{name}" for name in shipped_models())
    return f"a folder with config.json, a hub name (owner/repository), or one of: {shipped}"
