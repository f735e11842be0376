"""The model of lm-evaluation-harness on tasks of its own, made here: texts and likelihoods are egspo's."""

import importlib.metadata
import json
import math
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'egspo[eval]'")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

from egspo import harness, registry
from egspo.elbo import greedy_matches, log_likelihoods
from egspo.harness import DiffusionLM
from egspo.policy import load_policy
from egspo.rollout import generate
from egspo.settings import shipped_settings

MODEL = "tiny:countdown-sft"
NUM = 12
PARTS = {
    "puzzles": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": 0,
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    },
    "texts": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
}


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """Problems of the shipped model's task, with their solution and two wrong answers."""
    settings = shipped_settings("countdown-sft")["task"]
    problems = registry.load_task(**settings).load("test")[:NUM]
    return [
        {
            "question": problem.messages[0]["content"],
            "answer": problem.solution,
            "choices": [problem.solution, "1+1=2", problem.solution[::-1]],
        }
        for problem in problems
    ]


@pytest.fixture(scope="module")
def tasks(rows: list[dict], tmp_path_factory) -> Path:
    """A folder of tasks as the harness describes them, on a local file."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, part in PARTS.items():
        data = {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        }
        whole = {"task": name, "test_split": "test", **data, **part}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(whole))
    return folder


@pytest.fixture(scope="module")
def evaluated(tasks: Path, tmp_path_factory) -> dict:
    """What the harness makes of all three tasks with the chat template."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        return simple_evaluate(
            model="egspo",
            model_args={"pretrained": MODEL, "mc_num": 16},
            tasks=list(PARTS),
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            apply_chat_template=True,
            batch_size=5,
            device="cpu",
        )


@pytest.fixture(scope="module")
def policy():
    return load_policy(MODEL)


def samples(evaluated: dict, name: str) -> list[dict]:
    return sorted(evaluated["samples"][name], key=lambda sample: sample["doc_id"])


def chat(policy, row: dict) -> list[int]:
    return policy.encode_prompts([row["question"]])[0]


def request(kind: str, *arguments, doc_id: int = 0) -> Instance:
    return Instance(kind, {}, arguments, 0, metadata=("mine", doc_id, 1))


def test_texts_are_those_of_egspo(evaluated: dict, rows: list[dict], policy):
    sampler = shipped_settings("countdown-sft")["sampler"] | {"temperature": 0.0}
    expected = generate(policy, [row["question"] for row in rows], **sampler).texts
    assert [sample["resps"][0][0] for sample in samples(evaluated, "puzzles")] == expected
    right = sum(text == row["answer"] for text, row in zip(expected, rows, strict=True))
    assert 0 < right < NUM
    assert evaluated["results"]["puzzles"]["exact_match,none"] == pytest.approx(right / NUM)


def test_choices_are_weighed_by_the_bound(evaluated: dict, rows: list[dict], policy):
    encode = policy.tokenizer
    best = []
    for sample, row in zip(samples(evaluated, "choices"), rows, strict=True):
        pairs = [(chat(policy, row), encode(choice)["input_ids"]) for choice in row["choices"]]
        bounds = log_likelihoods(policy, pairs, 16)
        greedy = greedy_matches(policy, pairs)
        found = [tuple(answer) for (answer,) in sample["resps"]]
        assert [value for value, _ in found] == pytest.approx(bounds, abs=1e-4)
        assert [flag for _, flag in found] == greedy
        best.append(max(range(3), key=lambda i: bounds[i]))
    assert evaluated["results"]["choices"]["acc,none"] == pytest.approx(best.count(0) / NUM)
    # The model knows its task: a solution beats wrong answers more often than one time in three.
    assert best.count(0) > NUM / 2


def test_whole_texts_follow_the_end_of_the_last(evaluated: dict, rows: list[dict], policy):
    """The tiny tokenizer has no first token, so the end token stands before a text."""
    texts = [policy.tokenizer(row["answer"])["input_ids"] for row in rows]
    bounds = log_likelihoods(policy, [([policy.end_token_ids[0]], text) for text in texts], 16)
    bytes_ = sum(len(row["answer"].encode()) for row in rows)
    expected = -sum(bounds) / bytes_ / math.log(2)
    assert evaluated["results"]["texts"]["bits_per_byte,none"] == pytest.approx(expected, rel=1e-4)


