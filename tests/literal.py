"""EGSPO-SA as its description reads, loop by loop: one sample, one step, one position, one token at a time.

Slow and plain on purpose. Of the package it uses the records' settings and the definition of the noise; the
model is called on one unpadded canvas at a time.
"""

import math
from dataclasses import dataclass, field

import torch

from egspo.ops import noise


@dataclass
class Sample:
    """One completion and how it came to be."""

    prompt: list[int]
    canvas: list[int]
    canvases: list[list[int]] = field(default_factory=list)
    """The canvas before each step."""
    revealed: list[list[int]] = field(default_factory=list)
    """Positions of each step, in the order in which they were chosen."""
    candidates: list[list[int]] = field(default_factory=list)
    """Positions among which each step chose."""
    one_step: list[list[int]] = field(default_factory=list)
    token_logp: dict[int, float] = field(default_factory=dict)
    position_logp: list[float] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    last_step: int = 0
    seed: int = 0


def logits_at(model, prompt, canvas, sampler, mask_id):
    """``[length, vocab]`` of one canvas, with guidance; the mask ruled out."""
    logits = model(input_ids=torch.tensor([prompt + canvas])).logits[0, len(prompt) :]
    if sampler.cfg_scale > 0:
        blind = model(input_ids=torch.tensor([[mask_id] * len(prompt) + canvas])).logits[0, len(prompt) :]
        logits = blind + (1 + sampler.cfg_scale) * (logits - blind)
    allowed = torch.ones(logits.shape[-1], dtype=torch.bool)
    allowed[mask_id] = False
    return logits, allowed


def log_probabilities(logits, allowed, temperature):
    """``log softmax(logits / temperature)`` over the allowed tokens, minus infinity elsewhere."""
    scaled = logits / (temperature if temperature > 0 else 1.0)
    return torch.where(
        allowed, scaled - scaled[allowed].logsumexp(0), torch.tensor(-math.inf, dtype=scaled.dtype)
    )


def entropy_of(logp):
    total = 0.0
    for value in logp.tolist():
        if value > -math.inf:
            total -= math.exp(value) * value
    return total


def draw_token(logp, uniform):
    """The first token at which the cumulative probability exceeds the uniform number."""
    probabilities = [math.exp(value) for value in logp.tolist()]
    whole, cumulative = sum(probabilities), 0.0
    for token, probability in enumerate(probabilities):
        cumulative += probability
        if cumulative > uniform * whole:
            return token
    raise AssertionError("a uniform number below 1 always finds a token")


@torch.no_grad()
def rollout(model, prompt, seed, sampler, mask_id, end_ids):
    """Denoise one completion."""
    length, block, steps = sampler.max_completion_length, sampler.block_length, sampler.diffusion_steps
    sample = Sample(prompt, [mask_id] * length, seed=seed)
    steps_per_block = steps // (length // block)
    step = 0
    for start in range(0, length, block):
        left = block
        for k in range(steps_per_block):
            # As even as possible, the larger shares first.
            count = math.ceil(left / (steps_per_block - k))
            left -= count
            denoise(model, sample, step, start, start + block, count, sampler, mask_id)
            step += 1
    sample.last_step = last_step(sample, end_ids)
    return sample


def denoise(model, sample, step, start, end, count, sampler, mask_id):
    length = len(sample.canvas)
    key = torch.tensor([sample.seed])
    token_noise = noise.uniform(key, noise.TOKENS, step, length)[0].tolist()
    place_noise = noise.uniform(key, noise.POSITIONS, step, length)[0].tolist()
    logits, allowed = logits_at(model, sample.prompt, sample.canvas, sampler, mask_id)
    hidden = [i for i in range(start, end) if sample.canvas[i] == mask_id]
    sample.canvases.append(list(sample.canvas))
    sample.candidates.append(hidden)
    sample.one_step.append(
        [
            int(log_probabilities(logits[i], allowed, 1.0).argmax()) if token == mask_id else token
            for i, token in enumerate(sample.canvas)
        ]
    )
    drawn, score = {}, {}
    for i in hidden:
        acting = log_probabilities(logits[i], allowed, sampler.temperature)
        drawn[i] = int(acting.argmax()) if sampler.temperature == 0 else draw_token(acting, token_noise[i])
        plain = log_probabilities(logits[i], allowed, 1.0)
        score[i] = position_score(sampler, plain, drawn[i], place_noise[i], i)
    chosen = sorted(hidden, key=lambda i: -score[i])[:count]
    entropy = 0.0
    for i in chosen:
        acting = log_probabilities(logits[i], allowed, sampler.temperature)
        sample.canvas[i] = drawn[i]
        sample.token_logp[i] = float(acting[drawn[i]])
        entropy += entropy_of(acting)
    sample.revealed.append(chosen)
    sample.entropy.append(entropy)
    sample.position_logp.append(float(choice_logp(sampler, logits, allowed, hidden, chosen)))


