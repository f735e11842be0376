"""The section ``compare`` of a configuration: methods, budgets, search."""

from typing import Any

from pydantic import Field

from egspo.config import RLRun, parse_section
from egspo.sections import Section


class CompareConfig(Section):
    """The section ``compare`` of a comparison's configuration."""

    methods: dict[str, dict[str, Any]] = Field(
        {}, description="settings by label, over the rest; an objective's name needs no entry"
    )
    samples: int | None = Field(None, ge=1, description="completions a run; default: those of the base")
    seconds: float | None = Field(None, gt=0, description="processor seconds of training a run, besides")
    eval_steps: int | None = Field(
        None, ge=1, description="iterations between evaluations; default: a tenth of the samples"
    )
    grid: dict[str, list[Any]] | None = Field(
        None,
        description="what the search tries, for all; default: a third, once, three times the base's rate",
    )
    own_grid: dict[str, dict[str, list[Any]]] = Field(
        {},
        description="what it tries besides, by label; all methods must come to the same number of candidates",
    )
    rungs: list[float] = Field(
        [0.25, 1.0], min_length=1, description="shares of each budget after which to weigh"
    )
    keep: float = Field(1 / 3, gt=0, lt=1, description="share of the candidates that goes on after a rung")
    search_seed: int = Field(1000, description="seed of the search's runs, which no final run may have")

    def problems(self) -> list[str]:
        found = []
        if sorted(set(self.rungs)) != self.rungs or not all(0 < rung <= 1 for rung in self.rungs):
            found.append(f"rungs: {self.rungs}; give rising shares above 0 and up to 1")
        for label, grid in {"": self.grid or {}, **self.own_grid}.items():
            where = f"own_grid.{label}" if label else "grid"
            found += [
                f"{where}.{key}: no value to try; give a list" for key, values in grid.items() if not values
            ]
        return found


class _ComparedRun(RLRun):
    compare: CompareConfig


def parse_compare(values: Any, over: dict[str, Any]) -> CompareConfig:
    """The section as a file gives it, with what the command line says over it.

    Raises:
        ConfigError: with everything that is wrong with it.
    """
    return parse_section(_ComparedRun, "compare", {**values, **over} if isinstance(values, dict) else values)
