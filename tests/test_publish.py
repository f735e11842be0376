"""Publishing: the folder loads back, the card says what the run's files say, and the upload is the folder."""

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, constants, utils
from safetensors.torch import load_file

import runs
from egspo import hub, registry
from egspo.config import ConfigError, ModelConfig, SamplerConfig
from egspo.policy import load_policy
from egspo.publish import read_run
from egspo.settings import saved_task

REPO = "somebody/toy-model"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("publish") / "base"
    runs.sft(folder, "sft.max_steps=2")
    return folder


@pytest.fixture(scope="module")
def full(base: Path) -> Path:
    """An RL run of all weights, evaluated at two lengths, with an evaluation of its base beside them."""
    folder = base.parent / "full"
    runs.train(folder, *runs.from_base(base), "train.eval_steps=1", "eval.limit=3")
    out = ("--limit", "7", "--out")
    assert runs.egspo("eval", str(folder), *out, str(folder / "eval/test.json")).code == 0
    lengths = ("--length", "2", "--length", "4")
    assert runs.egspo("eval", str(folder / "model"), *lengths, *out, str(folder / "eval/long.json")).code == 0
    assert runs.egspo("eval", str(base), *out, str(folder / "eval/before.json")).code == 0
    return folder


@pytest.fixture(scope="module")
def lora(base: Path) -> Path:
    folder = base.parent / "lora"
    runs.train(folder, *runs.from_base(base), "model.use_peft=true", "model.lora_r=2")
    # Zero at first, an adapter must come to differ from its base for the tests to see it.
    for file, to in (("test", folder), ("before", base)):
        assert (
            runs.egspo("eval", str(to), "--limit", "3", "--out", str(folder / f"eval/{file}.json")).code == 0
        )
    return folder


