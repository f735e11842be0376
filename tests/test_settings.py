"""What a model remembers of its training, and which code is run because of it."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import runs
from egspo.compose import merge
from egspo.policy import load_policy
from egspo.settings import each_task, eval_batch_size, precision_of, samplers_of, without_code

EXAMPLES = Path(__file__).parents[1] / "examples"
SIZES = {"num_train": 50, "num_validation": 10, "num_test": 10}
OWN = {"prompt": "compact", "num_digits": 3, **SIZES}
REWARD = "def f(completions, **_):\n    return [float(len(text)) for text in completions]\n"


def train(folder: Path, task: dict, **settings: dict) -> Path:
    """A run of one iteration in ``folder/run``."""
    values = merge(runs.RL | {"output_dir": str(folder / "run"), "task": task}, settings)
    values["train"] = values["train"] | {"max_steps": 1}
    (folder / "run.json").write_text(json.dumps(values))
    ended = runs.egspo("train", str(folder / "run.json"))
    assert ended.code == 0, ended
    return folder / "run"


def refused(*arguments: str) -> str:
    ended = runs.egspo(*arguments)
    assert (ended.code, ended.out, len(ended.err.splitlines())) == (2, "", 1), ended
    return ended.err.removeprefix("egspo: ").rstrip("\n")


@pytest.fixture
def own(tmp_path: Path, monkeypatch) -> Path:
    """A run on a task in a file, given as a path from the working directory."""
    (tmp_path / "code").mkdir()
    shutil.copyfile(EXAMPLES / "my_task.py", tmp_path / "code" / "my_task.py")
    monkeypatch.chdir(tmp_path / "code")
    run = train(tmp_path, {"path": "my_task.py", **OWN})
    monkeypatch.chdir(tmp_path)
    return run


def test_a_task_in_a_file_is_found_again(own: Path, tmp_path: Path):
    file = tmp_path / "code" / "my_task.py"
    assert json.loads((own / "model/egspo.json").read_text())["task"]["path"] == str(file)
    evaluated = runs.egspo("eval", str(own), "--limit", "5")
    assert evaluated.code == 0 and evaluated.out.startswith("sort-digits test ")
    # Named, it keeps the settings of the training.
    assert runs.egspo("eval", str(own), "--limit", "5", "--task", str(file)).out == evaluated.out
    sampled = runs.egspo("sample", str(own), "--index", "3")
    assert sampled.code == 0 and "of 3 places are right" in sampled.err
    # The same command goes on with the run; another file is another configuration.
    assert runs.egspo("train", str(tmp_path / "run.json"), f"task.path={file}").code == 0
    other = shutil.copyfile(file, tmp_path / "other.py")
    assert "differs in task.path" in refused_run(tmp_path / "run.json", f"task.path={other}")


def refused_run(*arguments) -> str:
    ended = runs.egspo("train", *map(str, arguments))
    assert ended.code == 2
    return ended.err.splitlines()[-1]


def test_a_file_that_is_gone_is_told_and_can_be_given(own: Path, tmp_path: Path):
    file = tmp_path / "code" / "my_task.py"
    moved = file.rename(tmp_path / "moved.py")
    assert refused("eval", str(own)) == (
        f"--task: the model was trained on 'sort-digits' in {file}, which is gone; give the file as "
        "--task FILE.py"
    )
    assert refused("sample", str(own), "--index", "0").startswith("--task: the model was trained on")
    ended = runs.egspo("eval", str(own), "--limit", "5", "--task", str(moved))
    assert ended.code == 0 and ended.out.startswith("sort-digits test ")
    assert runs.egspo("eval", str(own), "--limit", "5", f"task.path={moved}").out == ended.out
    assert runs.egspo("eval", str(own), "--task", "toy", "--limit", "5").code == 0


def test_generations_are_graded_by_a_task_in_a_file(tmp_path: Path):
    file = tmp_path / "generations.jsonl"
    rows = {"generation": "<answer>123</answer>", "digits": "312"}, {"generation": "1", "digits": 3}
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ended = runs.egspo("grade", "--task", str(EXAMPLES / "my_task.py"), str(file))
    verdicts = [json.loads(line) for line in ended.out.splitlines()[:-1]]
    # All parts of a right answer at their weights: 1 + 0.5 + 0.1.
    assert [(v["correct"], v["reward"]) for v in verdicts] == [(True, 1.6), (False, 0.0)]
    assert "line 2: digits: 3; give the digits to sort as a text" in ended.err


def test_code_that_came_with_a_model_is_never_run(own: Path, tmp_path: Path, monkeypatch):
    """Of a model's folder its settings name code in it: fetched from anywhere, they must not run that."""
    evil, mark = own / "model" / "evil.py", tmp_path / "mark"
    evil.write_text(f"open({str(mark)!r}, 'w')\ndef f(**_): ...\nclass Task: ...\n")
    settings = json.loads((own / "model/egspo.json").read_text())
    task = {"name": "custom", "train_data": str(EXAMPLES / "prompts.jsonl"), "num_test": 5}
    monkeypatch.chdir(tmp_path)
    for named, told in (
        ({"name": "mine", "path": str(evil)}, "--task: the model was trained on 'mine' in a file"),
        ({"name": "mine", "path": "run/model/evil.py"}, "--task: the model was trained on 'mine' in a file"),
        (task | {"reward": f"{evil}:f"}, "task.reward: missing"),
        (task | {"reward": "run.model.evil:f"}, "task.reward: missing"),
        ({"name": "mix", "tasks": [task | {"reward": f"{evil}:f"}]}, "task.tasks.0.reward: missing"),
        ({"name": "mix", "tasks": [{"name": "mine", "path": str(evil)}]}, "task.tasks.0.name: unknown task"),
    ):
        (own / "model/egspo.json").write_text(json.dumps(settings | {"task": named}))
        assert refused("eval", str(own), "--limit", "1").startswith(told)
        assert not mark.exists()
    # Said by the user, it is the user's: a file with something else in it than a task.
    assert "has no class Task" in refused("eval", str(own), "--task", str(evil))
    assert mark.exists()


