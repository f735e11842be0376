"""Masked language models of transformers as diffusion LMs, beside what transformers says of them."""

import warnings
from dataclasses import replace

import pytest
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

import egspo
import runs
from egspo.models.family import family_of
from egspo.policy import build_policy, load_policy
from egspo.sections import ModelConfig
from egspo.sft import SFTTrainer
from egspo.tasks import toy
from egspo.trainer import Trainer

PAD, CLS, SEP, UNK, MASK = SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")
VOCABULARY = {token: number for number, token in enumerate([*SPECIAL, *"0123456789"])}
NARROW = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
LENGTH = 24
MODELS = {
    "bert": ("Bert", NARROW),
    "roberta": ("Roberta", NARROW),
    "modernbert": ("ModernBert", NARROW | {"local_attention": 4, "global_attn_every_n_layers": 2}),
    "distilbert": ("DistilBert", {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}),
    # Has no fused attention.
    "deberta": ("DebertaV2", NARROW),
    "electra": ("Electra", NARROW | {"embedding_size": 8}),
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(WordLevel(VOCABULARY, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    names = {"pad_token": PAD, "cls_token": CLS, "sep_token": SEP, "unk_token": UNK, "mask_token": MASK}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def save_model(folder, kind):
    name, shape = MODELS[kind]
    ids = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
    sizes = {"vocab_size": len(VOCABULARY), "max_position_embeddings": LENGTH, "initializer_range": 0.1}
    config = getattr(transformers, f"{name}Config")(**shape, **ids, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        getattr(transformers, f"{name}ForMaskedLM")(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=MODELS)
def folder(request, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="module")
def policy(folder):
    return load_policy(folder)


# Enough completions that two steps see rewards that differ.
GROUPS = ["train.prompts_per_step=8", "train.num_generations=8"]
ROWS = [[1, 7, 8, 9, 2, 4, 4], [1, 10, 2, 4]]


def whole_logits(policy, row):
    """Every logit of an unpadded row, by transformers alone."""
    with torch.no_grad():
        return policy.model(input_ids=torch.tensor([row]), attention_mask=torch.ones(1, len(row))).logits[0]


def test_what_a_policy_knows_of_the_model(policy):
    assert (policy.family.name, policy.family.cacheable) == ("masked_lm", False)
    assert policy.mask_token_id == VOCABULARY[MASK]
    assert policy.end_token_ids == (VOCABULARY[SEP],)  # there is no eos_token
    # RoBERTa's table of positions begins after the id of the padding token, which is 0 here.
    kind = policy.model.config.model_type
    assert policy.max_length == (LENGTH - 1 if kind == "roberta" else LENGTH)


def test_the_longest_sequence_goes_through(policy):
    assert policy.logits(torch.full((1, policy.max_length), 7)).shape == (1, policy.max_length, 15)


def test_logits_are_those_of_transformers(policy):
    for row in ROWS:
        torch.testing.assert_close(
            policy.logits(torch.tensor([row]))[0], whole_logits(policy, row), rtol=0, atol=1e-5
        )


def test_logits_at_positions(policy):
    positions = torch.tensor([[6, 0, 3, 3]])
    expected = whole_logits(policy, ROWS[0])[positions[0]]
    actual = policy.logits(torch.tensor(ROWS[:1]), positions=positions)
    torch.testing.assert_close(actual[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sides", [[(0, 0), (3, 0)], [(0, 0), (0, 3)], [(2, 1), (1, 5)]])
@pytest.mark.parametrize("filler", [0, 9])
def test_padding_on_either_side_changes_nothing(policy, sides, filler):
    ids, mask, positions = [], [], []
    for row, (left, right) in zip(ROWS, sides, strict=True):
        ids.append([filler] * left + row + [filler] * right)
        mask.append([False] * left + [True] * len(row) + [False] * right)
        positions.append([left, left + 3])
    ids, mask, positions = torch.tensor(ids), torch.tensor(mask), torch.tensor(positions)
    everywhere, some = policy.logits(ids, mask), policy.logits(ids, mask, positions)
    for n, row in enumerate(ROWS):
        expected = whole_logits(policy, row)
        torch.testing.assert_close(everywhere[n, mask[n]], expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(some[n], expected[[0, 3]], rtol=0, atol=1e-5)


def test_the_head_runs_at_the_positions_asked_for_only(bert):
    policy, rows = load_policy(bert), []
    head = policy.model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, out: rows.append(args[0].shape[:2]))
    policy.logits(torch.tensor(ROWS[:1]), positions=torch.tensor([[5, 6]]))
    assert rows == [(1, 2)]
    # The model is as it was: called directly, it says all again.
    assert whole_logits(policy, ROWS[0]).shape == (7, len(VOCABULARY))


def test_generate(policy):
    settings = {"max_completion_length": 4, "block_length": 2, "diffusion_steps": 4}
    made = egspo.generate(policy, ["12", "3"], **settings)
    assert made.trajectory.final.shape == (2, 4)
    assert policy.mask_token_id not in made.trajectory.final
    # Neither the neighbour nor the padding that it brings changes a text.
    assert egspo.generate(policy, ["12", "3"], batch_size=1, **settings).texts == made.texts


def test_prompt_template(policy):
    messages = [{"role": "system", "content": "1"}, {"role": "user", "content": "23"}]
    tokens = policy.tokenizer.convert_ids_to_tokens(policy.encode_prompts([messages])[0])
    assert tokens == [CLS, "1", SEP, "2", "3", SEP]


def test_two_steps_of_rl(folder, tmp_path):
    overrides = ["objective.beta=0.1", "optim.learning_rate=1e-2"]
    trainer = runs.trainer(tmp_path, *runs.from_base(folder), *GROUPS, *overrides)
    before = runs.weights(trainer.policy)
    trainer.train()
    rows = runs.rows(tmp_path)
    assert len(rows) == 2 and all(row["optim/grad_norm"] > 0 for row in rows)
    # The reference policy is the model as it was; after a step the two have parted.
    assert rows[0]["loss/kl"] == pytest.approx(0, abs=1e-6) and rows[1]["loss/kl"] > 0
    after = runs.weights(trainer.policy)
    # The first layers learn as well as the last.
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("embedding" in name for name in moved) and any("layer" in name for name in moved)
    loaded = load_policy(tmp_path)
    ids = torch.tensor(ROWS[:1])
    torch.testing.assert_close(loaded.logits(ids), trainer.policy.logits(ids), rtol=0, atol=1e-6)


class LongValidation(toy.Task):
    """The prompts of training fit, that of validation does not."""

    def _load(self, split):
        message = {"role": "user", "content": "7" * LENGTH}
        return [replace(p, messages=(message,)) if split != "train" else p for p in super()._load(split)]


def test_a_validation_problem_that_does_not_fit_is_told_before_anything_is_trained(folder, tmp_path):
    config = runs.rl_config(tmp_path, *runs.from_base(folder), "train.eval_steps=1")
    policy = build_policy(config.model, config.seed)
    message = "sampler.max_completion_length: 2 after a prompt of .* validation$"
    with pytest.raises(ValueError, match=message):
        Trainer(policy, LongValidation(config.task), config)
    tuning = runs.sft_config(tmp_path, *runs.from_base(folder), "sft.eval_steps=1")
    with pytest.raises(ValueError, match=message):
        SFTTrainer(policy, LongValidation(tuning.task), tuning)
    Trainer(policy, LongValidation(config.task), runs.rl_config(tmp_path, *runs.from_base(folder)))


def test_lora(folder, tmp_path):
    overrides = ["model.use_peft=true", "model.lora_r=2"]
    trainer = runs.trainer(tmp_path, *runs.from_base(folder), *GROUPS, *overrides)
    names = [name for name, p in trainer.policy.model.named_parameters() if p.requires_grad]
    assert names and all("lora_" in name for name in names)
    before = runs.weights(trainer.policy)
    trainer.train()
    after = runs.weights(trainer.policy)
    assert {name for name in before if not torch.equal(before[name], after[name])} <= set(names)
    # B starts at 0 and moves at the first step.
    assert all(float(after[name].abs().max()) > 0 for name in names if "lora_B" in name)
    ids = torch.tensor(ROWS[:1])
    loaded = load_policy(tmp_path)
    torch.testing.assert_close(loaded.logits(ids), trainer.policy.logits(ids), rtol=0, atol=1e-6)


def gradients(policy):
    policy.model.zero_grad()
    logits = policy.logits(torch.tensor(ROWS[:1]), positions=torch.tensor([[5, 6]]))
    logits.log_softmax(-1)[..., 3].sum().backward()
    return [p.grad.clone() for p in policy.model.parameters() if p.grad is not None]


def test_gradient_checkpointing_in_eval_mode(folder):
    plain = build_policy(ModelConfig(model_name_or_path=str(folder)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        frugal = build_policy(ModelConfig(model_name_or_path=str(folder), gradient_checkpointing=True))
    calls = []
    linear = next(m for m in frugal.model.modules() if isinstance(m, torch.nn.Linear))
    linear.register_forward_pre_hook(lambda *_: calls.append(1))
    for one, other in zip(gradients(plain), gradients(frugal), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert not any(module.training for module in frugal.model.modules())
    # The first layer ran forward, and once more in backward. (ELECTRA's first linear layer is before it.)
    assert len(calls) == (1 if plain.model.config.model_type == "electra" else 2)


def test_encoder_decoders_are_refused(tmp_path):
    shape = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 15}
    heads = {"encoder_attention_heads": 1, "decoder_attention_heads": 1}
    transformers.BartConfig(**shape, **heads).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^model.model_name_or_path: .*bart is an encoder-decoder"):
        load_policy(tmp_path)


def test_models_that_no_mask_reaches_are_refused(tmp_path):
    transformers.FNetConfig(vocab_size=15).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^model.model_name_or_path: .*fnet lets padding change"):
        load_policy(tmp_path)


def test_other_models_are_unknown():
    with pytest.raises(ValueError, match=r"model type 'gpt2' is unknown.*any masked language model"):
        family_of("gpt2")
