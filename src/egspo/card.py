"""The model card of a finished run: what it is, how it was made, what it scored; from the run's own files."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from egspo import registry
from egspo.config import EvalConfig, SamplerConfig
from egspo.hub import hub_repository

SFT = "masked-diffusion supervised fine-tuning", "arXiv 2502.09992"
DECODING = (
    "max_completion_length",
    "diffusion_steps",
    "block_length",
    "temperature",
    "remasking",
    "cfg_scale",
)
UNUSUAL = {"num_fewshot": 0, "num_samples": 1, "confidence_threshold": None, "cache": "none"}
"""What a score depends on too, told where it is not this."""
# Of the run, not of the model.
_PRIVATE = ("output_dir", "resume", "tracking")
_FILES = ("train_data", "data", "path")


@dataclass(frozen=True)
class Finished:
    """What a run folder tells of its model.

    ``values`` is its ``config.json``, ``last`` the last line of its metrics, ``best`` the iteration whose
    weights it ended with where that is the best validated instead. ``scores`` are the evaluations
    of this very model, ``others`` those that lie beside them (of its base, say). ``adapter`` is what PEFT
    wrote, None where the weights themselves were trained.
    """

    repo: str
    values: dict[str, Any]
    last: dict[str, Any]
    best: int | None
    scores: list[dict[str, Any]]
    others: list[dict[str, Any]]
    adapter: dict[str, Any] | None
    license: str | None = None

    @property
    def base(self) -> str:
        """What the training started from, without this machine's paths."""
        model = self.values["model"]
        if model["init"]:
            return f"fresh {model['init']}"
        return short((self.adapter or {}).get("base_model_name_or_path") or model["model_name_or_path"])

    @property
    def method(self) -> tuple[str, str]:
        """The method in words, and its paper."""
        if "objective" not in self.values:
            return SFT
        objective = registry.load("objectives", self.values["objective"]["name"])
        return objective.description, objective.paper

    @property
    def trained_on(self) -> str:
        """Name of the task, or of the pairs of an SFT, which may have a task to be validated on."""
        sft = self.values.get("sft", {})
        pairs = sft.get("data") or sft.get("dataset")
        return short(pairs) if pairs else self.values["task"]["name"]


def short(name: str) -> str:
    """A model or file without the path to it, which is of no use elsewhere; hub names stay whole."""
    path = Path(name)
    if not (path.is_absolute() or path.exists()):
        return name
    return (path.parent.name if path.name == "model" else "") or path.name


def render(run: Finished) -> str:
    """The card as Markdown with the hub's metadata in front."""
    parts = (_about, _method, _base, _task, _scores, _settings, _use, _limits)
    body = "\n\n".join("\n".join(part(run)) for part in parts)
    return f"---\n{_metadata(run).to_yaml()}\n---\n\n{body}\n"


def _metadata(run: Finished) -> ModelCardData:
    tags = ["diffusion-language-model", "masked-diffusion", "egspo", *_kinds(run), run.trained_on]
    return ModelCardData(
        library_name="peft" if run.adapter else "egspo",
        base_model=hub_repository(run.base),
        license=run.license,
        pipeline_tag="text-generation",
        tags=tags,
        model_name=run.repo.partition("/")[2],
        eval_results=[_result(score) for score in run.scores] or None,
    )


def _kinds(run: Finished) -> list[str]:
    if "objective" not in run.values:
        return ["sft"]
    return ["reinforcement-learning", run.values["objective"]["name"]]


def _result(score: dict[str, Any]) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        dataset_type=score["task"],
        dataset_name=_problems(score),
        dataset_config=score["name"],
        dataset_split=score["split"],
        metric_type="accuracy",
        metric_name="accuracy",
        metric_value=score["accuracy"],
        metric_args={"n": score["n"], "ci95": score["ci95"], **_decoding(score)},
    )


def _problems(score: dict[str, Any]) -> str:
    return f"{score['task']} ({score['data']})" if score.get("data") else score["task"]


def _decoding(score: dict[str, Any]) -> dict[str, Any]:
    told = {key: score[key] for key in DECODING if key in score}
    return told | {key: score[key] for key, usual in UNUSUAL.items() if score.get(key, usual) != usual}


def _about(run: Finished) -> Iterator[str]:
    what = (
        "A LoRA adapter for a masked diffusion language model"
        if run.adapter
        else "A masked diffusion language model"
    )
    done = f"{run.last['step']} iterations" if "objective" in run.values else f"{run.last['step']} steps"
    if run.best is not None:
        done = f"the best validated of {done}, after {run.best}"
    yield f"# {run.repo.partition('/')[2]}\n"
    yield f"{what}, trained on {run.trained_on} by {run.method[0]}: {done}, {run.last['samples']} samples."
    yield "Made with egspo, which loads it without any remote code."


def _method(run: Finished) -> Iterator[str]:
    yield "## Method\n"
    name, paper = run.method
    yield f"{name[:1].upper()}{name[1:]} ({_linked(paper)})."
    if run.adapter:
        targets = ", ".join(f"`{name}`" for name in sorted(run.adapter["target_modules"]))
        yield f"LoRA of rank {run.adapter['r']}, alpha {run.adapter['lora_alpha']}, on {targets}."


