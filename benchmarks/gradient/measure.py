"""Measures arms batch by batch and keeps what it measured: a rerun, or another arm, goes on from there.

``measurements.jsonl`` has one line for each arm and batch, and after each block of batches one with the inner
products of the arm's block means; it grows in the cache and is published as ``FOLDER/measurements.jsonl.gz``.
``FOLDER/reference.json`` holds the inner products of the reference's block means. Vectors (block means of the
reference and of every arm) stay in the cache; without it the reference and unfinished arms are made anew,
which the seed determines.
"""

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradient.arms import Arm
from gradient.probe import Probe
from gradient.quality import Blocks

FIRST_REFERENCE = 1_000_000
"""Batches of the reference count from here, those of the arms from 1."""
DIGITS = 6


@dataclass(frozen=True)
class Plan:
    """How many batches, and in blocks of how many."""

    batches: int
    reference_batches: int
    blocks: int = 20

    def __post_init__(self):
        for name in ("batches", "reference_batches"):
            number = getattr(self, name)
            if number % self.blocks or number <= 0:
                option = name.replace("_", "-")
                raise ValueError(f"--{option}: {number}; give a multiple of the {self.blocks} blocks")
        if self.blocks < 3:
            raise ValueError(f"--blocks: {self.blocks}; an interval needs at least 3")

    def block(self, number: int) -> range:
        """The batches of a block of the arms'."""
        size = self.batches // self.blocks
        return range(1 + number * size, 1 + (number + 1) * size)

    def reference_block(self, number: int) -> range:
        size = self.reference_batches // self.blocks
        return range(FIRST_REFERENCE + number * size, FIRST_REFERENCE + (number + 1) * size)


class Store:
    """Measurements of one task on disk."""

    def __init__(self, folder: Path, cache: Path):
        self.folder, self.cache = folder, cache
        self.file, self.published = cache / "measurements.jsonl", folder / "measurements.jsonl.gz"
        for path in (folder, cache):
            path.mkdir(parents=True, exist_ok=True)
        if self.published.is_file() and not self.file.is_file():
            self.file.write_bytes(gzip.decompress(self.published.read_bytes()))

    # ---- arms ----------------------------------------------------------------------------------------

    def lines(self) -> list[dict[str, Any]]:
        """All lines of finished blocks; what an interruption left behind a block's end is dropped."""
        if not self.file.is_file():
            return []
        kept: list[dict[str, Any]] = []
        open_: dict[str, list[dict[str, Any]]] = {}
        for text in self.file.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except ValueError:  # the last line of an interrupted run
                break
            open_.setdefault(line["arm"], []).append(line)
            if "block" in line:
                kept += open_.pop(line["arm"])
        return kept

    def resume(self, arms: Iterable[Arm], plan: Plan) -> dict[str, int]:
        """Finished blocks of each arm; one whose vectors are gone begins anew unless it is finished."""
        lines = self.lines()
        done = {arm.name: sum("block" in line for line in lines if line["arm"] == arm.name) for arm in arms}
        for name, blocks in done.items():
            if 0 < blocks < plan.blocks and len(self.vectors(name)) < blocks:
                done[name] = 0
        kept = [line for line in lines if done.get(line["arm"], 1)]
        self._write(self.file, "".join(json.dumps(line) + "\n" for line in kept))
        return done

    def is_finished(self, arms: Iterable[Arm], plan: Plan) -> bool:
        """Whether nothing is missing of any of the arms."""
        blocks = Counter(line["arm"] for line in self.lines() if "block" in line)
        return all(blocks[arm.name] == plan.blocks for arm in arms)

    def vectors(self, name: str) -> Tensor:
        """``[blocks, parameters]``: block means that are in the cache."""
        file = self.cache / f"{name}.pt"
        return torch.load(file) if file.is_file() else torch.zeros(0, 0)

    def add_vector(self, name: str, block: int, mean: Tensor) -> list[float]:
        """Append a block's mean; returns its inner products with those up to it."""
        before = self.vectors(name)[:block]
        vectors = torch.cat([before, mean[None]]) if block else mean[None]
        self._save(self.cache / f"{name}.pt", vectors)
        return _rounded(vectors.double() @ mean.double())

    def append(self, lines: list[dict[str, Any]]) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))

    def publish(self) -> None:
        """Put the measurements where results are kept; the same lines make the same file."""
        self.published.write_bytes(gzip.compress(self.file.read_bytes(), mtime=0))

    # ---- reference -----------------------------------------------------------------------------------

    def keep_reference(self, means: Tensor) -> None:
        """``[R, parameters]``: means of the reference's blocks, or the gradient itself."""
        products = [_rounded(row) for row in means.double() @ means.double().T]
        self._save(self.cache / "reference.pt", means)
        self._write(self.folder / "reference.json", json.dumps({"products": products}) + "\n")

    # ---- what becomes of them ------------------------------------------------------------------------

    def blocks(self, plan: Plan) -> dict[str, Blocks]:
        """What was measured of each finished arm, by name."""
        by_arm: dict[str, list[dict[str, Any]]] = {}
        for line in self.lines():
            by_arm.setdefault(line["arm"], []).append(line)
        text = (self.folder / "reference.json").read_text(encoding="utf-8")
        reference = torch.tensor(json.loads(text)["products"], dtype=torch.float64)
        found = {name: _blocks(lines, reference, plan) for name, lines in by_arm.items()}
        return {name: blocks for name, blocks in found.items() if blocks is not None}

    def _save(self, file: Path, value: Tensor) -> None:
        torch.save(value, file.with_suffix(".tmp"))
        file.with_suffix(".tmp").replace(file)

    def _write(self, file: Path, text: str) -> None:
        file.with_suffix(".tmp").write_text(text, encoding="utf-8")
        file.with_suffix(".tmp").replace(file)