def test_a_published_model_names_no_file_and_no_code_of_this_machine(own: Path, tmp_path: Path):
    ended = runs.egspo("publish", str(own), "me/mine", "--dry-run")
    assert ended.code == 0, ended
    texts = {f.name: f.read_text() for f in (own / "publish").iterdir() if f.suffix != ".safetensors"}
    assert [name for name, text in texts.items() if str(tmp_path) in text] == []
    assert "`sort-digits`: write digits in ascending order (an example" in texts["README.md"]
    assert "Files: path `my_task.py`." in texts["README.md"]
    assert refused("eval", str(own / "publish")) == (
        "--task: the model was trained on 'sort-digits' in a file that does not come with it; give the file "
        "as --task FILE.py"
    )
    file = tmp_path / "code" / "my_task.py"
    assert runs.egspo("eval", str(own / "publish"), "--limit", "5", "--task", str(file)).code == 0


def test_a_mix_with_files_is_saved_found_and_published(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rewards.py").write_text(REWARD)
    shutil.copyfile(EXAMPLES / "prompts.jsonl", "prompts.jsonl")
    custom = {"name": "custom", "reward": "rewards.py:f", "train_data": "prompts.jsonl"}
    custom |= {"num_validation": 10, "num_test": 10}
    tasks = [{"path": str(EXAMPLES / "my_task.py"), **OWN}, custom]
    run = train(tmp_path, {"name": "mix", "tasks": tasks})
    saved = json.loads((run / "model/egspo.json").read_text())["task"]["tasks"]
    assert saved[1]["train_data"] == str(tmp_path / "prompts.jsonl")
    assert saved[1]["reward"] == f"{tmp_path / 'rewards.py'}:f"
    assert "data" not in saved[0]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    ended = runs.egspo("eval", str(run), "--limit", "6")
    assert ended.code == 0 and ", sort-digits " in ended.out and ", custom " in ended.out
    assert runs.egspo("publish", str(run), "me/mine", "--dry-run").code == 0
    card, kept = (run / "publish/README.md").read_text(), (run / "publish/egspo.json").read_text()
    assert str(tmp_path) not in card + kept
    assert "`sort-digits`: write digits" in card and "`custom`: prompts in a file" in card
    assert "Files: tasks.0.path `my_task.py`, tasks.1.train_data `prompts.jsonl`." in card


def test_each_task_of_a_mix_is_changed():
    values = {"name": "mix", "data": 1, "tasks": [{"name": "a", "data": 2}, {"name": "b"}]}
    changed = each_task(values, lambda task: {key: value for key, value in task.items() if key != "data"})
    assert changed == {"name": "mix", "tasks": [{"name": "a"}, {"name": "b"}]}
    assert values["tasks"][0] == {"name": "a", "data": 2}


def test_a_setting_called_reward_is_code_in_custom_alone():
    assert without_code({"name": "mine", "path": "x.py", "reward": 2.0}) == {"name": "mine", "reward": 2.0}
    assert without_code({"name": "custom", "reward": "a.b:f", "seed": 1}) == {"name": "custom", "seed": 1}
    asked: list[Path] = []
    without_code({"name": "custom", "reward": "a.b:f"}, lambda file: asked.append(file) or False)
    assert asked == [Path("a/b")]


@pytest.fixture(scope="module")
def halved(tmp_path_factory) -> Path:
    """A run of one iteration on weights in bfloat16."""
    folder = tmp_path_factory.mktemp("halved")
    load_policy("tiny:sudoku-sft", dtype="bfloat16").save(folder / "base")
    changes = ["model.dtype=bfloat16", "model.use_peft=true", "model.lora_r=2", "train.max_steps=1"]
    runs.trainer(folder / "run", *runs.from_base(folder / "base"), *changes, dtype=None).train()
    return folder


def test_a_model_is_used_in_the_precision_that_it_was_trained_in(halved: Path):
    asked = precision_of(str(halved / "run"), None, [])
    assert asked == {"dtype": "bfloat16", "bf16": False, "load_in_4bit": False}
    assert precision_of("tiny:sudoku-sft", str(halved / "run"), []) == asked
    policy = load_policy(halved / "run", **asked)
    assert policy.model.get_base_model().get_input_embeddings().weight.dtype == torch.bfloat16


def test_a_model_that_is_not_ours_is_used_as_it_is_stored(halved: Path):
    for model, dtype in ((halved / "base", torch.bfloat16), ("tiny:sudoku-sft", torch.float32)):
        policy = load_policy(model, **precision_of(str(model), None, []))
        assert {p.dtype for p in policy.model.parameters()} == {dtype}


def test_precision_can_be_set_and_nothing_else_of_the_model(halved: Path):
    run = str(halved / "run")
    assert precision_of(run, None, ["model.dtype=float32", "model.bf16=true"]) == {
        "dtype": "float32",
        "bf16": True,
        "load_in_4bit": False,
    }
    assert runs.egspo("eval", run, "model.dtype=float32", "--limit", "3").code == 0
    assert refused("sample", run, "--prompt", "1", "model.lora_r=4") == (
        "model.lora_r: the model is used as it was saved; only model.dtype, model.bf16, model.load_in_4bit "
        "can be set here"
    )
    assert "model.dtype: 'int8'" in refused("sample", run, "--prompt", "1", "model.dtype=int8")


def test_a_model_is_evaluated_as_its_run_was_validated(tmp_path: Path):
    decoding = {"batch_size": 3, "temperature": 0.7, "remasking": "random"}
    run = train(tmp_path, runs.RL["task"], eval=decoding, train={"eval_steps": 1})
    validated = json.loads((run / "eval/validation-000001.json").read_text())
    file = tmp_path / "mine.json"
    assert runs.egspo("eval", str(run), "--split", "validation", "--out", str(file)).code == 0
    evaluated = json.loads(file.read_text())
    assert evaluated["temperature"] == 0.7
    own = {"name", "model", "step"}
    assert {k: v for k, v in evaluated.items() if k in validated.keys() - own} == {
        k: v for k, v in validated.items() if k not in own
    }
    assert eval_batch_size(load_policy(run)) == 3
    # Said by the user, it is the user's.
    (told,) = samplers_of(load_policy(run), [], None, ["sampler.temperature=0.0"])
    assert (told.temperature, told.remasking) == (0.0, "random")
