"""Rollouts with cached keys and values beside plain ones: what they save, and how far from the policy.

    python benchmarks/caches.py

A checkpoint in LLaDA's format with random weights (its shape is in the results) is saved and loaded as any
other. Its output layer is scaled up, so that some tokens pass a confidence threshold as a trained model's do.
Each repetition denoises the same prompts, of different lengths, by every way of caching in turn, without and
with a threshold, so that whatever else the machine does falls on all alike; processor time is compared. Some
steps of every rollout are then scored by the policy itself: the ratios of that to what was sampled from give
the effective sample size. The same for a small model that was trained, ``tiny:countdown-rl``. Early stop is
off, so that all denoise whole canvases. One thread. The table goes to ``benchmarks/results/caches.json``.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from egspo.config import SamplerConfig
from egspo.likelihood import correct
from egspo.models.llada import LLaDAConfig, LLaDAModelLM
from egspo.models.tiny import build_tokenizer
from egspo.models.tokenizers import save_tokenizer
from egspo.ops import noise
from egspo.ops.importance import effective_sample_size
from egspo.policy import Policy, load_policy
from egspo.rollout import pad_prompts, rollout
from egspo.types import Steps, Trajectory

SHAPE = {"d_model": 256, "n_layers": 8, "n_heads": 8, "mlp_hidden_size": 704, "rope_theta": 10000.0}
INIT_STD, SHARPNESS = 0.05, 6.0
CANVAS = {"max_completion_length": 256, "diffusion_steps": 128, "block_length": 32}
PROMPTS = ("Add 12 and 30, then halve the sum.", "Make 24 from the numbers 3, 8 and 8. " * 3)
TRAINED = "tiny:countdown-rl"
CACHES = ("none", "prefix", "dual")
THRESHOLDS = {"random": 0.5, TRAINED: 0.9}
SCORED_STEPS = 16
"""Steps of a completion whose weights are looked at; all that there are, if fewer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/caches.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    policy = random_policy()
    rows = compare("random", policy, policy.encode_prompts(PROMPTS), CANVAS, options.repetitions)
    trained, problems, canvas = trained_policy()
    rows += compare(TRAINED, trained, problems, canvas, options.repetitions)
    summary = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"one core, Linux {platform.release()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}",
        "random": SHAPE
        | CANVAS
        | {"init_std": INIT_STD, "sharpness": SHARPNESS, "completions": len(PROMPTS)},
        TRAINED: canvas | {"completions": len(problems)},
        "rows": rows,
    }
    options.results.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(summary, indent=2))


def random_policy() -> Policy:
    """A checkpoint of random weights, by way of its files."""
    tokenizer = build_tokenizer(99)
    ids = {"mask_token_id": tokenizer.mask_token_id, "eos_token_id": tokenizer.eos_token_id}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LLaDAConfig(
            **SHAPE, **ids, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, init_std=INIT_STD
        )
        model = LLaDAModelLM(config)
    with torch.no_grad():
        model.get_output_embeddings().weight *= SHARPNESS
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        save_tokenizer(tokenizer, Path(folder))
        return load_policy(folder)


def trained_policy() -> tuple[Policy, list[list[int]], dict]:
    """A shipped model, problems of its task, and its canvas in two blocks."""
    from egspo.settings import read_settings, task_of

    policy = load_policy(TRAINED)
    prompts = task_of(policy, None, None, []).load("test")[:32]
    length = read_settings(policy)["sampler"]["max_completion_length"]
    canvas = {"max_completion_length": length, "diffusion_steps": length, "block_length": length // 2}
    return policy, policy.encode_prompts([prompt.messages for prompt in prompts]), canvas


def compare(
    model: str, policy: Policy, prompts: list[list[int]], canvas: dict, repetitions: int
) -> list[dict]:
    """A line for every threshold and way of caching; ratios are to no cache and no threshold."""
    ways = [(threshold, cache) for threshold in (None, THRESHOLDS[model]) for cache in CACHES]
    seconds: dict[tuple, list[float]] = {way: [] for way in ways}
    steps: dict[tuple, list[float]] = {way: [] for way in ways}
    weights: dict[tuple, list[torch.Tensor]] = {way: [] for way in ways}
    prompt_ids, prompt_mask = pad_prompts(policy, prompts)
    for repetition in range(repetitions):
        seeds = noise.sample_seeds(repetition, 0, torch.arange(len(prompts)))
        for way in ways:
            threshold, cache = way
            sampler = SamplerConfig(
                **canvas, cache=cache, confidence_threshold=threshold, temperature=1.0, early_stop=False
            )
            began = time.process_time()
            trajectory = rollout(policy, prompt_ids, prompt_mask, seeds, sampler)
            seconds[way].append(time.process_time() - began)
            steps[way].append(float(trajectory.steps_taken.double().mean()))
            if cache != "none":
                weights[way].append(step_weights(policy, trajectory, sampler, repetition))
    plain = seconds[ways[0]]
    return [row(model, way, seconds[way], plain, steps[way], weights[way]) for way in ways]


def step_weights(policy: Policy, trajectory: Trajectory, sampler: SamplerConfig, seed: int) -> torch.Tensor:
    """``pi / mu``, not truncated, of some steps of every completion, drawn at random."""
    taken = torch.arange(trajectory.num_steps) < trajectory.steps_taken[:, None]
    scores = torch.rand(taken.shape, generator=torch.Generator().manual_seed(seed)).masked_fill(~taken, -1.0)
    index = scores.argsort(dim=1, descending=True)[:, :SCORED_STEPS]
    chosen = Steps(index, taken.gather(1, index))
    log_weight = correct(policy, trajectory, chosen, sampler, float("inf"), SCORED_STEPS).log_weight
    return log_weight[chosen.mask].double().exp()


def row(model: str, way: tuple, seconds, plain, steps, weights) -> dict:
    ratios = [mine / other for mine, other in zip(seconds, plain, strict=True)]
    weight = torch.cat(weights) if weights else None
    return {
        "model": model,
        "confidence_threshold": way[0],
        "cache": way[1],
        "seconds": [round(value, 2) for value in seconds],
        "time_ratio": round(statistics.median(ratios), 3),
        "time_ratios": [round(value, 3) for value in ratios],
        "steps_taken": round(statistics.fmean(steps), 1),
        "steps_weighed": None if weight is None else len(weight),
        "importance_mean": None if weight is None else round(float(weight.mean()), 4),
        "importance_max": None if weight is None else round(float(weight.max()), 3),
        "effective_sample_size": None
        if weight is None
        else round(effective_sample_size(float(weight.mean()), float(weight.square().mean())), 4),
    }


if __name__ == "__main__":
    main()