def test_settings_stand_beside_the_scores(evaluated: dict):
    about = evaluated["config"]["egspo"]
    assert (about["model"], about["mc_num"], about["seed"]) == (MODEL, 16, 0)
    (sampler,) = about["samplers"]
    assert (sampler["temperature"], sampler["diffusion_steps"]) == (0.0, 8)


def test_it_is_registered_and_announced():
    assert get_model("egspo") is DiffusionLM
    announced = {entry.name: entry.value for entry in importlib.metadata.entry_points(group="lm_eval.models")}
    # Only an installed package announces anything.
    assert announced.get("egspo", "egspo.harness:DiffusionLM") == "egspo.harness:DiffusionLM"


def test_answers_are_cut_where_the_task_says(policy):
    model = DiffusionLM(MODEL, max_completion_length=8)
    (whole,) = model.generate_until([request("generate_until", "12,3,5=20", {})])
    assert len(whole) > 2
    for wanted, expected in (
        ({"until": [whole[2]]}, whole[: whole.index(whole[2])]),
        ({"until": whole[1:3]}, whole[: whole.index(whole[1:3])]),
        ({"until": ["never", ""]}, whole),
        ({"max_gen_toks": 2}, policy.tokenizer.decode(policy.tokenizer(whole)["input_ids"][:2])),
    ):
        assert model.generate_until([request("generate_until", "12,3,5=20", wanted)]) == [expected], wanted


def test_the_canvas_is_the_users_then_the_models_then_the_tasks(tmp_path: Path, policy):
    assert DiffusionLM(MODEL)._sampler({}).max_completion_length == 8
    assert DiffusionLM(MODEL, max_completion_length=4)._sampler({"max_gen_toks": 50}).diffusion_steps == 2
    assert DiffusionLM(MODEL)._sampler({"max_gen_toks": 50}).max_completion_length == 8
    # A model that is not ours says nothing: blocks of 32, as many as the task's limit needs.
    policy.save(tmp_path)
    bare = DiffusionLM(str(tmp_path))
    shape = ("max_completion_length", "block_length", "diffusion_steps")
    found = {n: [getattr(bare._sampler({"max_gen_toks": n}), key) for key in shape] for n in (20, 32, 50)}
    assert found == {20: [20, 20, 10], 32: [32, 32, 16], 50: [64, 32, 32]}
    assert [getattr(bare._sampler({}), key) for key in shape] == [256, 32, 128]
    stepped = DiffusionLM(str(tmp_path), steps=10, block_length=4)
    assert [getattr(stepped._sampler({"max_new_tokens": 17}), key) for key in shape] == [20, 4, 10]


def test_temperature_is_the_users_or_the_tasks():
    asked = {"do_sample": True, "temperature": 0.7}
    assert DiffusionLM(MODEL)._sampler(asked).temperature == 0.7
    assert DiffusionLM(MODEL)._sampler({"do_sample": True}).temperature == 1.0
    assert DiffusionLM(MODEL)._sampler({"do_sample": False, "temperature": 0.7}).temperature == 0.0
    assert DiffusionLM(MODEL, temperature=0.2)._sampler(asked).temperature == 0.2


def test_draws_differ_by_problem_and_repetition_not_by_batch():
    """Repeated requests are the same object several times, as the harness repeats them."""
    one = request("generate_until", "5,3,28=20", {"do_sample": True, "temperature": 2.0})
    two = request("generate_until", "5,3,28=20", {"do_sample": True, "temperature": 2.0}, doc_id=1)
    requests = [one] * 4 + [two] * 4
    texts = DiffusionLM(MODEL, batch_size=64).generate_until(requests)
    assert len(set(texts)) == 8
    assert DiffusionLM(MODEL, batch_size=3).generate_until(requests) == texts
    # A rank that has only the second problem draws the same for it.
    assert DiffusionLM(MODEL).generate_until([two] * 4) == texts[4:]
    assert DiffusionLM(MODEL, seed=1).generate_until(requests) != texts


def test_settings_without_a_meaning_are_told(caplog):
    model = DiffusionLM(MODEL)
    for _ in range(2):
        model.generate_until([request("generate_until", "1", {"top_p": 0.9, "until": ["x"]})])
    assert [record.message for record in caplog.records] == [
        "generation_kwargs: top_p=0.9 has no meaning here and is ignored"
    ]


