"""Every command as a user types it: what it shows, what it writes, and the one line it ends with."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import runs
from egspo import cli, evaluation, registry
from egspo.compose import recipe_folder
from egspo.models.llada import LLaDAConfig
from egspo.models.source import shipped_models
from egspo.policy import load_policy
from egspo.rollout import generate
from egspo.trace import write_trace

COMMANDS = sorted(command.name or command.callback.__name__ for command in cli.app.registered_commands)
DEBUG = sorted(f"debug/{path.stem}" for path in (recipe_folder() / "debug").glob("*.yaml"))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a short SFT run on the toy task."""
    folder = tmp_path_factory.mktemp("run")
    runs.sft(folder)
    return folder


def refused(*arguments: str) -> str:
    """The line with which a command refuses what it was given: exit code 2, one line, no traceback."""
    ended = runs.egspo(*arguments)
    assert ended.code == 2, ended
    assert ended.out == ""
    assert re.fullmatch(r"egspo: .+\n", ended.err), ended.err
    return ended.err.removeprefix("egspo: ").rstrip("\n")


# ---- help and errors -----------------------------------------------------------------------------------


def test_help_lists_every_command():
    ended = runs.egspo("--help")
    assert ended.code == 0
    for command in ("sft", "train", "eval", "grade", "sample", "report", "list", "doctor"):
        assert command in COMMANDS
    for command in COMMANDS:
        assert re.search(rf"^  {command}\b", ended.out, re.MULTILINE), command


@pytest.mark.parametrize("command", COMMANDS)
def test_each_help_shows_an_example(command: str):
    ended = runs.egspo(command, "--help")
    assert ended.code == 0
    assert f"Example: egspo {command}" in ended.out


@pytest.mark.parametrize(
    "arguments", [["trian"], ["eval"], ["grade", "--task"], ["list"], ["eval", "x", "--nope"]]
)
def test_wrong_usage_ends_with_2(arguments: list[str]):
    ended = runs.egspo(*arguments)
    assert ended.code == 2
    assert "Error" in ended.err


