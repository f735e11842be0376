"""A finished run as a folder for the hub: weights or adapter, tokenizer, settings, card; and its upload."""

import json
import shutil
from pathlib import Path
from typing import Any

from egspo import hub
from egspo.card import Finished, render
from egspo.checkpoint import link
from egspo.models.adapters import CONFIG as ADAPTER_CONFIG
from egspo.models.source import read_json
from egspo.sections import TrackingConfig
from egspo.settings import FILE as SETTINGS
from egspo.settings import each_task, without_code

FOLDER = "publish"
CARD = "README.md"


def write_folder(
    run: Path, repo: str, out: Path | None = None, base_model: str | None = None, license: str | None = None
) -> Path:
    """Write what ``upload`` sends, by default into ``RUN/publish``, which is made anew each time.

    Args:
        base_model: hub name of an adapter's base, where the run knows it by a folder of this machine.

    Raises:
        ValueError: if the run is not finished, the name is impossible, or ``out`` holds something.
    """
    if problem := hub.name_problem(repo):
        raise ValueError(f"REPO: {problem}")
    finished = read_run(run, repo, base_model, license)
    folder = _empty(run, out)
    for file in sorted((run / "model").iterdir()):
        if file.is_file() and file.name != CARD:
            # Weights are large and never edited by hand; everything else may be.
            (link if file.suffix == ".safetensors" else shutil.copyfile)(file, folder / file.name)
    if finished.adapter is not None:
        _write(folder / ADAPTER_CONFIG, finished.adapter)
    _write(folder / SETTINGS, _portable(read_json(folder / SETTINGS, "RUN"), finished))
    (folder / CARD).write_text(render(finished), encoding="utf-8")
    return folder


def read_run(run: Path, repo: str, base_model: str | None = None, license: str | None = None) -> Finished:
    """What a run folder tells of its model.

    Raises:
        ValueError: if it holds no finished run.
    """
    needed = ("config.json", "metrics.jsonl", f"model/{SETTINGS}")
    missing = next((name for name in needed if not (run / name).is_file()), None)
    if missing:
        raise ValueError(f"RUN: {run} has no {missing}; give the folder of a finished sft or train run")
    values = read_json(run / "config.json", "RUN")
    adapter = None
    if (run / "model" / ADAPTER_CONFIG).is_file():
        adapter = read_json(run / "model" / ADAPTER_CONFIG, "RUN")
        adapter["base_model_name_or_path"] = base_model or adapter["base_model_name_or_path"]
    elif base_model is not None:
        raise ValueError(f"--base-model: {base_model!r}, but {run} holds whole weights; drop it")
    last = json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    files = [f for f in sorted((run / "eval").glob("*.json")) if not f.stem.startswith("validation-")]
    evaluations = [read_json(file, "RUN") for file in files]
    own = [_is_of(summary, run, str(values["model"]["model_name_or_path"])) for summary in evaluations]
    scores = [summary for summary, mine in zip(evaluations, own, strict=True) if mine]
    others = [summary for summary, mine in zip(evaluations, own, strict=True) if not mine]
    return Finished(repo, values, last, _best(run, values), scores, others, adapter, license)


def _best(run: Path, values: dict[str, Any]) -> int | None:
    """The iteration whose weights a run ended with, if those are not its last."""
    if not values.get("train", {}).get("load_best_model_at_end"):
        return None
    curve = [read_json(file, "RUN") for file in sorted((run / "eval").glob("validation-*.json"))]
    return max(curve, key=lambda point: point["accuracy"])["step"] if curve else None  # the first of equals


def require_access() -> None:
    """Raises ValueError if nothing can be uploaded from here."""
    if problem := hub.access_problem():
        raise ValueError(f"publish: {problem}; --dry-run only writes the folder")


def upload(folder: Path, repo: str, private: bool = False) -> str:
    """Send a folder to the hub, into a new repository if need be; returns its address.

    Raises:
        ValueError: with the hub's words if it refuses or cannot be reached, or if the folder is an adapter
            whose base nobody else has.
    """
    from huggingface_hub import HfApi

    _require_base(folder)
    api = HfApi()
    try:
        address = api.create_repo(repo, private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message="Upload a model trained with egspo"
        )
    except Exception as error:  # network, permission, quota: the hub's own words are the best
        raise ValueError(
            f"publish: {repo} was not uploaded ({hub.first_line(error)}); check the name, the token and "
            f"the network. All of it is in {folder}"
        ) from None
    return str(address)


def publish_finished(run: Path, tracking: TrackingConfig) -> str | None:
    """At the end of a run: publish it if its configuration asks for that; returns the address."""
    if not tracking.push_to_hub:
        return None
    folder = write_folder(run, tracking.hub_model_id)
    return upload(folder, tracking.hub_model_id, tracking.hub_private_repo)


def _require_base(folder: Path) -> None:
    if not (folder / ADAPTER_CONFIG).is_file():
        return
    base = str(read_json(folder / ADAPTER_CONFIG, "RUN").get("base_model_name_or_path"))
    if hub.hub_repository(base) is None and not base.startswith("tiny:"):
        raise ValueError(
            f"--base-model: the adapter belongs to {base!r}, which nobody else has; publish that first and "
            "give its hub name"
        )


def _empty(run: Path, out: Path | None) -> Path:
    folder = run / FOLDER if out is None else out
    if out is None:
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"--out: {folder} is there and not empty; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _is_of(summary: dict[str, Any], run: Path, base: str) -> bool:
    """Whether an evaluation is of the run's own model, which it names as base, folder or base + adapter."""
    named, base = (_run_of(name) for name in (str(summary["model"]).split(" + ")[-1], base))
    if named.exists():
        return named.resolve() == run.resolve()
    # Evaluated from elsewhere, or moved since; and so may the base have been, under a name as this one's.
    return named.name == run.resolve().name and named.parts[-2:] != base.parts[-2:]


def _run_of(model: str) -> Path:
    """The folder of the run that a model lies in."""
    return Path(model).parent if Path(model).name == "model" else Path(model)


def _portable(settings: dict[str, Any], finished: Finished) -> dict[str, Any]:
    """``egspo.json`` without files that only this machine has."""
    task = each_task(settings["task"], _without_files)
    summary = f"{finished.method[0]} on {finished.trained_on}, from {finished.base}"
    about = settings.get("about", {}) | {"summary": summary}
    return settings | {"task": task, "about": about}


def _without_files(task: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in task.items() if key not in ("data", "train_data")}
    return without_code(kept)


def _write(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