def test_long_texts_are_cut_into_windows(policy):
    """Seven tokens in windows of five: the end token and four, then the last three after the two before."""
    model = DiffusionLM(MODEL, max_length=5, mc_num=15)
    tokens = policy.tokenizer("12+3*4-5")["input_ids"]
    assert len(tokens) == 7
    (bound,) = model.loglikelihood_rolling([request("loglikelihood_rolling", "12+3*4-5")])
    windows = [([policy.end_token_ids[0]], tokens[:4]), (tokens[2:4], tokens[4:])]
    assert bound == pytest.approx(sum(log_likelihoods(policy, windows, 15)), abs=1e-4)


def test_a_model_of_long_texts_is_read_in_windows_all_the_same(policy, monkeypatch):
    assert policy.max_length == 1024
    assert DiffusionLM(MODEL).max_length == 1024
    monkeypatch.setattr(harness, "WINDOW", 7)
    assert DiffusionLM(MODEL).max_length == 7
    assert DiffusionLM(MODEL, max_length=4096).max_length == 1024


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"^sampler.blok: unknown key; "):
        DiffusionLM(MODEL, blok=3)
    with pytest.raises(ValueError, match=r"^batch_size: 'auto'; give a whole number from 1$"):
        DiffusionLM(MODEL, batch_size="auto")
    with pytest.raises(ValueError, match=r"^mc_num: 0; give a whole number from 1$"):
        DiffusionLM(MODEL, mc_num=0)
    with pytest.raises(ValueError, match=r"^add_bos_token: True, but tiny:countdown-sft names no first"):
        DiffusionLM(MODEL, add_bos_token=True)
    with pytest.raises(ValueError, match=r"no shipped model 'tiny:nothing'"):
        DiffusionLM("tiny:nothing")


def test_the_command_line(tasks: Path, tmp_path: Path, monkeypatch, capsys):
    """The options are those of ``lm_eval``; what a user got wrong is a line."""
    arguments = ["egspo.harness", "--model", "egspo", "--tasks", "puzzles", "--include_path", str(tasks)]
    arguments += ["--limit", "4", "--batch_size", "4", "--output_path", str(tmp_path / "out.json")]
    arguments += ["--model_args", f"pretrained={MODEL},temperature=0.5"]
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(sys, "argv", list(arguments))
    harness.main()
    out = capsys.readouterr().out
    assert re.search(r"\| *Tasks *\|Version\|", out)
    assert re.search(r"\|puzzles\|.*\|exact_match\|", out)
    (file,) = tmp_path.glob("out*.json")
    saved = json.loads(file.read_text())
    assert saved["config"]["egspo"]["samplers"][0]["temperature"] == 0.5
    assert 0 <= saved["results"]["puzzles"]["exact_match,none"] <= 1
    monkeypatch.setattr(sys, "argv", [*arguments, "--samples", '{"puzzles": [0]}'])
    with pytest.raises(SystemExit) as ended:
        harness.main()
    assert ended.value.code == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == "egspo: If --samples is not None, then --limit must be None."


def test_steps_that_do_not_fit_are_found_before_any_task():
    with pytest.raises(ValueError, match=r"^sampler.diffusion_steps: 9 exceeds max_completion_length 8; use"):
        DiffusionLM(MODEL, steps=9)
    with pytest.raises(ValueError, match=r"^--steps: 4 with sampler.diffusion_steps=8; give one of the two$"):
        DiffusionLM(MODEL, steps=4, diffusion_steps=8)


def test_without_the_harness_it_says_what_is_missing(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "egspo.harness")
    missing = r"^egspo.harness: needs lm-evaluation-harness \(.*lm_eval.*\); pip install 'egspo\[eval\]'$"
    with pytest.raises(ImportError, match=missing):
        import egspo.harness  # noqa: F401
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("egspo.harness", run_name="__main__")
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("egspo: egspo.harness: needs lm-evaluation-harness")
    assert told.count("\n") == 1


def test_a_chat_is_written_with_the_models_template(policy):
    model = DiffusionLM(MODEL)
    turns = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
    assert model.apply_chat_template(turns[:1]) == "<|user|>1<|assistant|>"
    assert model.apply_chat_template(turns, add_generation_prompt=False) == "<|user|>1<|assistant|>2"
    assert model.chat_template(True) == policy.tokenizer.chat_template
    assert model.tokenizer_name.startswith("tiny:countdown-sft-")
    assert torch.equal(
        torch.tensor(model.tok_encode(model.apply_chat_template(turns[:1]))),
        torch.tensor(policy.encode_prompts([turns[:1]])[0]),
    )