@pytest.fixture
def online(monkeypatch, tmp_path: Path) -> None:
    """As on a machine with a network on which nobody has logged in."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    if hasattr(utils, "reset_sessions"):  # before release 1.0 a session kept whether it was offline
        utils.reset_sessions()
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def published(run: Path, *options: str) -> Path:
    ended = runs.egspo("publish", str(run), REPO, "--dry-run", *options)
    assert ended.code == 0, ended
    again = " ".join(("egspo publish", str(run), REPO, *options))
    assert ended.out == f"folder: {run / 'publish'}\nnext:   {again}\n"
    return run / "publish"


def refused(*arguments: str) -> str:
    ended = runs.egspo("publish", *arguments)
    assert (ended.code, ended.out) == (2, ""), ended
    assert len(ended.err.splitlines()) == 1
    return ended.err.removeprefix("egspo: ").rstrip("\n")


def same_logits(one: str | Path, other: str | Path) -> bool:
    tokens = torch.arange(40, 52)[None]
    return torch.equal(load_policy(one).logits(tokens), load_policy(other).logits(tokens))


# ---- the folder ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["base", "full", "lora"])
def test_the_folder_loads_back_as_the_run(kind: str, request):
    run = request.getfixturevalue(kind)
    folder = published(run)
    weights = "adapter_model.safetensors" if kind == "lora" else "model.safetensors"
    for name in (weights, "tokenizer.json", "tokenizer_config.json", "egspo.json", "README.md"):
        assert (folder / name).is_file(), name
    assert same_logits(folder, run)
    # Task and sampler come along: evaluating needs no further word.
    evals = [runs.egspo("eval", str(place), "--limit", "5").out for place in (folder, run)]
    assert evals[0] == evals[1] != ""


def test_a_card_names_the_iteration_that_was_kept(full: Path, base: Path, tmp_path: Path):
    assert ": 2 iterations, 32 samples." in (published(full) / "README.md").read_text()
    best = ("train.eval_steps=1", "eval.limit=3", "train.load_best_model_at_end=true", "train.max_steps=3")
    runs.train(tmp_path / "best", *runs.from_base(base), *best)
    curve = [json.loads(f.read_text())["accuracy"] for f in sorted((tmp_path / "best/eval").glob("*.json"))]
    card = (published(tmp_path / "best") / "README.md").read_text()
    assert f": the best validated of 3 iterations, after {curve.index(max(curve)) + 1}, 48 samples." in card


def test_an_adapter_moves_the_model_and_holds_nothing_else(lora: Path, base: Path):
    assert not same_logits(lora, base)
    names = load_file(lora / "model" / "adapter_model.safetensors")
    assert names and all(".lora_" in name for name in names)


def test_no_path_of_this_machine_is_published(full: Path):
    folder = published(full)
    texts = {
        file.name: file.read_text(encoding="utf-8")
        for file in folder.iterdir()
        if file.suffix != ".safetensors"
    }
    assert [name for name, text in texts.items() if str(full.parent) in text] == []
    assert json.loads(texts["egspo.json"])["about"]["summary"].endswith(", from base")


def test_files_that_only_this_machine_has_are_not_asked_for_elsewhere(tmp_path: Path):
    data = tmp_path / "train.jsonl"
    data.write_text('{"puzzle": "0030341221434321"}\n')
    task = f"task={{name: sudoku, prompt: compact, num_test: 5, num_validation: 5, train_data: {data}}}"
    canvas = "sampler={max_completion_length: 16, block_length: 16, diffusion_steps: 2}"
    train = "train={max_steps: 1, prompts_per_step: 1, num_generations: 2}"
    run = tmp_path / "run"
    objective = "objective={name: egspo, num_selected_steps: 2}"
    assert (
        runs.egspo("train", f"output_dir={run}", "model.init=tiny", task, canvas, train, objective).code == 0
    )
    folder = published(run)
    data.unlink()
    assert runs.egspo("eval", str(folder), "--limit", "2").code == 0
    assert "Files: train_data `train.jsonl`." in (folder / "README.md").read_text()


def test_weights_are_not_doubled_and_nothing_of_the_run_changes(full: Path):
    before = {path: path.read_bytes() for path in (full / "model").iterdir()}
    folder = published(full)
    (folder / "config.json").write_text("{}")
    folder = published(full)
    assert {path: path.read_bytes() for path in (full / "model").iterdir()} == before
    assert (folder / "model.safetensors").stat().st_ino == (
        full / "model" / "model.safetensors"
    ).stat().st_ino


def test_it_can_be_written_elsewhere_but_over_nothing(full: Path, tmp_path: Path):
    out = tmp_path / "deep" / "folder"
    arguments = (str(full), REPO, "--dry-run", "--out", str(out))
    assert runs.egspo("publish", *arguments).out.startswith(f"folder: {out}\n")
    assert refused(*arguments) == f"--out: {out} is there and not empty; choose another folder"
    assert refused(*arguments[:-1], str(full / "model")).endswith(
        "is there and not empty; choose another folder"
    )
    assert (full / "model" / "model.safetensors").is_file()


# ---- the card ------------------------------------------------------------------------------------------


def card_of(folder: Path) -> ModelCard:
    """As the hub's own library reads it, which checks the form of the metadata."""
    return ModelCard.load(folder / "README.md")


def test_the_numbers_of_the_card_are_those_of_the_files(full: Path):
    card = card_of(published(full))
    results = {result.dataset_config: result for result in card.data.eval_results}
    assert results.keys() == {"test", "long-2", "long-4"}
    for name, result in results.items():
        summary = json.loads((full / "eval" / f"{name}.json").read_text())
        assert result.metric_value == summary["accuracy"]
        assert (result.dataset_type, result.dataset_split) == ("toy", "test")
        assert result.metric_args["ci95"] == summary["ci95"]
        assert result.metric_args["max_completion_length"] == summary["max_completion_length"]
        low, high = summary["ci95"]
        row = next(line for line in card.text.splitlines() if line.startswith(f"| {name} | this one |"))
        assert f"({summary['correct']}/{summary['n']})" in row
        assert f"{summary['accuracy']:.1%} " in row and f"{low:.1%} to {high:.1%}" in row
        assert f"diffusion_steps {summary['diffusion_steps']}," in row
    # Scores of the base are shown as such, and are none of the model's.
    assert "| before | `base` | toy, test | 7 |" in card.text
    assert "validation" not in card.text.split("## Settings")[0].replace("validations aside", "")