def position_score(sampler, plain, token, uniform, place):
    probabilities = sorted((math.exp(value) for value in plain.tolist()), reverse=True)
    match sampler.remasking:
        case "low_confidence":
            return math.exp(float(plain[token]))
        case "top_prob":
            return probabilities[0]
        case "plackett_luce":
            return probabilities[0] / sampler.position_temperature - math.log(-math.log(uniform))
        case "random":
            return uniform
        case "entropy":
            return -entropy_of(plain)
        case "margin":
            return probabilities[0] - probabilities[1]
        case "left_to_right":
            return -place


def choice_logp(sampler, logits, allowed, hidden, chosen):
    """Log-probability of drawing these positions in this order; 0 where they follow from the state."""
    if sampler.remasking == "random":
        return -sum(math.log(len(hidden) - k) for k in range(len(chosen)))
    if sampler.remasking != "plackett_luce":
        return 0.0
    strength = {
        i: log_probabilities(logits[i], allowed, 1.0).max().exp() / sampler.position_temperature
        for i in hidden
    }
    logp = 0.0
    for i in chosen:
        logp = logp + strength[i] - torch.stack(list(strength.values())).logsumexp(0)
        del strength[i]
    return logp


def last_step(sample, end_ids):
    """The last step that reveals something up to the first end of the text."""
    latest = 0
    for place, token in enumerate(sample.canvas):
        latest = max(latest, step_of(sample, place))
        if token in end_ids:
            break
    return latest


def step_of(sample, place):
    return next(t for t, places in enumerate(sample.revealed) if place in places)


# ---- the loss --------------------------------------------------------------------------------------------


def selected_steps(sample, config):
    """Steps to train on, in order of preference; none after the last informative one."""
    eligible = list(range(sample.last_step + 1))
    wanted = config.num_selected_steps
    match config.selection:
        case "all":
            return eligible
        case "top_entropy":
            return sorted(eligible, key=lambda t: -sample.entropy[t])[:wanted]
        case "adaptive":
            kept, whole = [], sum(sample.entropy[t] for t in eligible)
            for t in sorted(eligible, key=lambda t: -sample.entropy[t])[:wanted]:
                left_out = whole - sum(sample.entropy[k] for k in kept)
                if left_out > config.entropy_left * whole + 1e-12:
                    kept.append(t)
            return kept
        case "random":
            steps = len(sample.revealed)
            chance = noise.uniform(torch.tensor([sample.seed]), noise.SELECTION, 0, steps)[0].tolist()
            return sorted(eligible, key=lambda t: -chance[t])[:wanted]
        case "uniform":
            # The middles of as many equal parts of the eligible steps as are wanted.
            middles = {math.floor((k + 0.5) * len(eligible) / wanted) for k in range(wanted)}
            return [eligible[m] for m in sorted(middles)]


def step_weight(config, step, steps):
    share = step / steps if config.step_advantage_schedule == "linear" else 1.0
    return config.step_advantage_weight * share


def step_return(sample, step, reward, config):
    """``(1 + lambda_t) r(x_0) - lambda_t r(xhat_t)``, divided by ``1 + lambda_t`` if asked."""
    weight = step_weight(config, step, len(sample.revealed))
    value = (1 + weight) * reward(sample.canvas) - weight * reward(sample.one_step[step])
    return value / (1 + weight) if config.normalise_step_advantage else value


