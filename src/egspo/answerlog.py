"""The file that an evaluation's answers go to as they come, so that it can go on after an interruption."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from egspo.policy import Policy
from egspo.tasks.base import Task
from egspo.tracking import differences, write_whole
from egspo.types import Prompt

Answer = dict[str, Any]
SAMPLED = 1024
"""Numbers of each tensor that tell one model's weights from another's."""


class AnswerLog:
    """``FILE.jsonl`` beside ``FILE.json``: one line an answer, in the order of their questions.

    What the answers belong to stands in ``FILE.json`` once the evaluation is finished, until then in
    ``FILE.jsonl.settings``.
    """

    def __init__(self, file: Path):
        self._summary = file
        self._answers = file.with_suffix(".jsonl")
        self._settings = file.with_suffix(".jsonl.settings")

    def resume(self, settings: dict[str, Any], keys: Sequence[dict[str, int]], unit: int) -> list[Answer]:
        """The answers that are there, and the file made ready for the next one.

        Args:
            settings: what the answers depend on.
            keys: what identifies each answer, in the order in which they are to come.
            unit: answers that are written at a time; a unit that was cut is dropped.

        Raises:
            ValueError: if the file holds answers of other settings.
        """
        settings = json.loads(json.dumps(settings))
        if not self._answers.is_file() or not self._answers.stat().st_size:
            return self._begin(settings)
        known = self._known(settings)
        if known is None:
            raise ValueError(
                f"--out: {self._answers} is there, but nothing says which settings its answers are of; "
                "choose another file, or delete it"
            )
        if changed := differences(known, settings):
            raise ValueError(
                f"--out: {self._answers} holds answers of other settings (differs in "
                f"{', '.join(changed[:5])}); choose another file, or delete it to begin anew"
            )
        return self._read(keys, unit)

    def append(self, answers: Sequence[Answer]) -> None:
        with self._answers.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(answer) + "\n" for answer in answers)

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the summary, which from now on says what the answers belong to."""
        write_whole(self._summary, json.dumps({"name": self._summary.stem, **summary}, indent=2) + "\n")
        self._settings.unlink(missing_ok=True)

    def _begin(self, settings: dict[str, Any]) -> list[Answer]:
        self._summary.parent.mkdir(parents=True, exist_ok=True)
        self._summary.unlink(missing_ok=True)  # of answers that were deleted
        write_whole(self._settings, json.dumps(settings, indent=2) + "\n")
        write_whole(self._answers, "")
        return []

    def _known(self, settings: dict[str, Any]) -> dict[str, Any] | None:
        """What is written down of the answers' settings."""
        file = self._settings if self._settings.is_file() else self._summary
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return {key: values[key] for key in settings if key in values} if isinstance(values, dict) else None

    def _read(self, keys: Sequence[dict[str, int]], unit: int) -> list[Answer]:
        """Answers up to the first that is torn or out of place, in whole units."""
        text = self._answers.read_bytes()
        found: list[Answer] = []
        end = 0
        ends = [0]
        for line, key in zip(text.splitlines(keepends=True), keys, strict=False):
            answer = _parse(line)
            if answer is None or any(answer.get(name) != value for name, value in key.items()):
                break
            found.append(answer)
            end += len(line)
            ends.append(end)
        kept = len(found) if len(found) == len(keys) else len(found) - len(found) % unit
        if ends[kept] < len(text):
            write_whole(self._answers, text[: ends[kept]].decode("utf-8"))
        return found[:kept]


def _parse(line: bytes) -> Answer | None:
    try:
        answer = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def fingerprints(policy: Policy, task: Task, asked: Sequence[Sequence[Prompt]]) -> dict[str, str]:
    """Short digests of the weights, of the problems and the weights of their rewards, and of what else
    answers or verdicts depend on: precision, limits of programs, code and settings of a user's.
    """
    problems = [[[list(p.messages), p.fields] for p in prompts] for prompts in asked]
    text = json.dumps([task.reward_weights, problems], sort_keys=True, default=str)
    judges = json.dumps([str(policy.autocast), task.judges], sort_keys=True, default=str)
    return {"weights": _weights_digest(policy), "problems": _digest(text), "judges": _digest(judges)}


def _weights_digest(policy: Policy) -> str:
    """Digest of evenly spread numbers of every tensor: training moves all, and 8B are not read in full."""
    digest = hashlib.sha256()
    for name, tensor in sorted(policy.model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, len(flat) // SAMPLED)].contiguous().cpu()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(some.view(torch.uint8).numpy().tobytes())
    return _short(digest)


def _digest(text: str) -> str:
    return _short(hashlib.sha256(text.encode()))


def _short(digest) -> str:
    return digest.hexdigest()[:16]