def test_a_base_of_the_same_name_is_not_taken_for_this_model(full: Path, tmp_path: Path):
    run = shutil.copytree(full, tmp_path / "rl" / "toy")
    values = json.loads((run / "config.json").read_text())
    summary = json.loads((run / "eval" / "test.json").read_text())
    for base, models in {
        "me/toy": ("me/toy", "/elsewhere/rl/toy"),
        "/elsewhere/sft/toy/model": ("/elsewhere/sft/toy", "/elsewhere/rl/toy/model"),
    }.items():
        values["model"]["model_name_or_path"] = base
        (run / "config.json").write_text(json.dumps(values))
        shutil.rmtree(run / "eval")
        (run / "eval").mkdir()
        for name, model in zip(("before", "after"), models, strict=True):
            (run / "eval" / f"{name}.json").write_text(json.dumps(summary | {"name": name, "model": model}))
        finished = read_run(run, REPO)
        assert [score["name"] for score in finished.scores] == ["after"]
        assert [score["name"] for score in finished.others] == ["before"]


def test_the_card_tells_all_that_a_score_depends_on(full: Path, tmp_path: Path):
    run = shutil.copytree(full, tmp_path / "full")
    data, out = tmp_path / "mine.jsonl", run / "eval" / "shown.json"
    data.write_text('{"puzzle": "0030341221434321"}\n')
    asked = ("--task", "sudoku", "task.prompt=compact", "--data", str(data), "--length", "16")
    asked += ("--num-fewshot", "1", "--num-samples", "2", "sampler.confidence_threshold=0.9")
    assert runs.egspo("eval", str(run), *asked, "sampler.temperature=1", "--out", str(out)).code == 0
    card = card_of(published(run))
    row = next(line for line in card.text.splitlines() if line.startswith("| shown |"))
    assert "| sudoku (mine.jsonl), test |" in row
    assert "num_fewshot 1, num_samples 2, confidence_threshold 0.9 |" in row
    (result,) = (result for result in card.data.eval_results if result.dataset_config == "shown")
    assert result.dataset_name == "sudoku (mine.jsonl)" and result.metric_args["num_fewshot"] == 1


def test_the_example_of_a_card_decodes_as_its_validation(base: Path, tmp_path: Path):
    runs.train(
        tmp_path / "run", *runs.from_base(base), "sampler.remasking=left_to_right", "train.max_steps=1"
    )
    example = card_of(published(tmp_path / "run")).text.partition("egspo.generate(")[2].partition("```")[0]
    assert "    temperature=0.0,\n" in example and "    remasking='left_to_right',\n" in example
    called = {}
    call = example.rpartition(")")[0]
    exec(f"generate({call})", {"generate": lambda *_, **given: called.update(given), "policy": None})
    assert SamplerConfig(**called).remasking == "left_to_right"


def test_pairs_of_ones_own_are_what_a_model_was_trained_on(tmp_path: Path):
    """Also where a task validates it: its problems are then not seen."""
    pairs, run = tmp_path / "pairs.jsonl", tmp_path / "run"
    pairs.write_text('{"prompt": "a", "completion": "b"}\n')
    runs.sft(run, "sft.max_steps=1", f"sft.data={pairs}")
    card = card_of(published(run))
    assert "trained on pairs.jsonl by" in card.text and "Prompt-completion pairs: `pairs.jsonl`." in card.text
    assert "pairs.jsonl" in card.data.tags and "toy" not in card.data.tags
    for place in (run, run / "publish"):
        assert saved_task(ModelConfig(model_name_or_path=str(place))) == {}


def test_an_adapters_scores_are_told_from_its_bases(lora: Path):
    run = read_run(lora, REPO)
    assert [score["name"] for score in run.scores] == ["test"]
    assert [score["name"] for score in run.others] == ["before"]


