"""A run on several ranks of which one alone, by its own clock as it were, wants to stop after two iterations.

torchrun --nproc_per_node 2 tests/stopping.py MODEL FOLDER key=value…
"""

import sys
from pathlib import Path

import runs
from egspo import launch


def main() -> None:
    model, folder, *overrides = sys.argv[1:]
    runs.trainer(Path(folder), *runs.from_base(model), *overrides, callbacks=[stop_on_the_last_rank]).train()


def stop_on_the_last_rank(trainer, row) -> None:
    trainer.should_stop = row["step"] == 2 and launch.rank() == launch.world_size() - 1


if __name__ == "__main__":
    main()