def test_all_problems_of_a_configuration_are_lines():
    ended = runs.egspo("train", "debug/toy", "sed=1", "sampler.temperature=0", "train.num_generations=1")
    assert ended.code == 2
    lines = ended.err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("egspo: ") for line in lines)


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("EGSPO_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["egspo", "list", "nothing"])
    with pytest.raises(ValueError, match="nothing"):
        cli.main()


def test_a_failure_is_no_users_error(monkeypatch):
    """It ends with Python's own traceback and exit code 1."""

    def fail():
        raise RuntimeError("broken")

    monkeypatch.setattr("egspo.doctor.findings", fail)
    monkeypatch.setattr(sys, "argv", ["egspo", "doctor"])
    with pytest.raises(RuntimeError, match="broken"):
        cli.main()


def test_a_full_disk_is_no_users_error(monkeypatch):
    def fill():
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("egspo.doctor.findings", fill)
    monkeypatch.setattr(sys, "argv", ["egspo", "doctor"])
    with pytest.raises(OSError, match="No space left"):
        cli.main()


def test_an_interruption_says_how_to_go_on(monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("egspo.doctor.findings", interrupt)
    ended = runs.egspo("doctor")
    assert ended.code == 130
    assert ended.err == "\negspo: interrupted; the same command goes on from what was saved\n"


# ---- sft and train -------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", DEBUG)
def test_debug_recipes_run_from_any_folder(recipe: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps = ["train.max_steps=2", "train.eval_steps=2", "eval.limit=5"]
    ended = runs.egspo("train", recipe, *steps)
    assert ended.code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"run:  runs/{folder.name}" in ended.out
    assert f"next: egspo eval runs/{folder.name}" in ended.out
    assert len(runs.rows(folder)) == 2
    for name in ("config.json", "transcripts.jsonl", "checkpoints", "model", "eval/validation-000002.json"):
        assert (folder / name).exists(), name


COUNTDOWN = (
    "task={name: countdown, prompt: compact, max_number: 20, num_validation: 9, num_test: 20}",
    "sampler={max_completion_length: 8, block_length: 8, diffusion_steps: 8}",
)


@pytest.fixture(scope="module")
def countdown_base(tmp_path_factory) -> Path:
    """A model that a step of SFT trained on Countdown of task seed 3."""
    folder = tmp_path_factory.mktemp("countdown") / "sft"
    few = ["sft={batch_size: 4, max_steps: 1}", f"output_dir={folder}"]
    ended = runs.egspo("sft", *COUNTDOWN, "task.seed=3", "task.num_train=900", "model.init=tiny", *few)
    assert ended.code == 0, ended
    return folder


@pytest.mark.parametrize("seed", [0, 3])
def test_training_tells_what_the_model_was_trained_on_before(seed: int, countdown_base: Path, tmp_path: Path):
    few = ["task.num_train=100", "objective.name=egspo", "train.max_steps=1", f"output_dir={tmp_path}"]
    base = f"model.model_name_or_path={countdown_base}"
    ended = runs.egspo("train", *COUNTDOWN, f"task.seed={seed}", base, *few)
    assert ended.code == 0, ended
    told = re.search(
        r"^note: the model was trained on .* of 20 test problems before \(", ended.out, re.MULTILINE
    )
    assert (told is not None) == (seed == 0), ended.out


def test_a_full_device_is_told_with_what_helps(run: Path, monkeypatch):
    def fill(*_, **__) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nMore.")

    monkeypatch.setattr("egspo.cli.evaluate_and_show", fill)
    ended = runs.egspo("eval", str(run))
    assert ended.code == 1
    assert ended.err.startswith(
        "egspo: CUDA out of memory. Tried to allocate 9 GiB. Take fewer rows a pass: "
    )


def test_the_module_is_a_command(tmp_path: Path):
    """``python -m egspo``, as accelerate and torchrun start it, in another folder and another process."""
    arguments = [sys.executable, "-m", "egspo", "train", "debug/toy", "output_dir=out", "train.max_steps=2"]
    done = subprocess.run(
        arguments, cwd=tmp_path, capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "run:  out\n" in done.stdout
    assert "Traceback" not in done.stderr
    # Random numbers are the run's own: another process draws the same.
    runs.egspo("train", "debug/toy", f"output_dir={tmp_path / 'again'}", "train.max_steps=2")
    assert runs.timeless(runs.rows(tmp_path / "out")) == runs.timeless(runs.rows(tmp_path / "again"))


def test_sft_of_an_adapter_says_how_to_train_it_on(tmp_path: Path):
    settings = ["model={init: null, model_name_or_path: tiny:sudoku-sft, use_peft: true}"]
    settings += ["sft={max_steps: 1, eval_steps: 0, target_score: null}", f"output_dir={tmp_path}"]
    ended = runs.egspo("sft", "sudoku/task", "sudoku/sft", *settings)
    assert ended.code == 0, ended
    given = ended.out.partition("next:  egspo train ")[2].split()
    assert given[2:] == ["model.model_name_or_path=tiny:sudoku-sft", f"model.adapter={tmp_path / 'model'}"]
    ended = runs.egspo("train", *given, "train.max_steps=1", f"output_dir={tmp_path / 'rl'}", "--dry-run")
    assert ended.code == 0, ended


def test_sft_from_a_file_of_settings(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "model: {init: tiny}\ntask: {name: toy, prompt: compact}\n"
        "sampler: {max_completion_length: 2, block_length: 2, diffusion_steps: 2}\n"
        "sft: {max_steps: 2, batch_size: 4}\n"
    )
    ended = runs.egspo("sft", str(file), f"output_dir={tmp_path / 'out'}")
    assert ended.code == 0
    assert f"model: {tmp_path / 'out' / 'model'}" in ended.out
    assert "SFT 2/2" in ended.err
    saved = json.loads((tmp_path / "out" / "model" / "egspo.json").read_text())
    assert (saved["task"]["name"], saved["sampler"]["diffusion_steps"]) == ("toy", 2)


def test_a_folder_that_cannot_be_written_is_found_before_any_work(tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("")
    expected = f"{file}/out cannot be written ({file} is no folder); choose another folder"
    assert refused("train", "debug/toy", f"output_dir={file}/out") == f"output_dir: {expected}"
    assert refused("eval", "nowhere", "--out", f"{file}/out/x.json") == f"--out: {expected}"
    for out, words in ((tmp_path, "is a folder"), (tmp_path / "x.jsonl", "does not end with .json")):
        told = f"--out: {out} {words}; give a file FILE.json; answers go to FILE.jsonl beside it"
        assert refused("eval", "nowhere", "--out", str(out)) == told
    assert (
        refused("sample", "nowhere", "--prompt", "x", "--trace", f"{file}/out/x.html")
        == f"--trace: {expected}"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(tmp_path: Path):
    tmp_path.chmod(0o500)
    line = refused("train", "debug/toy", f"output_dir={tmp_path}/out")
    assert (
        line
        == f"output_dir: {tmp_path}/out cannot be written ({tmp_path} is read-only); choose another folder"
    )


def test_missing_models_are_named(tmp_path: Path):
    line = refused("eval", str(tmp_path / "no"), "--task", "toy")
    assert line.startswith(
        f"model.model_name_or_path: no folder '{tmp_path}/no'; give a folder with config.json"
    )
    assert line.endswith(", ".join(f"tiny:{name}" for name in shipped_models()))
    line = refused("eval", "tiny:nothing", "--task", "toy")
    assert line.startswith("model.model_name_or_path: no shipped model 'tiny:nothing'")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    line = refused("eval", str(tmp_path), "--task", "toy")
    known = "known: Dream, llada, and any masked language model of transformers"
    assert line == f"model.model_name_or_path: '{tmp_path}': model type 'gpt2' is unknown; {known}"


# ---- eval ----------------------------------------------------------------------------------------------


def test_eval_of_a_run_knows_task_and_sampler(run: Path, tmp_path: Path):
    out = tmp_path / "eval" / "test.json"
    ended = runs.egspo("eval", str(run), "--out", str(out), "--limit", "7")
    assert ended.code == 0
    summary, items = json.loads(out.read_text()), runs.rows(out.parent, "test.jsonl")
    assert summary.keys() >= set(
        ["name", "task", "model", "split", "n", "accuracy", "ci95", "reward", "counts", "seed", "temperature"]
    )
    assert (summary["task"], summary["split"], summary["n"], summary["name"]) == ("toy", "test", 7, "test")
    assert (summary["max_completion_length"], summary["temperature"]) == (2, 0.0)
    assert len(items) == 7
    right = sum(item["correct"] for item in items)
    assert f"toy test (length 2, 2 steps): accuracy {right / 7:.1%} ({right}/7, 95% " in ended.out
    # The same again, from the model's own folder.
    assert runs.egspo("eval", str(run / "model"), "--limit", "7").out == ended.out


def test_eval_at_several_lengths_writes_a_file_each(run: Path, tmp_path: Path):
    ended = runs.egspo("eval", str(run), "--length", "2", "--length", "4", "--out", str(tmp_path / "x.json"))
    assert ended.code == 0
    assert len(ended.out.splitlines()) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "x-2.json",
        "x-2.jsonl",
        "x-4.json",
        "x-4.jsonl",
    ]
    for length in (2, 4):
        summary = json.loads((tmp_path / f"x-{length}.json").read_text())
        # Half as many steps, in blocks of the model's own length.
        shape = summary["max_completion_length"], summary["diffusion_steps"], summary["block_length"]
        assert shape == (length, length // 2, 2)
        assert summary["name"] == f"x-{length}"


def test_eval_at_a_length_keeps_settings_that_are_given(run: Path, tmp_path: Path):
    given = ["sampler.diffusion_steps=1", "sampler.block_length=4"]
    assert runs.egspo("eval", str(run), "--length", "4", *given, "--out", str(tmp_path / "x.json")).code == 0
    summary = json.loads((tmp_path / "x.json").read_text())
    shape = summary["max_completion_length"], summary["diffusion_steps"], summary["block_length"]
    assert shape == (4, 1, 4)
    assert refused("eval", str(run), "--length", "4", "sampler.max_completion_length=8") == (
        "--length: [4] with sampler.max_completion_length=8; give one of the two"
    )
    assert refused("eval", str(run), "--steps", "2", "sampler.diffusion_steps=1") == (
        "--steps: 2 with sampler.diffusion_steps=1; give one of the two"
    )


def test_eval_takes_settings_of_task_and_sampler(run: Path, tmp_path: Path):
    out = tmp_path / "x.json"
    overrides = ["task.num_symbols=4", "sampler.temperature=0.5", "sampler.remasking=random"]
    ended = runs.egspo(
        "eval",
        str(run),
        *overrides,
        "--steps",
        "1",
        "--seed",
        "5",
        "--split",
        "validation",
        "--out",
        str(out),
    )
    assert ended.code == 0
    summary = json.loads(out.read_text())
    assert (summary["n"], summary["temperature"], summary["remasking"]) == (4, 0.5, "random")
    assert (summary["diffusion_steps"], summary["seed"], summary["split"]) == (1, 5, "validation")


def test_eval_draws_samples_and_seeds(run: Path, tmp_path: Path):
    out = tmp_path / "x.json"
    asked = ["sampler.temperature=1", "--num-samples", "4", "--pass-at-k", "1,2-3", "--seeds", "0-1,7"]
    ended = runs.egspo("eval", str(run), *asked, "--limit", "5", "--num-fewshot", "1", "--out", str(out))
    assert ended.code == 0
    summary = json.loads(out.read_text())
    assert (summary["num_samples"], summary["num_fewshot"], summary["seeds"]) == (4, 1, [0, 1, 7])
    assert (summary["n"], summary["num_problems"]) == (60, 5)
    lines = ended.out.splitlines()
    assert lines[0].startswith(f"toy test (length 2, 2 steps, 1-shot): accuracy {summary['accuracy']:.1%} (")
    for line, (k, score) in zip(lines[1:4], summary["pass_at_k"].items(), strict=True):
        low, high = score["ci95"]
        assert line == f"  pass@{k} {score['value']:.1%} (95% {low:.1%}-{high:.1%})"
    for line, row in zip(lines[4:7], summary["by_seed"], strict=True):
        assert line.startswith(f"  seed {row['seed']}: accuracy {row['accuracy']:.1%} ({row['correct']}/20, ")
    low, high = summary["over_seeds"]["ci95"]
    mean = f"accuracy {summary['over_seeds']['accuracy']:.1%} (95% over seeds {low:.1%}-{high:.1%})"
    assert lines[7:] == [f"  mean of 3 seeds: {mean}"]


def test_eval_goes_on_where_it_was_stopped(run: Path, tmp_path: Path, monkeypatch):
    """Ctrl-C after the second batch; the same command again does the rest, another one is refused."""
    command = ["eval", str(run), "sampler.temperature=1", "--batch-size", "3", "--out"]
    assert runs.egspo(*command, str(tmp_path / "whole.json")).code == 0
    real, batches = evaluation._complete, []

    def interrupted(*arguments):
        if len(batches) == 2:
            raise KeyboardInterrupt
        batches.append(1)
        return real(*arguments)

    monkeypatch.setattr(evaluation, "_complete", interrupted)
    ended = runs.egspo(*command, str(tmp_path / "cut.json"))
    assert ended.code == 130
    assert "the same command goes on" in ended.err
    assert len(runs.rows(tmp_path, "cut.jsonl")) == 6
    monkeypatch.setattr(evaluation, "_complete", real)
    line = refused(*command, str(tmp_path / "cut.json"), "--seed", "4", "--limit", "9")
    assert line == (
        f"--out: {tmp_path}/cut.jsonl holds answers of other settings (differs in fingerprints.problems, "
        "seed, seeds); choose another file, or delete it to begin anew"
    )
    ended = runs.egspo(*command, str(tmp_path / "cut.json"))
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert ended.out == runs.egspo(*command, str(tmp_path / "whole.json")).out
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("cut.json", "cut.jsonl", "whole.json", "whole.jsonl")
    ]


def test_eval_refuses_samples_that_tell_nothing(run: Path):
    assert refused("eval", "nowhere", "--pass-at-k", "1-a") == (
        "--pass-at-k: '1-a'; give whole numbers such as 0-4 or 1,5,10"
    )
    assert refused("eval", "nowhere", "--seeds", "4-0").startswith("--seeds: '4-0'; give whole numbers")
    assert refused("eval", "nowhere", "--seeds", "0-4", "--seed", "1") == (
        "--seeds: '0-4' with --seed 1; give one of the two"
    )
    line = refused("eval", "nowhere", "--num-samples", "4", "--pass-at-k", "5")
    assert line.startswith("pass_at_k: 5 is not between 1 and num_samples 4; draw at least 5 completions")
    assert "set sampler.temperature=0.8" in refused("eval", str(run), "--num-samples", "2")


def test_eval_refuses_what_it_cannot_do(run: Path, tmp_path: Path):
    assert refused("eval", str(run), "train.max_steps=3") == (
        "train.max_steps=3: only model.NAME=value or task.NAME=value or sampler.NAME=value or "
        "sandbox.NAME=value can be set here"
    )
    assert refused("eval", str(run), "sampler.stepps=1").startswith("sampler.stepps: unknown key; ")
    assert refused("eval", str(run), "--length", "3") == (
        "sampler.max_completion_length: 3 is not a multiple of block_length 2; use 2 or 4"
    )
    assert refused("eval", str(run), "--steps", "3") == (
        "sampler.diffusion_steps: 3 exceeds max_completion_length 2; use at most 2"
    )
    assert refused("eval", str(run), "--split", "tests") == (
        "split: 'tests' is unknown; give one of train, validation, test"
    )
    assert refused("eval", str(run), "--task", "sudok") == (
        "task.name: unknown task 'sudok'; did you mean 'sudoku'?"
    )
    assert refused("eval", str(run), "--task", "sudoku", "--data", str(tmp_path / "no.csv")).startswith(
        "task.data: "
    )
    (run / "model" / "egspo.json").rename(tmp_path / "egspo.json")
    try:
        assert refused("eval", str(run)).startswith("--task: missing; known: code, countdown, ")
    finally:
        (tmp_path / "egspo.json").rename(run / "model" / "egspo.json")


# ---- sample --------------------------------------------------------------------------------------------


def test_sample_answers_a_prompt_or_a_problem(run: Path):
    ended = runs.egspo("sample", str(run), "--prompt", "34")
    assert ended.code == 0
    assert len(ended.out.rstrip("\n")) <= 2
    ended = runs.egspo("sample", str(run), "--index", "3")
    assert ended.code == 0
    # Test problems are pairs of one digit.
    verdict = registry.load_task("toy", prompt="compact").grade(ended.out.rstrip("\n"), {"answer": "33"})
    assert f"{'correct' if verdict.correct else 'wrong'}: {verdict.reason}\n" in ended.err


def test_sample_refuses_what_it_would_ignore(run: Path):
    either = "--prompt: give either --prompt TEXT or --index N (with --task NAME)"
    assert refused("sample", str(run)) == either
    assert refused("sample", str(run), "--prompt", "x", "--index", "1") == either
    assert refused("sample", str(run), "--index", "10") == "--index: 10 is beyond the 10 problems; use 0 to 9"
    assert refused("sample", str(run), "--prompt", "x", "--task", "toy").startswith(
        "--prompt: takes no --task"
    )


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attributes) -> None:
        self.seen += [tag, *(f"{tag} {name}" for name, _ in attributes)]

    def handle_data(self, data: str) -> None:
        self.text += data


def assert_self_contained(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    assert set(tags.seen) <= {
        *("meta", "meta charset", "title", "style", "h1", "h2", "pre", "p", "table", "tr", "th", "td"),
        *("td class", "span", "span class", "span style"),
    }
    assert not re.search(r"https?:|url\(|@import", page)
    return tags


def test_a_trace_draws_every_step_and_escapes(run: Path, tmp_path: Path):
    hostile = "<script src='http://x'>&amp;</script>"
    file = tmp_path / "deep" / "trace.html"
    ended = runs.egspo("sample", str(run), "--prompt", hostile, "--trace", str(file))
    assert ended.code == 0
    assert f"trace: {file}\n" in ended.err
    tags = Tags()
    tags.feed(page := file.read_text(encoding="utf-8"))
    assert "script" not in tags.seen
    assert hostile in tags.text
    # A line a step, each revealing one of the two tokens.
    assert page.count("<tr><td>") == 2
    assert page.count("class=new") == 2


def test_a_trace_of_any_text_refers_to_nothing_outside(tiny_policy, tmp_path: Path):
    """A random model writes every character there is, markup among them."""
    policy = tiny_policy()
    settings = {"max_completion_length": 256, "block_length": 64, "diffusion_steps": 32, "temperature": 2.0}
    settings |= {"early_stop": False}
    out = generate(policy, ["12"], seed=1, **settings)
    text = policy.tokenizer.decode(out.trajectory.final[0].tolist())
    assert set("<>&'\"") <= set(text)
    page = write_trace(tmp_path / "trace.html", policy, "12", out).read_text(encoding="utf-8")
    # The last line shows the whole canvas.
    assert text in assert_self_contained(page).text


# ---- grade ---------------------------------------------------------------------------------------------


def generations(path: Path, *lines) -> str:
    text = "".join(
        (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)) + "\n" for line in lines
    )
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_grade_reports_broken_lines_and_goes_on(tmp_path: Path):
    """Lines 1 and 8 of seven that hold something (5 is empty) are right: 2 of 7 = 0.2857."""
    file = generations(
        tmp_path / "in.jsonl",
        {"generation": "11", "answer": "11"},
        '{"generation": "11", "answ',
        {"generation": "11"},
        {"generation": 11, "answer": "11"},
        "",
        [1],
        "[" * 100_000,
        # A line separator inside a text ends no line.
        {"generation": "22", "answer": "22", "note": "a\u2028b"},
    )
    ended = runs.egspo("grade", "--task", "toy", file)
    assert ended.code == 0
    *lines, last = ended.out.splitlines()
    assert last == "accuracy 0.2857 (2/7, 95% 0.082-0.641)"
    verdicts = [json.loads(line) for line in lines]
    assert [verdict["index"] for verdict in verdicts] == [0, 1, 2, 3, 5, 6, 7]
    assert [verdict["correct"] for verdict in verdicts] == [True, *[False] * 5, True]
    assert all(
        verdict.keys() >= set(["index", "correct", "reward", "extracted", "reason"]) for verdict in verdicts
    )
    assert [verdict["reward"] for verdict in verdicts] == [1.0, 0, 0, 0, 0, 0, 1.0]
    broken = [line.removeprefix(f"{file}: ") for line in ended.err.splitlines()]
    assert [line.split(":")[0] for line in broken] == ["line 2", "line 3", "line 4", "line 6", "line 7"]
    assert broken[1] == "line 3: no field answer; graded wrong"
    assert broken[2] == "line 4: generation is not a text; graded wrong"
    assert all(line.endswith("; graded wrong") for line in broken)


def test_grade_into_a_file(tmp_path: Path):
    file = generations(tmp_path / "in.jsonl", {"generation": "1x", "answer": "11"})
    out = tmp_path / "deep" / "out.jsonl"
    ended = runs.egspo("grade", "--task", "toy", file, "--out", str(out))
    assert ended.out == "accuracy 0.0000 (0/1, 95% 0.000-0.793)\n"
    (verdict,) = runs.rows(out.parent, out.name)
    assert (verdict["extracted"], verdict["reward"], verdict["counts"]) == ("1x", 0.5, {"symbols": [1, 2]})


def test_grade_tells_data_that_is_no_problem_by_its_line(tmp_path: Path):
    file = generations(tmp_path / "in.jsonl", {"generation": "1", "puzzle": "no puzzle"})
    ended = runs.egspo("grade", "--task", "sudoku", file)
    assert ended.code == 0
    assert ended.out.splitlines()[-1].startswith("accuracy 0.0000 (0/1,")
    assert ended.err.startswith(f"{file}: line 1: puzzle: ")


def test_grade_refuses_what_it_cannot_do(tmp_path: Path):
    file = generations(tmp_path / "in.jsonl", {"generation": "11", "answer": "11"})
    assert refused("grade", "--task", "toy", file, "--grader", "paper") == (
        "--grader: task 'toy' has no published grader; use --grader default"
    )
    assert refused("grade", "--task", "toy", file, "--grader", "best") == (
        "--grader: 'best' is unknown; give default or paper"
    )
    assert refused("grade", "--task", "tooy", file) == "task.name: unknown task 'tooy'; did you mean 'toy'?"
    # There is nothing to sample here.
    assert refused("grade", "--task", "toy", file, "sampler.temperature=1") == (
        "sampler.temperature=1: only task.NAME=value or sandbox.NAME=value can be set here"
    )
    assert runs.egspo("grade", "--task", "toy", str(tmp_path / "no.jsonl")).code == 2


# ---- report, list, doctor ------------------------------------------------------------------------------


def test_report_of_a_run(run: Path, tmp_path: Path):
    runs.egspo("eval", str(run), "--out", str(run / "eval" / "test.json"))
    ended = runs.egspo("report", str(run))
    assert ended.code == 0
    assert ended.out.endswith(f"report: {run / 'report.html'}\n")
    assert "test" in ended.out
    assert (run / "report.html").read_text().lower().startswith("<!doctype html>")
    assert runs.egspo("report", str(run), "--out", str(tmp_path / "mine.html")).code == 0
    assert (tmp_path / "mine.html").is_file()
    # What others wrote there is shown as far as it goes, or left out.
    other = shutil.copytree(run, tmp_path / "run")
    (other / "eval" / "own.json").write_text('{"accuracy": 0.5}')
    (other / "eval" / "notes.json").write_text('{"said": "good"}')
    out = runs.egspo("report", str(other)).out
    assert re.search(r"own .* 50\.0%", out) and "notes" not in out and "report: " in out
    assert refused("report", str(tmp_path)).startswith(
        f"{tmp_path}: not a run folder, config.json is missing; "
    )


def test_list_shows_a_line_for_each_with_its_source():
    for what in ("objectives", "tasks"):
        lines = runs.egspo("list", what).out.splitlines()
        assert [line.split()[0] for line in lines] == registry.names(what)
        assert all(line.endswith(")") for line in lines)
    recipes = runs.egspo("list", "recipes").out
    assert all(re.search(rf"^{name} +\S", recipes, re.MULTILINE) for name in DEBUG)
    models = runs.egspo("list", "models").out
    assert "init: tiny" in models
    assert all(f"tiny:{name}" in models for name in shipped_models())
    settings = runs.egspo("list", "settings").out
    for key in ("seed", "train.num_generations", "objective[egspo].num_selected_steps", "task[toy].width"):
        assert re.search(rf"^{re.escape(key)} +\S", settings, re.MULTILINE), key
    assert refused("list", "tsaks").startswith(
        "list: 'tsaks' is not one of objectives, tasks, models, recipes"
    )


def test_doctor_plans_memory_for_a_configuration_alone():
    for option in (["--memory", "16"], ["--ranks", "2"]):
        assert refused("doctor", *option).startswith("--memory, --ranks: of what a configuration needs")


def test_doctor_finds_what_there_is():
    ended = runs.egspo("doctor")
    assert ended.code == 0
    found = {line.split()[0]: line for line in ended.out.splitlines()}
    assert found.keys() >= {"python", "torch", "transformers", "device", "cpu", "memory", "trackers"}
    assert "toy" in found["tasks"]


def test_doctor_predicts_the_memory_of_a_run(tmp_path: Path):
    ended = runs.egspo("doctor", "--config", "debug/toy", "train.microbatch_size=8", "--memory", "2")
    assert ended.code == 0
    parts = {line.split()[0]: line.split()[1:] for line in ended.out.splitlines()}
    assert parts["available"] == ["2.0", "GiB"]
    assert "while updating: 8 canvases x (4 + 2) tokens, 1 of them scored\n" in ended.out
    assert float(parts["peak"][0]) > float(parts["weights"][0])
    assert ended.out.endswith("fits\n")
    ended = runs.egspo("doctor", "debug/toy", "--memory", "0.003")
    assert ended.code == 2
    assert "peak" in ended.out
    assert ended.err.startswith("egspo: train.microbatch_size: 256 needs ")
    assert runs.egspo("doctor", "debug/toy", "sed=1").code == 2
    # An SFT run is one that has its section.
    assert runs.egspo("doctor", "sudoku/task", "sudoku/sft").code == 0


def test_doctor_plans_for_a_device_that_is_not_here(tmp_path: Path):
    """4-bit weights of a model of which there is nothing but its configuration."""
    LLaDAConfig(d_model=64, n_layers=2, n_heads=4, mlp_hidden_size=96).save_pretrained(tmp_path)
    settings = [f"model={{model_name_or_path: {tmp_path}, load_in_4bit: true, use_peft: true}}"]
    ended = runs.egspo("doctor", "debug/toy", "model.init=null", *settings, "train.max_prompt_length=9")
    assert ended.code == 0, ended
    assert "in 4 bits" in ended.out
    assert "x (9 + 2) tokens" in ended.out
    settings = [f"model={{model_name_or_path: {tmp_path}, load_in_4bit: true}}"]
    line = refused("doctor", "debug/toy", "model.init=null", *settings)
    assert line.startswith("model.load_in_4bit: True without an adapter")


def test_train_tells_what_it_needs_and_refuses_what_cannot_fit(tmp_path: Path, monkeypatch):
    settings = ["train", "debug/toy", f"output_dir={tmp_path / 'run'}", "train.max_steps=1"]
    ended = runs.egspo(*settings)
    assert re.match(r"memory: about \S+ of \S+ GiB \(weights ", ended.out)
    monkeypatch.setattr("egspo.fit.available_bytes", lambda: 15 * 2**20)
    monkeypatch.setattr("egspo.policy.build_policy", lambda *_: pytest.fail("was loaded"))
    assert "use at most " in refused(*settings)


@pytest.mark.parametrize("name", shipped_models())
def test_shipped_models_answer(name: str):
    ended = runs.egspo("eval", f"tiny:{name}", "--limit", "20")
    assert ended.code == 0
    assert re.search(r"accuracy \d", ended.out)
    assert load_policy(f"tiny:{name}").source == f"tiny:{name}"


@pytest.mark.parametrize("command", ["train", "sft"])
def test_a_diverged_run_says_so_and_logs_nothing_that_is_no_number(tmp_path: Path, command: str):
    # Adam's first step is as long as the rate: 1e30 in every weight.
    common = [f"output_dir={tmp_path}", "optim.learning_rate=1e30", "optim.max_grad_norm=1e9"]
    if command == "train":
        ended = runs.egspo("train", "debug/toy", *common, "train.max_steps=9")
    else:
        settings = ["model.init=tiny", "task={name: toy, prompt: compact}", "sft.max_steps=9"]
        canvas = "sampler={max_completion_length: 2, block_length: 2, diffusion_steps: 2}"
        ended = runs.egspo("sft", *settings, canvas, *common)
    assert ended.code == 1
    assert ended.err.splitlines()[-1].startswith("egspo: diverged: ")
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    assert len(lines.splitlines()) == 1 and "NaN" not in lines
    unfinished = f"the run in '{tmp_path}' is not finished and has no model yet"
    assert unfinished in refused("eval", str(tmp_path), "--limit", "2")
