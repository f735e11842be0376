"""The page: every piece of text that comes from a file goes through ``text``."""

import json
from collections.abc import Sequence
from importlib import resources

from egspo.report.figures import Figure
from egspo.report.read import Row, Run, number
from egspo.report.tables import evaluations, flatten, labels, shown, summary, table, text

POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def compose(runs: Sequence[Run], figures: Sequence[Figure]) -> str:
    """The whole page of runs."""
    body = [
        f"<p>{text(_subtitle(runs))}</p>",
        summary(runs),
        evaluations(runs),
        *(_figure(figure, runs) for figure in figures),
        _transcripts(runs),
        _config(runs),
    ]
    return document(", ".join(run.name for run in runs), body)


def document(name: str, body: Sequence[str]) -> str:
    """One HTML document that refers to nothing outside itself and runs no code; ``body`` is ready HTML."""
    title = text(name)
    style = resources.files("egspo.report").joinpath("page.css").read_text(encoding="utf-8")
    return "\n".join(
        (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title} · egspo report</title>\n<style>\n{style}</style>\n</head>\n<body>",
            f"<h1>{title}</h1>",
            *filter(None, body),
            "</body>\n</html>\n",
        )
    )


def _subtitle(runs: Sequence[Run]) -> str:
    """Objectives, tasks and models, each named once."""
    found = {name: dict.fromkeys(run.kind[name] for run in runs if run.kind[name]) for name in runs[0].kind}
    return " · ".join(f"{name}: {', '.join(kinds)}" for name, kinds in found.items() if kinds)


def _figure(figure: Figure, runs: Sequence[Run]) -> str:
    panels = "\n".join(
        f"<figure><h3>{text(panel.title)}</h3>\n{panel.svg}\n<figcaption>{text(panel.caption)}</figcaption></figure>"
        for panel in figure.panels
    )
    return f'<h2>{text(figure.title)}</h2>\n{_legend(runs)}<div class="panels">\n{panels}\n</div>'


def _legend(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return ""
    return f'<ul class="runs">{"".join(f"<li>{label}</li>" for label in labels(runs))}</ul>\n'


def _transcripts(runs: Sequence[Run]) -> str:
    parts, single = [], len(runs) == 1
    for run, label in zip(runs, labels(runs), strict=True):
        rows = sorted(run.transcripts, key=lambda row: row["step"])
        parts += [f"<h3>{label}</h3>"] * bool(rows and not single)
        parts += [_transcript(row, single) for row in (rows if len(rows) <= 4 else rows[:2] + rows[-2:])]
    if not parts:
        return ""
    return (
        "<h2>Transcripts</h2>\n<p>The first and the last logged samples, as the policy wrote them.</p>\n"
        + "\n".join(parts)
    )


def _transcript(row: Row, unfolded: bool) -> str:
    facts = [
        f"{name} {row[key]:.3g}"
        for name, key in (("reward", "reward"), ("advantage", "advantage"))
        if number(row.get(key)) is not None
    ]
    facts += [] if row.get("correct") is None else ["correct" if row["correct"] else "not correct"]
    parts = ", ".join(f"{name} {value}" for name, value in (row.get("parts") or {}).items())
    blocks = [(name, row.get(key)) for name, key in (("Prompt", "prompt"), ("Completion", "completion"))]
    body = [f"<h4>{name}</h4><pre>{text(value)}</pre>" for name, value in blocks if value is not None]
    judged = (("Verdict", row.get("reason")), ("Reward parts", parts))
    body += [f"<p><strong>{name}</strong> {text(value)}</p>" for name, value in judged if value]
    steps = row.get("selected") or []
    if steps:
        body.append(f"<h4>Selected steps, of {len(row.get('entropy') or []) or '?'}</h4>{_selected(steps)}")
    head = text(f"Step {row['step']} · {row.get('id', '')}")
    head = f"<summary>{head} <small>{text(' · '.join(facts))}</small></summary>"
    return f"<details{' open' * unfolded}>{head}{''.join(body)}</details>"


def _selected(steps: Sequence[Row]) -> str:
    header = ("Step", "Entropy", "Step reward", "Advantage", "One-step completion")
    rows = [
        (
            text(step.get("step")),
            *(shown(number(step.get(key)), ".3g") for key in ("entropy", "step_reward", "advantage")),
            None if step.get("one_step") is None else f"<pre>{text(step['one_step'])}</pre>",
        )
        for step in steps
    ]
    return table(header, rows, numeric=header[:4])


def _config(runs: Sequence[Run]) -> str:
    parts = ["<h2>Configuration</h2>"]
    if len(runs) > 1:
        flat = [flatten(run.config) for run in runs]
        keys = dict.fromkeys(key for settings in flat for key in settings)
        rows = [[text(key), *(text(json.dumps(settings.get(key))) for settings in flat)] for key in keys]
        differing = [row for row in rows if len(set(row[1:])) > 1]
        parts += [table(("Setting", *labels(runs)), differing)] * bool(differing)
    for run in runs:
        dump = text(json.dumps(run.config, indent=2, ensure_ascii=False))
        parts.append(
            f"<details><summary>{text(run.name)}: resolved configuration</summary><pre>{dump}</pre></details>"
        )
    return "\n".join(parts)
