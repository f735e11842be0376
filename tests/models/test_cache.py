"""Passes over a window against cached keys and values, beside the same written out in loops."""

import math

import pytest
import torch

from egspo.models.dream import DreamConfig, DreamModel
from egspo.models.layers import KVCache
from egspo.models.llada import LLaDAConfig, LLaDAModelLM
from egspo.models.tiny import build_tokenizer
from egspo.policy import Policy

TOKENIZER = build_tokenizer()
THETA, EPS, HEADS, KV_HEADS, SIZE, LAYERS = 50.0, 1e-5, 4, 2, 4, 3
TOKENS = {"vocab_size": len(TOKENIZER), "mask_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}


def llada():
    config = LLaDAConfig(
        d_model=HEADS * SIZE,
        n_layers=LAYERS,
        n_heads=HEADS,
        n_kv_heads=KV_HEADS,
        mlp_hidden_size=10,
        rope_theta=THETA,
        rms_norm_eps=EPS,
        init_std=0.4,
        **TOKENS,
    )
    return LLaDAModelLM(config)


def dream():
    config = DreamConfig(
        hidden_size=HEADS * SIZE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        intermediate_size=10,
        rope_theta=THETA,
        rms_norm_eps=EPS,
        initializer_range=0.4,
        **TOKENS,
    )
    return DreamModel(config)


@pytest.fixture(scope="module", params=[llada, dream])
def policy(request):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = request.param()
        for parameter in model.parameters():
            if parameter.ndim == 1:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return Policy(model.double().requires_grad_(False), TOKENIZER, "test")


OLD = torch.tensor([[0, 0, 9, 10, 11, 2, 2, 2, 2, 2], [20, 21, 22, 23, 24, 2, 2, 2, 2, 2]])
MASKS = [None, torch.tensor([[False] * 2 + [True] * 8, [True] * 10])]
PREFIX, MIDDLE, WHOLE = (5, 10), (5, 8), (0, 10)
WINDOWS = [PREFIX, MIDDLE, WHOLE]


@pytest.mark.parametrize("mask", MASKS)
def test_a_pass_that_fills_the_cache_is_a_pass(policy, mask):
    cache = KVCache()
    assert not cache.filled
    assert torch.equal(policy.logits(OLD, mask, cache=cache), policy.logits(OLD, mask))
    assert cache.filled


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("window", WINDOWS)
def test_a_window_of_the_same_input_is_part_of_the_whole(policy, mask, window):
    cache = KVCache()
    whole = policy.logits(OLD, mask, cache=cache)
    part = policy.logits(OLD, mask, cache=cache, window=window)
    assert part.shape == (2, window[1] - window[0], len(TOKENIZER))
    torch.testing.assert_close(part, whole[:, slice(*window)], rtol=0, atol=1e-10)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("window", WINDOWS)
def test_positions_in_a_window(policy, mask, window):
    cache, start = KVCache(), window[0]
    whole = policy.logits(OLD, mask, cache=cache)
    # The first of the window is, for a shifted family, scored by a position before it.
    positions = torch.tensor([[start, start + 2, start + 2], [start + 1, start, start + 2]])
    part = policy.logits(OLD, mask, positions, cache, window)
    for n in range(2):
        torch.testing.assert_close(part[n], whole[n, positions[n]], rtol=0, atol=1e-10)


BLOCKS = {"llada": "model.transformer.blocks", "dream": "model.layers"}
NAMES = {
    "llada": {
        "norm": "attn_norm",
        "q": "q_proj",
        "k": "k_proj",
        "v": "v_proj",
        "out": "attn_out",
        "ff_norm": "ff_norm",
        "gate": "ff_proj",
        "up": "up_proj",
        "down": "ff_out",
        "embedding": "model.transformer.wte.weight",
        "last": "model.transformer.ln_f.weight",
        "head": "model.transformer.ff_out.weight",
    },
    "dream": {
        "norm": "input_layernorm",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "out": "self_attn.o_proj",
        "ff_norm": "post_attention_layernorm",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
        "embedding": "model.embed_tokens.weight",
        "last": "model.norm.weight",
        "head": "lm_head.weight",
    },
}


def rotated(head, position):
    turned = []
    for k in range(SIZE):
        angle = position * THETA ** (-2 * (k % (SIZE // 2)) / SIZE)
        partner = -head[k + SIZE // 2] if k < SIZE // 2 else head[k - SIZE // 2]
        turned.append(head[k] * math.cos(angle) + partner * math.sin(angle))
    return torch.stack(turned)


class Literal:
    """One row, place by place. ``known[layer][place]`` is the last key and value computed there."""

    def __init__(self, policy: Policy, left: int):
        self.family, self.left = policy.family.name, left
        self.weights = policy.model.state_dict()
        self.known = [{} for _ in range(LAYERS)]

    def normed(self, row, weight):
        return row / math.sqrt(sum(value * value for value in row.tolist()) / len(row) + EPS) * weight

    def run(self, tokens, window) -> dict[int, torch.Tensor]:
        """Raw logits in the window, of whose places alone keys and values are computed."""
        names = NAMES[self.family]
        places = [place for place in range(*window) if place >= self.left]
        stream = {place: self.weights[names["embedding"]][tokens[place]] for place in places}
        for n in range(LAYERS):
            self.block(n, stream)
        last, head = self.weights[names["last"]], self.weights[names["head"]]
        return {place: head @ self.normed(row, last) for place, row in stream.items()}

    def block(self, n, stream):
        def weight(part):
            return self.weights[f"{BLOCKS[self.family]}.{n}.{NAMES[self.family][part]}.weight"]

        def heads(part, row):
            bias = self.weights.get(f"{BLOCKS[self.family]}.{n}.{NAMES[self.family][part]}.bias", 0)
            return (weight(part) @ row + bias).split(SIZE)

        normal = {place: self.normed(row, weight("norm")) for place, row in stream.items()}
        for place, row in normal.items():
            keys = [rotated(head, place - self.left) for head in heads("k", row)]
            self.known[n][place] = keys, heads("v", row)
        for place, row in normal.items():
            mixed = []
            for h, query in enumerate(heads("q", row)):
                query, shared = rotated(query, place - self.left), h // (HEADS // KV_HEADS)
                strength = {
                    other: math.exp(float(query @ keys[shared]) / math.sqrt(SIZE))
                    for other, (keys, _) in self.known[n].items()
                }
                total = sum(strength.values())
                mixed.append(sum(s / total * self.known[n][j][1][shared] for j, s in strength.items()))
            stream[place] = stream[place] + weight("out") @ torch.cat(mixed)
        for place, row in stream.items():
            h = self.normed(row, weight("ff_norm"))
            gate, up = weight("gate") @ h, weight("up") @ h
            inner = torch.stack([g / (1 + math.exp(-float(g))) * u for g, u in zip(gate, up, strict=True)])
            stream[place] = row + weight("down") @ inner


def literal_scores(policy, row, left, passes):
    """What the last of several passes (tokens, window) says, each window over what is known from before."""
    literal, shift = Literal(policy, left), policy.family.shift
    for tokens, (start, end) in passes:
        # A shifted family scores the first of a window by the place before it, so that is computed as well.
        raw = literal.run(tokens[row].tolist(), (max(0, start - shift), end))
    return torch.stack([raw[max(place - shift, left)] for place in range(max(start, left), end)])


def changed(tokens, place, token):
    other = tokens.clone()
    other[:, place] = token
    return other


NEW = changed(OLD, 6, 40)
CHANGES = [
    [(OLD, WHOLE), (NEW, PREFIX)],
    [(OLD, WHOLE), (NEW, MIDDLE)],
    # What changed outside the window is not seen.
    [(OLD, WHOLE), (changed(NEW, 9, 41), MIDDLE)],
    # The window's own keys take the place of the old ones, and a later window sees them.
    [(OLD, WHOLE), (NEW, MIDDLE), (changed(NEW, 5, 42), MIDDLE)],
    [(OLD, WHOLE), (NEW, MIDDLE), (changed(NEW, 9, 41), (8, 10))],
    # A whole pass forgets all of it.
    [(OLD, WHOLE), (NEW, MIDDLE), (changed(OLD, 9, 41), WHOLE), (changed(OLD, 5, 42), MIDDLE)],
]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("passes", CHANGES)
def test_a_window_of_another_input_is_computed_against_the_old_rest(policy, mask, passes):
    cache = KVCache()
    for tokens, window in passes:
        logits = policy.logits(tokens, mask, cache=cache, window=None if window == WHOLE else window)
    for row, left in enumerate([0 if mask is None else 2, 0]):
        expected = literal_scores(policy, row, left, passes)
        torch.testing.assert_close(logits[row], expected, rtol=1e-5, atol=1e-5)


def test_the_old_rest_matters(policy):
    """The case above is one in which a pass over the new input would say something else."""
    cache = KVCache()
    policy.logits(OLD, cache=cache)
    part = policy.logits(NEW, cache=cache, window=MIDDLE)
    assert float((part - policy.logits(NEW)[:, slice(*MIDDLE)]).abs().max()) > 1e-3


@pytest.mark.parametrize("rows", [torch.tensor([2, 0]), torch.tensor([True, False, True])])
def test_select_keeps_rows(policy, rows):
    three = torch.cat([OLD, changed(OLD[:1], 3, 50)])
    cache, alone = KVCache(), KVCache()
    policy.logits(three, cache=cache)
    cache.select(rows)
    policy.logits(three[rows], cache=alone)
    new = changed(three, 6, 40)[rows]
    kept = policy.logits(new, cache=cache, window=MIDDLE)
    torch.testing.assert_close(kept, policy.logits(new, cache=alone, window=MIDDLE), rtol=0, atol=1e-10)


def test_select_leaves_the_rows_of_others_alone(policy):
    """Windows write in place; a cache made smaller writes into tensors of its own."""
    cache, untouched = KVCache(), KVCache()
    policy.logits(OLD, cache=cache)
    before = [(k.clone(), v.clone()) for k, v in cache._layers]
    untouched._layers = list(cache._layers)
    cache.select(torch.tensor([0]))
    policy.logits(NEW[:1], cache=cache, window=MIDDLE)
    for (k, v), (k_before, v_before) in zip(untouched._layers, before, strict=True):
        assert torch.equal(k, k_before) and torch.equal(v, v_before)


def test_start_over(policy):
    cache = KVCache()
    policy.logits(OLD, cache=cache)
    cache.start_over()
    assert not cache.filled
    # Another batch size and another length: nothing of the old pass is left.
    shorter = NEW[:1, :7]
    assert torch.equal(policy.logits(shorter, cache=cache), policy.logits(shorter))
    part = policy.logits(shorter, cache=cache, window=(5, 7))
    torch.testing.assert_close(part, policy.logits(shorter)[:, 5:], rtol=0, atol=1e-10)


def test_a_window_computes_its_own_places_alone(policy):
    cache, widths = KVCache(), []
    policy.logits(OLD, cache=cache)
    layer = policy.model.blocks[0]
    handle = layer.register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[1]))
    policy.logits(OLD, cache=cache, window=MIDDLE)
    handle.remove()
    assert widths == [3 + policy.family.shift]
