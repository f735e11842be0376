"""A picture of one denoising: every step's canvas, what it revealed, and how uncertain it was."""

import html
from pathlib import Path

from egspo.policy import Policy
from egspo.rollout import Generation

_STYLE = """
:root { color-scheme: light dark; --new: #d9480f; --old: #1c7ed6; --bar: #adb5bd; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
pre { white-space: pre-wrap; border-left: 3px solid var(--bar); padding-left: 1rem; }
table { border-collapse: collapse; } td, th { padding: .15rem .6rem; vertical-align: top; text-align: left; }
.canvas { font-family: ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.hidden { opacity: .3; } .new { color: var(--new); font-weight: 700; text-decoration: underline; }
.bar { background: var(--bar); display: inline-block; height: .7em; }
"""


def write_trace(file: Path, policy: Policy, prompt: str, out: Generation, row: int = 0) -> Path:
    """One self-contained HTML page of how completion ``row`` was denoised."""
    trajectory = out.trajectory
    entropy = trajectory.entropy[row].tolist()
    most = max(*entropy, 1e-9)
    rows = "".join(
        f"<tr><td>{step}</td><td>{h:.3f} <span class=bar style='width:{5 * h / most:.2f}rem'></span></td>"
        f"<td>{logp:.3f}</td><td class=canvas>{_canvas(policy, trajectory, row, step)}</td></tr>"
        for step, (h, logp) in enumerate(zip(entropy, trajectory.step_logp[row].tolist(), strict=True))
    )
    page = (
        f"<!doctype html><meta charset=utf-8><title>denoising trace</title><style>{_STYLE}</style>"
        f"<h1>Denoising, step by step</h1><h2>Prompt</h2><pre>{html.escape(prompt)}</pre>"
        f"<h2>Completion</h2><pre>{html.escape(out.texts[row])}</pre>"
        "<p>Each line shows the canvas after a step; what the step revealed is underlined, what is still "
        "masked is a dot. Entropy is the joint entropy of the revealed tokens in nats, log p that of the "
        "action.</p>"
        f"<table><tr><th>step</th><th>entropy</th><th>log p</th><th>canvas</th></tr>{rows}</table>"
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page, encoding="utf-8")
    return file


def _canvas(policy: Policy, trajectory, row: int, step: int) -> str:
    pieces = []
    for token, when in zip(trajectory.final[row].tolist(), trajectory.reveal_step[row].tolist(), strict=True):
        if when > step:
            pieces.append("<span class=hidden>·</span>")
            continue
        text = html.escape(policy.tokenizer.decode([token]))
        pieces.append(f"<span class=new>{text}</span>" if when == step else text)
    return "".join(pieces)