def known_returns(samples, reward, config):
    """For each sample, the returns that enter baselines: step -> return.

    Without stepwise advantages a sample has one return, the same at every step.
    """
    if config.step_advantage_weight == 0:
        return [{t: reward(s.canvas) for t in range(len(s.revealed))} for s in samples]
    whole = config.baseline in ("same_step", "leave_one_out")
    return [
        {
            t: step_return(s, t, reward, config)
            for t in (range(s.last_step + 1) if whole else selected_steps(s, config))
        }
        for s in samples
    ]


def advantage(i, step, samples, returns, config, group_size):
    """Return of sample i at a step less its baseline."""
    own = returns[i][step]
    group = range(i // group_size * group_size, (i // group_size + 1) * group_size)
    match config.baseline:
        case "none":
            peers = []
        case "same_step":
            peers = [returns[j][step] for j in group if step in returns[j]]
        case "leave_one_out":
            peers = [returns[j][step] for j in group if step in returns[j] and j != i]
        case "same_rank" if config.step_advantage_weight == 0:
            peers = [returns[j][0] for j in group]
        case "same_rank":
            order = [selected_steps(samples[j], config) for j in group]
            rank = selected_steps(samples[i], config).index(step)
            peers = [
                returns[j][steps[rank]] for j, steps in zip(group, order, strict=True) if rank < len(steps)
            ]
        case "batch" if config.step_advantage_weight == 0:
            peers = [values[0] for values in returns]
        case "batch":
            peers = [value for values in returns for value in values.values()]
    return own - (sum(peers) / len(peers) if peers else 0.0)


def loss(model, reference, samples, reward, config, sampler, group_size, mask_id):
    """The loss, and (clipped, all) ratios.

    ``(1/N) sum_i sum_{t in S_i} [-min(rho A, clip(rho) A) + beta KL]``
    """
    returns = known_returns(samples, reward, config)
    total, clipped, ratios = 0.0, 0, 0
    for i, sample in enumerate(samples):
        for step in selected_steps(sample, config):
            a = advantage(i, step, samples, returns, config, group_size)
            tokens, place = step_logps(model, sample, step, sampler, mask_id)
            share = len(tokens) if config.aggregation == "mean" else 1
            gaps = {k: logp[sample.canvas[k]] - sample.token_logp[k] for k, logp in tokens.items()}
            drawn = sampler.remasking == "plackett_luce"
            place_gap = place - sample.position_logp[step] if drawn else 0.0
            if config.ratio == "step":
                each, weight = [sum(gaps.values()) / share + place_gap], 1.0
            else:
                each, weight = [*gaps.values(), *([place_gap] if drawn else [])], 1.0 / share
            for gap in each:
                term, was_clipped = surrogate(gap.exp(), a, config)
                total = total + weight * term
                clipped, ratios = clipped + was_clipped, ratios + 1
            if config.beta > 0:
                total = (
                    total
                    + config.beta * kl(reference, sample, step, tokens, config, sampler, mask_id) / share
                )
    return total / len(samples), (clipped, ratios)


def surrogate(ratio, a, config):
    low, high, value = 1 - config.epsilon, 1 + config.epsilon_high, float(ratio.detach())
    bounded = min(max(value, low), high)
    if bounded * a < value * a:
        return -bounded * a, True
    return -ratio * a, False


def step_logps(model, sample, step, sampler, mask_id):
    """Log-probabilities of all tokens at each position of a step, and of the choice of the positions."""
    logits, allowed = logits_at(model, sample.prompt, sample.canvases[step], sampler, mask_id)
    tokens = {i: log_probabilities(logits[i], allowed, sampler.temperature) for i in sample.revealed[step]}
    return tokens, choice_logp(sampler, logits, allowed, sample.candidates[step], sample.revealed[step])


def kl(reference, sample, step, tokens, config, sampler, mask_id):
    """Estimate of KL(policy || reference), summed over the tokens of a step."""
    with torch.no_grad():
        frozen, _ = step_logps(reference, sample, step, sampler, mask_id)
    total = 0.0
    for i, logp in tokens.items():
        if config.kl == "exact":
            for token in range(len(logp)):
                if token != mask_id:
                    total = total + logp[token].exp() * (logp[token] - frozen[i][token])
            continue
        gap = frozen[i][sample.canvas[i]] - logp[sample.canvas[i]]
        total = total + {"k1": -gap, "k2": gap**2 / 2, "k3": gap.exp() - 1 - gap}[config.kl]
    return total