def _blocks(lines: list[dict[str, Any]], reference: Tensor, plan: Plan) -> Blocks | None:
    """An arm's lines as block means, None while it is unfinished."""
    ends = [line for line in lines if "block" in line]
    if len(ends) < plan.blocks:
        return None
    batches = {line["batch"]: line for line in lines if "batch" in line}
    rows = [[batches[number] for number in plan.block(block)] for block in range(plan.blocks)]

    def mean(of: Callable[[dict[str, Any]], Any]) -> Tensor:
        return torch.tensor([[of(line) for line in row] for row in rows], dtype=torch.float64).mean(1)

    products = torch.zeros(plan.blocks, plan.blocks, dtype=torch.float64)
    for line in ends:
        row = torch.tensor(line["products"], dtype=torch.float64)
        products[line["block"], : len(row)] = row
        products[: len(row), line["block"]] = row
    return Blocks(
        dots=mean(lambda line: line["dots"]),
        cosines=mean(lambda line: [d / (line["square"] ** 0.5 or 1.0) for d in line["dots"]]),
        squares=mean(lambda line: line["square"]),
        products=products,
        rollout=mean(lambda line: line["rollout"]),
        update=mean(lambda line: line["update"]),
        reference=reference,
    )


def make_reference(probe: Probe, arm: Arm, store: Store, plan: Plan, say: Callable[[str], None]) -> Tensor:
    """``[R, parameters]``: means of an arm over blocks of batches that no arm is judged on."""
    file = store.cache / "reference.pt"
    means = torch.load(file) if file.is_file() else torch.zeros(0, 0)
    for block in range(len(means), plan.blocks):
        steps = plan.reference_block(block)
        mean = sum(probe.estimate(arm, step).vector for step in steps) / len(steps)
        means = torch.cat([means, mean[None]]) if len(means) else mean[None]
        store.keep_reference(means)
        say(f"reference: block {block + 1} of {plan.blocks}")
    return means


def measure(
    probe: Probe,
    arms: list[Arm],
    reference: Tensor,
    store: Store,
    plan: Plan,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Measure whatever is missing of the arms; a batch is rolled out once for all that have its sampler."""
    done = store.resume(arms, plan)
    for block in range(plan.blocks):
        wanted = [arm for arm in arms if done[arm.name] <= block]
        if not wanted:
            continue
        lines: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in wanted}
        sums: dict[str, Tensor | float] = dict.fromkeys(lines, 0.0)
        for step in plan.block(block):
            for arm in wanted:
                found = probe.estimate(arm, step)
                sums[arm.name] = sums[arm.name] + found.vector
                lines[arm.name].append(
                    {
                        "arm": arm.name,
                        "batch": step,
                        "dots": _rounded((reference @ found.vector).double()),
                        "square": _rounded(found.vector.double().square().sum()),
                        "rollout": found.rollout,
                        "update": found.update,
                    }
                )
        for name, measured in lines.items():
            products = store.add_vector(name, block, sums[name] / len(measured))
            store.append([*measured, {"arm": name, "block": block, "products": products}])
        say(f"{len(wanted)} arms: block {block + 1} of {plan.blocks}")


def _rounded(values: Tensor) -> Any:
    """Numbers with about as many digits as float32 holds."""
    if values.ndim:
        return [_rounded(value) for value in values]
    return float(f"{float(values):.{DIGITS}g}")