def test_the_card_names_method_paper_base_task_and_settings(full: Path, lora: Path, base: Path):
    card = card_of(published(full))
    assert (card.data.library_name, card.data.base_model, card.data.license) == ("egspo", None, None)
    assert {"reinforcement-learning", "toy", "diffusion-language-model"} <= set(card.data.tags)
    objective = registry.load("objectives", "egspo")
    assert objective.paper == "arXiv 2603.12554"
    assert "[arXiv 2603.12554](https://arxiv.org/abs/2603.12554)" in card.text
    values = json.loads((full / "config.json").read_text())
    for section in ("model", "task", "sampler", "objective", "optim", "train", "eval"):
        for key, value in values[section].items():
            if value is not None and key != "model_name_or_path":
                assert f"| `{section}.{key}` | `{value}` |" in card.text
    adapted = card_of(published(lora))
    assert adapted.data.library_name == "peft"
    assert "LoRA of rank 2, alpha 32, on `attn_out`, `ff_out`," in adapted.text
    tuned = card_of(published(base))
    assert "sft" in tuned.data.tags and "preset `tiny`" in tuned.text
    assert "This model has not been evaluated." in tuned.text
    assert tuned.data.eval_results is None


def test_a_base_on_the_hub_is_linked(lora: Path):
    folder = published(lora, "--base-model", "somebody/base", "--license", "mit")
    card = card_of(folder)
    assert (card.data.base_model, card.data.license) == ("somebody/base", "mit")
    assert "[somebody/base](https://huggingface.co/somebody/base)" in card.text
    assert (
        json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "somebody/base"
    )
    yaml.safe_load((folder / "README.md").read_text().split("---")[1])


# ---- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("repo", "reason"),
    [
        ("toy", "'toy' names no owner; give OWNER/toy"),
        (
            "a/b/c",
            "'a/b/c' is no name of a hub repository; give OWNER/NAME of letters, digits, '-', '_', '.'",
        ),
        (
            "a/b c",
            "'a/b c' is no name of a hub repository; give OWNER/NAME of letters, digits, '-', '_', '.'",
        ),
    ],
)
def test_an_impossible_name_is_refused(full: Path, repo: str, reason: str):
    assert refused(str(full), repo, "--dry-run") == f"REPO: {reason}"


def test_a_run_that_is_not_finished_is_refused(full: Path, tmp_path: Path):
    finished = "give the folder of a finished sft or train run"
    assert refused(str(tmp_path), REPO, "--dry-run") == f"RUN: {tmp_path} has no config.json; {finished}"
    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / name).write_text((full / name).read_text())
    assert refused(str(tmp_path), REPO, "--dry-run") == f"RUN: {tmp_path} has no model/egspo.json; {finished}"
    assert refused(str(full), REPO, "--dry-run", "--base-model", "a/b").startswith(
        "--base-model: 'a/b', but "
    )


def test_without_a_token_nothing_is_written_or_sent(base: Path, online):
    folder = published(base)
    (folder / "README.md").write_text("mine")
    line = refused(str(base), REPO)
    assert line.startswith("publish: no hub token; log in with `hf auth login`, or set HF_TOKEN; --dry-run ")
    assert (folder / "README.md").read_text() == "mine"


