"""Denoising as a finite MDP small enough to write out: every trajectory with its log-probability, in float64.

Written from the definitions, with nothing of the package but its records; log-probabilities keep their graph.
"""

import itertools
import math
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from egspo.config import SamplerConfig
from egspo.models.llada import LLaDAConfig, LLaDAModelLM
from egspo.policy import Policy
from egspo.types import Trajectory

# The mask stands between the tokens, so that an index that forgets it goes wrong.
A, MASK, B, END = range(4)
RULES = ("left_to_right", "random", "top_prob", "plackett_luce", "entropy", "margin")
"""Rules whose choice of positions needs no sampled token."""


class Tabular(nn.Module):
    """A model that is a table: a parameter for each (canvas, position, token); prompts are ignored."""

    def __init__(self, length: int, vocab: int, seed: int = 0, scale: float = 1.5):
        super().__init__()
        self.config = SimpleNamespace(mask_token_id=MASK, model_type="llada", vocab_size=4)
        self.length, self.vocab = length, vocab
        generator = torch.Generator().manual_seed(seed)
        shape = (vocab**length, length, vocab)
        self.table = nn.Parameter(scale * torch.randn(shape, generator=generator, dtype=torch.float64))

    def forward(self, input_ids, attention_mask=None, positions=None):
        canvas = input_ids[:, -self.length :]
        row = (canvas * self.vocab ** torch.arange(self.length)).sum(1)
        prompt = torch.zeros(len(canvas), input_ids.shape[1] - self.length, self.vocab, dtype=torch.float64)
        logits = torch.cat([prompt, self.table[row]], dim=1)
        if positions is not None:
            logits = logits.gather(1, positions[..., None].expand(-1, -1, self.vocab))
        return SimpleNamespace(logits=logits)


def tabular_policy(length: int = 3, vocab: int = 4, seed: int = 0, scale: float = 1.5) -> Policy:
    """A table over a, b, the mask and, if ``vocab`` is 4, the end of the text."""
    return Policy(Tabular(length, vocab, seed, scale), _tokenizer(), "table")


def transformer_policy(seed: int = 0) -> Policy:
    """A LLaDA over the same tokens, whose states share their parameters."""
    sizes = {"d_model": 8, "n_heads": 2, "n_layers": 1, "mlp_hidden_size": 8, "init_std": 0.7}
    config = LLaDAConfig(**sizes, vocab_size=4, mask_token_id=MASK, eos_token_id=END, pad_token_id=END)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LLaDAModelLM(config)
    return Policy(model.double(), _tokenizer(), "transformer")


def _tokenizer() -> PreTrainedTokenizerFast:
    words = {"a": A, "<mask>": MASK, "b": B, "<end>": END}
    model = Tokenizer(WordLevel(words, unk_token="a"))
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<end>", mask_token="<mask>")


@dataclass(frozen=True)
class Action:
    """What a step may do. ``logp`` is its true log-probability, the others are what a trajectory records."""

    positions: tuple[int, ...]
    """In the order in which they were drawn."""
    tokens: tuple[int, ...]
    token_logp: tuple[Tensor, ...]
    position_logp: Tensor
    logp: Tensor


@dataclass(frozen=True)
class Path:
    """One trajectory: the canvas before each step, and the action of each step."""

    canvases: tuple[tuple[int, ...], ...]
    actions: tuple[Action, ...]
    entropy: tuple[Tensor, ...]
    final: tuple[int, ...]

    @property
    def key(self):
        """What can be seen of a trajectory."""
        return tuple((action.positions, action.tokens) for action in self.actions)


