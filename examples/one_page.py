"""EGSPO-SA on one page: the whole method on a toy task, in plain PyTorch and nothing else of this project.

    python examples/one_page.py

A completion of LENGTH tokens starts as all MASK and is revealed in LENGTH steps, one token a step. The prompt
is one digit; the reward is the share of positions that repeat it. A policy with random weights earns
1 / NUM_DIGITS; EGSPO-SA (arXiv 2603.12554) teaches it the rest in well under a minute on one core.
"""

import torch
from torch import nn

NUM_DIGITS, LENGTH, MASK = 6, 6, 6
PROMPTS, GROUP = 16, 8  # prompts of a rollout batch, completions of each
K, LAMBDA, EPSILON, EPSILON_HIGH = 3, 0.5, 0.2, 0.5


class Model(nn.Module):
    """A bidirectional transformer: log-probabilities at every position of a partly masked canvas."""

    def __init__(self, width: int = 48):
        super().__init__()
        self.token = nn.Embedding(NUM_DIGITS + 1, width)
        self.place = nn.Parameter(0.02 * torch.randn(LENGTH + 1, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, NUM_DIGITS)  # the mask token is no output, so it can never be sampled

    def forward(self, prompt, canvas):
        x = self.token(torch.cat([prompt[:, None], canvas], dim=1)) + self.place
        return self.head(self.body(x))[:, 1:].log_softmax(-1)


def reward(prompt, canvas):
    return (canvas == prompt[:, None]).double().mean(1)


@torch.no_grad()
def rollout(model, prompt, generator):
    """Denoise: each step reveals the position of highest top probability (TPP), with a sampled token."""
    rows = torch.arange(len(prompt))
    canvas = torch.full((len(prompt), LENGTH), MASK)
    steps = []
    for _ in range(LENGTH):
        logp = model(prompt, canvas)
        hidden = canvas == MASK
        place = logp.amax(-1).masked_fill(~hidden, -torch.inf).argmax(1)
        here = logp[rows, place]
        token = torch.multinomial(here.exp(), 1, generator=generator).squeeze(1)
        steps.append(
            {
                "state": canvas.clone(),
                "place": place,
                "token": token,
                "logp": here[rows, token],
                "entropy": -(here.exp() * here).sum(-1),
                # The greedy one-step completion of the state: its reward stands for the state's value.
                "value": reward(prompt, torch.where(hidden, logp.argmax(-1), canvas)),
            }
        )
        canvas[rows, place] = token
    stacked = {key: torch.stack([step[key] for step in steps], dim=1) for key in steps[0]}
    return stacked, reward(prompt, canvas)


def advantages(final, value):
    """Stepwise returns less the mean of the group's other members at the same step."""
    returns = (1 + LAMBDA) * final[:, None] - LAMBDA * value
    groups = returns.unflatten(0, (-1, GROUP))
    others = (groups.sum(1, keepdim=True) - groups) / (GROUP - 1)
    return (groups - others).flatten(0, 1)


def loss(model, prompt, steps, advantage):
    """Clipped surrogate on the K steps of highest entropy, all in one forward pass."""
    chosen = steps["entropy"].topk(K, dim=1).indices
    rows = torch.arange(len(prompt))[:, None]
    state, place, token = (steps[key][rows, chosen].flatten(0, 1) for key in ("state", "place", "token"))
    logp = model(prompt.repeat_interleave(K), state)[torch.arange(len(state)), place, token]
    ratio = (logp - steps["logp"][rows, chosen].flatten()).exp()
    a = advantage[rows, chosen].flatten().float()
    return -torch.minimum(ratio * a, ratio.clamp(1 - EPSILON, 1 + EPSILON_HIGH) * a).sum() / len(prompt)


def train(iterations: int = 150, seed: int = 0) -> list[float]:
    """Mean reward of each iteration's rollouts."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    curve = []
    for iteration in range(iterations):
        prompt = torch.randint(NUM_DIGITS, (PROMPTS,), generator=generator).repeat_interleave(GROUP)
        steps, final = rollout(model, prompt, generator)
        optimizer.zero_grad()
        loss(model, prompt, steps, advantages(final, steps["value"])).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        curve.append(final.mean().item())
        if iteration % 25 == 24:
            print(f"iteration {iteration + 1:4d}  reward {sum(curve[-25:]) / 25:.3f}", flush=True)
    return curve


if __name__ == "__main__":
    train()