def test_offline_is_told(base: Path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert refused(str(base), REPO).startswith("publish: HF_HUB_OFFLINE is set; unset it; --dry-run")


def test_an_adapter_of_a_folder_is_not_uploaded(lora: Path, base: Path, online, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert refused(str(lora), REPO) == (
        f"--base-model: the adapter belongs to '{base}', which nobody else has; publish that first "
        "and give its hub name"
    )


# ---- the upload ----------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """The few answers of the hub that an upload of small files asks for; what arrives is kept."""

    created: list[dict]
    files: dict[str, bytes]
    status = 200

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.status != 200:
            return self._answer({"error": "no such right"})
        if self.path == "/api/repos/create":
            self.created.append(json.loads(body) | {"token": self.headers["Authorization"]})
            return self._answer({"url": f"https://huggingface.co/{REPO}"})
        if self.path.endswith("/preupload/main"):
            named = [file["path"] for file in json.loads(body)["files"]]
            plain = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            return self._answer({"files": [{"path": name} | plain for name in named]})
        if self.path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        assert self.path == f"/api/models/{REPO}/commit/main", self.path
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self._answer(
            {"success": True, "commitOid": "0" * 40, "commitUrl": f"https://huggingface.co/{REPO}/commit/0"}
        )

    def do_GET(self) -> None:
        self._answer({"id": REPO, "siblings": [], "sha": "0" * 40})

    def _answer(self, values: dict) -> None:
        body = json.dumps(values).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server(online, monkeypatch) -> Iterator[type[Hub]]:
    """A hub on this machine, with somebody logged in."""
    kind = type("Fresh", (Hub,), {"created": [], "files": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{running.server_address[1]}")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield kind
        running.shutdown()


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_what_is_uploaded_is_the_folder(full: Path, server):
    ended = runs.egspo("publish", str(full), REPO, "--private")
    assert ended.code == 0, ended
    assert ended.out.startswith("published: http") and ended.out.endswith(f"/{REPO}\n")
    (created,) = server.created
    assert (created["organization"], created["name"]) == tuple(REPO.split("/"))
    assert created.get("private") or created.get("visibility") == "private"
    assert created["token"] == "Bearer hf_secret"
    assert server.files == contents(full / "publish")


def test_what_the_hub_refuses_is_told_in_a_line(full: Path, server):
    server.status = 403
    line = refused(str(full), REPO)
    assert line.startswith(f"publish: {REPO} was not uploaded (")
    assert line.endswith(f"check the name, the token and the network. All of it is in {full / 'publish'}")


def test_no_network_is_told_in_a_line(full: Path, server, monkeypatch):
    # Port 9 discards: nobody listens there.
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert refused(str(full), REPO).startswith(f"publish: {REPO} was not uploaded (")


@pytest.mark.parametrize("command", ["train", "sft"])
def test_a_finished_run_publishes_itself_if_asked(command: str, base: Path, server, tmp_path: Path):
    push = ("tracking.push_to_hub=true", f"tracking.hub_model_id={REPO}", "tracking.hub_private_repo=true")
    if command == "train":
        runs.train(tmp_path / "run", *push)
    else:
        runs.sft(tmp_path / "run", "sft.max_steps=1", *push)
    assert server.files == contents(tmp_path / "run" / "publish")
    assert server.files["model.safetensors"] == (tmp_path / "run/model/model.safetensors").read_bytes()
    assert len(server.created) == 1


def test_nothing_is_published_unasked(server, tmp_path: Path):
    runs.sft(tmp_path / "run", "sft.max_steps=1")
    assert not server.created and not (tmp_path / "run" / "publish").exists()


# ---- the settings --------------------------------------------------------------------------------------


def complaints(*overrides: str, kind=runs.rl_config) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        kind(Path("runs/x"), *overrides)
    return caught.value.problems


def test_publishing_is_checked_before_any_work(online, monkeypatch, base: Path):
    push = "tracking.push_to_hub=true"
    assert complaints(push) == ["tracking.push_to_hub: True needs a repository; set hub_model_id=OWNER/NAME"]
    assert complaints(push, "tracking.hub_model_id=toy") == [
        "tracking.hub_model_id: 'toy' names no owner; give OWNER/toy",
        "tracking.push_to_hub: True, but no hub token; log in with `hf auth login`, or set HF_TOKEN",
    ]
    assert complaints("tracking.hub_model_id=a/b") == [
        "tracking.hub_model_id: 'a/b' does nothing without push_to_hub; set it too"
    ]
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    adapter = (push, "tracking.hub_model_id=a/b", "model.use_peft=true", *runs.from_base(base / "model"))
    for kind in (runs.rl_config, runs.sft_config):
        (line,) = complaints(*adapter, kind=kind)
        assert line.startswith(f"tracking.push_to_hub: True, but the adapter's base '{base}/model' is not on")
    for name in ("tiny:sudoku-sft", "GSAI-ML/LLaDA-8B-Instruct"):
        runs.rl_config(Path("x"), *adapter[:3], "model.init=null", f"model.model_name_or_path={name}")


def test_names_of_the_hub_are_told_from_folders(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "base").mkdir(parents=True)
    names = {
        "GSAI-ML/LLaDA-8B-Instruct": "GSAI-ML/LLaDA-8B-Instruct",
        "owner/repository/sub/folder": "owner/repository",
        "runs/base": None,
        "./typo": None,
        "../typo": None,
        str(tmp_path): None,
        "tiny:sudoku-sft": None,
        "gpt2": None,
    }
    assert {name: hub.hub_repository(name) for name in names} == names
    assert hub.hub_repository(None) is None