def _base(run: Finished) -> Iterator[str]:
    yield "## Base model\n"
    if repository := hub_repository(run.base):
        yield f"[{run.base}](https://huggingface.co/{repository})"
    elif run.values["model"]["init"]:
        yield f"None: the weights were drawn at random (preset `{run.values['model']['init']}`)."
    elif run.base.startswith("tiny:"):
        yield f"`{run.base}`, which ships with egspo."
    else:
        yield f"`{run.base}`, a model of the author's own that is not published under this name."


def _task(run: Finished) -> Iterator[str]:
    yield "## Task and data\n"
    task = run.values.get("task")
    if task is None or task["name"] != run.trained_on:
        yield f"Prompt-completion pairs: `{run.trained_on}`."
        return
    for entry in (task, *(task["tasks"] if task["name"] == "mix" else ())):
        yield f"`{entry['name']}`: {_described(entry)}."
    files = {key: short(value) for key, value in _flat(task) if key.split(".")[-1] in _FILES and value}
    yield (
        "Files: " + ", ".join(f"{key} `{file}`" for key, file in files.items()) + "."
        if files
        else ("Its own problems, as the settings below make them.")
    )


def _described(task: dict[str, Any]) -> str:
    try:
        kind = registry.task_class(task["name"], task.get("path"))
    except ValueError:  # the file is gone
        return "a task of the author's own"
    return f"{kind.description} ({_linked(kind.source)})"


def _scores(run: Finished) -> Iterator[str]:
    yield "## Scores\n"
    if not run.scores:
        yield "This model has not been evaluated."
    if not (run.scores or run.others):
        return
    yield (
        "Every evaluation that the run folder holds, validations aside; intervals are Wilson's, with the "
        "problems as the independent units.\n"
    )
    yield "| evaluation | model | task, split | n | accuracy | 95 % interval | decoding |"
    yield "|---|---|---|---|---|---|---|"
    for score in run.scores:
        yield _row(score, "this one")
    for score in run.others:
        yield _row(score, f"`{short(str(score['model']))}`")


def _row(score: dict[str, Any], model: str) -> str:
    low, high = score["ci95"]
    decoding = ", ".join(f"{key} {value}" for key, value in _decoding(score).items())
    finer = "".join(f"; {name} {count['share']:.1%}" for name, count in score.get("counts", {}).items())
    cells = (
        score["name"],
        model,
        f"{_problems(score)}, {score['split']}",
        score["n"],
        f"{score['accuracy']:.1%} ({score['correct']}/{score['n']}){finer}",
        f"{low:.1%} to {high:.1%}",
        decoding,
    )
    return f"| {' | '.join(map(str, cells))} |"


def _settings(run: Finished) -> Iterator[str]:
    yield "## Settings\n"
    yield "| key | value |"
    yield "|---|---|"
    for key, value in _flat(run.values):
        if key.split(".")[0] not in _PRIVATE and value is not None:
            shown = short(value) if isinstance(value, str) else str(value)
            yield f"| `{key}` | `{' '.join(shown.replace('|', chr(92) + '|').split())}` |"


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
            value = {str(place): entry for place, entry in enumerate(value)}
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _use(run: Finished) -> Iterator[str]:
    sampler = EvalConfig(**run.values["eval"]).sampler(SamplerConfig(**run.values["sampler"])).model_dump()
    usual = SamplerConfig().model_dump()
    told = [key for key in sampler if key in (*DECODING[:3], "temperature") or sampler[key] != usual[key]]
    decoding = "".join(f"    {key}={sampler[key]!r},\n" for key in told)
    yield "## How to use it\n"
    yield "With egspo installed:\n\n```"
    if run.values.get("task"):
        yield f"egspo sample {run.repo} --index 0"
        yield f"egspo eval {run.repo} --limit 100"
    yield f'egspo sample {run.repo} --prompt "TEXT"\n```\n'
    yield f'```python\nimport egspo\n\npolicy = egspo.load_policy("{run.repo}")'
    yield f'out = egspo.generate(\n    policy,\n    ["TEXT"],\n{decoding})'
    yield "out.texts\n```"


def _limits(run: Finished) -> Iterator[str]:
    yield "## Limits\n"
    yield f"- Trained on one thing, {run.trained_on}, from one seed; nothing is claimed of anything else."
    yield "- Scores hold for the prompts, graders and decoding settings they were measured with."
    yield "- No safety training took place; whatever the base model says, this one may say."
    if run.license is None:
        yield "- No licence is stated here; that of the base model applies to what derives from it."


def _linked(source: str) -> str:
    """An arXiv number as a link."""
    first, _, number = source.rpartition("arXiv ")
    number, comma, rest = number.partition(",") if "arXiv " in source else ("", "", "")
    number, semicolon, more = number.partition(";")
    if not number:
        return source
    return f"{first}[arXiv {number}](https://arxiv.org/abs/{number}){semicolon}{more}{comma}{rest}"