class World:
    """All trajectories of a policy from one prompt."""

    def __init__(self, policy: Policy, sampler: SamplerConfig, prompt: tuple[int, ...] = (A,)):
        self.policy, self.sampler, self.prompt = policy, sampler, prompt
        self._logits: dict[tuple[int, ...], Tensor] = {}
        canvas = (MASK,) * sampler.max_completion_length
        self.paths = list(self._extend(canvas, 0, (), (), ()))

    def logits(self, canvas: tuple[int, ...]) -> Tensor:
        """``[length, vocab]``, with the mask ruled out; one canvas at a time, nothing padded."""
        if canvas not in self._logits:
            logits = self.policy.logits(torch.tensor([self.prompt + canvas]))[0, len(self.prompt) :]
            ruled_out = torch.arange(logits.shape[-1]) == MASK
            self._logits[canvas] = logits.masked_fill(ruled_out, -torch.inf)
        return self._logits[canvas]

    def actions(self, canvas: tuple[int, ...], step: int) -> list[Action]:
        """Every action of a state."""
        length, block, steps = (
            self.sampler.max_completion_length,
            self.sampler.block_length,
            self.sampler.diffusion_steps,
        )
        per_block = steps // (length // block)
        first = step // per_block * block
        count = block // per_block + (step % per_block < block % per_block)
        hidden = [i for i in range(first, first + block) if canvas[i] == MASK]
        logits = self.logits(canvas)
        acting = (logits / self.sampler.temperature).log_softmax(-1)
        if self.sampler.remasking == "low_confidence":
            return list(self._most_confident(logits.softmax(-1), acting, hidden, count))
        return [
            self._action(acting, places, tokens, position_logp)
            for places, position_logp in self._choices(logits.log_softmax(-1), hidden, count)
            for tokens in itertools.product(self._tokens(acting), repeat=count)
        ]

    def _score_norms(self, path: "Path") -> list[float]:
        """Of each step: squared norm of the gradient of its tokens' log-probability by their logits."""
        norms = []
        for canvas, action in zip(path.canvases, path.actions, strict=True):
            logits = (self.logits(canvas) / self.sampler.temperature).detach().requires_grad_()
            logp = logits.log_softmax(-1)
            total = sum(logp[i, v] for i, v in zip(action.positions, action.tokens, strict=True))
            (gradient,) = torch.autograd.grad(total, logits)
            norms.append(float(gradient.nan_to_num().square().sum()))
        return norms

    def _tokens(self, acting: Tensor) -> list[int]:
        return [v for v in range(acting.shape[-1]) if v != MASK]

    def _action(self, acting, places, tokens, position_logp) -> Action:
        token_logp = tuple(acting[i, v] for i, v in zip(places, tokens, strict=True))
        return Action(
            tuple(places), tuple(tokens), token_logp, position_logp, sum(token_logp) + position_logp
        )

    def _choices(self, logp: Tensor, hidden: list[int], count: int):
        """Ordered choices of positions with their log-probabilities; they look at the state alone."""
        zero = torch.zeros((), dtype=torch.float64)
        prob, seen = logp.exp(), logp.detach()
        match self.sampler.remasking:
            case "left_to_right":
                yield hidden[:count], zero
            case "top_prob":
                yield sorted(hidden, key=lambda i: -float(seen[i].max()))[:count], zero
            case "entropy":
                yield sorted(hidden, key=lambda i: float(_entropy(seen[i])))[:count], zero
            case "margin":
                yield sorted(hidden, key=lambda i: -_margin(seen[i].exp()))[:count], zero
            case "random":
                chance = 1 / math.perm(len(hidden), count)
                for places in itertools.permutations(hidden, count):
                    yield list(places), zero + math.log(chance)
            case "plackett_luce":
                strength = {i: (prob[i].max() / self.sampler.position_temperature).exp() for i in hidden}
                for places in itertools.permutations(hidden, count):
                    left, chance = dict(strength), zero + 1.0
                    for i in places:
                        chance = chance * left[i] / sum(left.values())
                        del left[i]
                    yield list(places), chance.log()

    def _most_confident(self, prob: Tensor, acting: Tensor, hidden: list[int], count: int):
        """Low confidence: tokens are drawn everywhere, those with the highest probability stay.

        An action is all that was drawn; where positions are scored, what stays, with the chance of all draws
        that leave it.
        """
        zero, discarded = torch.zeros((), dtype=torch.float64), {}
        for drawn in itertools.product(self._tokens(acting), repeat=len(hidden)):
            by_place = dict(zip(hidden, drawn, strict=True))
            places = sorted(hidden, key=lambda i: -float(prob[i, by_place[i]].detach()))[:count]
            kept = self._action(acting, places, [by_place[i] for i in places], zero)
            rest = sum((acting[i, v] for i, v in by_place.items() if i not in places), zero)
            if self.sampler.score_positions:
                discarded.setdefault((kept.positions, kept.tokens), []).append(rest.exp())
            else:
                yield Action(kept.positions, kept.tokens, kept.token_logp, zero, kept.logp + rest)
        for (places, tokens), chances in discarded.items():
            yield self._action(acting, places, tokens, sum(chances).log())

    def _extend(self, canvas, step, canvases, actions, entropies):
        if step == self.sampler.diffusion_steps:
            yield Path(canvases, actions, entropies, canvas)
            return
        acting = (self.logits(canvas) / self.sampler.temperature).log_softmax(-1)
        for action in self.actions(canvas, step):
            after = list(canvas)
            for i, v in zip(action.positions, action.tokens, strict=True):
                after[i] = v
            entropy = sum(_entropy(acting[i]) for i in action.positions)
            yield from self._extend(
                tuple(after), step + 1, (*canvases, canvas), (*actions, action), (*entropies, entropy)
            )

    # ---- what follows from the paths -----------------------------------------------------------------

    def probabilities(self) -> Tensor:
        """``[paths]``, without a graph."""
        return torch.stack([sum(a.logp.detach() for a in path.actions).exp() for path in self.paths])

    def gradient(self, rewards: Tensor, factors=None) -> Tensor:
        """Gradient of the expected return, by autograd through the probability of every path.

        ``factors`` scales what flows through the policy of each step; all ones is the true gradient.
        """
        factors = [1.0] * self.sampler.diffusion_steps if factors is None else factors
        total = 0.0
        for path, reward in zip(self.paths, rewards, strict=True):
            logp = sum(
                f * a.logp + (1 - f) * a.logp.detach() for f, a in zip(factors, path.actions, strict=True)
            )
            total = total + reward * logp.exp()
        return flat_gradient(total, self.policy)

    def greedy(self, canvas: tuple[int, ...]) -> tuple[int, ...]:
        """Every masked position filled with its most probable token, all at once."""
        best = self.logits(canvas).argmax(-1).tolist()
        return tuple(best[i] if v == MASK else v for i, v in enumerate(canvas))

    def one_step_rewards(self, reward) -> Tensor:
        """``[paths, steps]``: rewards of the greedy completions of the states."""
        values = [[reward(self.greedy(canvas)) for canvas in path.canvases] for path in self.paths]
        return torch.tensor(values, dtype=torch.float64)

    def trajectory(self, padding: int = 0) -> Trajectory:
        """All paths as the record that a rollout would have made of them; prompts padded on the left."""
        count, length, steps = (
            len(self.paths),
            self.sampler.max_completion_length,
            self.sampler.diffusion_steps,
        )
        reveal_step, order = (
            torch.zeros(count, length, dtype=torch.long),
            torch.zeros(count, length, dtype=torch.long),
        )
        token_logp = torch.zeros(count, length, dtype=torch.float64)
        position_logp = torch.zeros(count, steps, dtype=torch.float64)
        for n, path in enumerate(self.paths):
            for t, action in enumerate(path.actions):
                position_logp[n, t] = action.position_logp.detach()
                for k, (i, logp) in enumerate(zip(action.positions, action.token_logp, strict=True)):
                    reveal_step[n, i], order[n, i], token_logp[n, i] = t, k, logp.detach()
        finals = torch.tensor([path.final for path in self.paths])
        written = torch.tensor([[END not in path.final[:i] for i in range(length)] for path in self.paths])
        prompt = torch.tensor([(END,) * padding + self.prompt]).expand(count, -1)
        return Trajectory(
            prompt_ids=prompt,
            prompt_mask=(torch.arange(prompt.shape[1]) >= padding).expand(count, -1),
            final=finals,
            reveal_step=reveal_step,
            reveal_order=order,
            token_logp=token_logp,
            position_logp=position_logp,
            entropy=torch.tensor(
                [[float(h.detach()) for h in path.entropy] for path in self.paths], dtype=torch.float64
            ),
            score_norm=torch.tensor([self._score_norms(path) for path in self.paths], dtype=torch.float64),
            one_step=torch.tensor([[self.greedy(c) for c in path.canvases] for path in self.paths]),
            completion_mask=written,
            last_step=torch.where(written, reveal_step, 0).amax(1),
            steps_taken=torch.full((count,), steps),
            seeds=torch.arange(count),
            mask_token_id=MASK,
            block_length=self.sampler.block_length,
            draws_positions=self.sampler.draws_positions,
        )


def reward(final: tuple[int, ...]) -> float:
    """An arbitrary number for each text; what stands behind the end of the text does not count."""
    text = final[: final.index(END)] if END in final else final
    return math.sin(1.0 + sum((3 * v + 1) * 5**i for i, v in enumerate(text))) + 0.5


def rewards(world: World) -> Tensor:
    return torch.tensor([reward(path.final) for path in world.paths], dtype=torch.float64)


def flat_gradient(value: Tensor, policy: Policy) -> Tensor:
    """Gradient by all parameters as one vector; the graph is kept."""
    parameters = list(policy.model.parameters())
    found = torch.autograd.grad(
        value, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return torch.cat([g.flatten() for g in found])


def _entropy(logp: Tensor) -> Tensor:
    finite = logp[logp > -torch.inf]
    return -(finite.exp() * finite).sum()


def _margin(prob: Tensor) -> float:
    best, second = prob.topk(2).values.tolist()
    return best - second
