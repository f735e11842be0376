"""What can be known of the hub without asking it: names of repositories, and whether one is logged in."""

import re
from pathlib import Path

_NAME = re.compile(r"([\w.-]+/[\w.-]+)(/[\w./-]+)?")


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
