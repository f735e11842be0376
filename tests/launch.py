"""Runs commands of egspo on several ranks, one command after the other: what torchrun does, for one import.

    python tests/launch.py 2 '["train", "debug/toy"]' '["sft", "settings.yaml"]'

torchrun starts a Python for each rank, and each loads torch and transformers anew, which takes longer than
the runs themselves. Here one process loads them and forks the ranks.
"""

import json
import multiprocessing
import os
import socket
import sys

import accelerate  # noqa: F401  (loaded before the ranks are forked)
import transformers  # noqa: F401

import egspo.sft
import egspo.trainer  # noqa: F401
from egspo import cli


def main() -> None:
    world, *commands = sys.argv[1:]
    context = multiprocessing.get_context("fork")
    for command in commands:
        port = _free_port()
        ranks = [
            context.Process(target=_rank, args=(json.loads(command), rank, int(world), port))
            for rank in range(int(world))
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        codes = [rank.exitcode for rank in ranks]
        if any(codes):
            sys.exit(f"{command}: exit codes {codes}")


def _rank(command: list[str], rank: int, world: int, port: int) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    sys.argv = ["egspo", *command]
    cli.main()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()
