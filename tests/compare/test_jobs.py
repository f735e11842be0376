"""Processes of a comparison: one core each, one at a time beside a GPU."""

import os
import sys
from pathlib import Path

import torch

from egspo.compare.jobs import Jobs, default_at_once
from egspo.compare.plan import Run


def test_a_run_has_one_core_whatever_the_users_environment_says(tmp_path: Path, monkeypatch):
    says = tmp_path / "says"
    says.write_text('#!/bin/sh\necho "$OMP_NUM_THREADS $OF_THE_USER"\n')
    says.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(says))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("OF_THE_USER", "kept")
    run = Run("any", {"output_dir": str(tmp_path / "run")}, {}, "test", 1, {}, {})
    Jobs(1).run([run], lambda run: None)
    assert (tmp_path / "run" / "output.log").read_text() == "1 kept\n"


def test_runs_do_not_crowd_on_a_gpu(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(6))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert default_at_once() == 6
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert default_at_once() == 1
