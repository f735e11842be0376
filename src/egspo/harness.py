"""The ``egspo`` model of EleutherAI's lm-evaluation-harness: generation and likelihood tasks.

    python -m egspo.harness --model egspo --model_args pretrained=DIR,steps=64 --tasks gsm8k --batch_size 32

takes the options of ``lm_eval``, whose releases up to 0.4.13 know only models of their own. Later ones find
this class by its entry point, and ``lm_eval --model egspo`` is the same.
"""

import hashlib
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

try:
    # Its own models first: it registers them only into an empty registry.
    import lm_eval.models  # noqa: F401
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    MISSING = f"egspo.harness: needs lm-evaluation-harness ({error}); pip install 'egspo[eval]'"
    if __name__ == "__main__":
        sys.stderr.write(f"egspo: {MISSING}\n")
        sys.exit(2)
    raise ImportError(MISSING) from error

import torch
from tqdm import tqdm

from egspo import launch
from egspo.config import SamplerConfig
from egspo.elbo import Pair, greedy_matches, log_likelihoods
from egspo.ops import noise
from egspo.policy import load_policy
from egspo.rollout import pad_prompts, rollout
from egspo.settings import precision_of, read_settings, samplers_of

WINDOW = 2048
"""Tokens of a window of ``loglikelihood_rolling`` without ``max_length``, or less if the model has less."""
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names under which a task limits its answers; the first that is there counts."""
KNOWN = {"until", "do_sample", "temperature", *LENGTHS}
log = logging.getLogger("egspo.harness")


@register_model("egspo")
class DiffusionLM(TemplateLM):
    """A masked diffusion language model for the harness; the arguments are those of ``--model_args``.

    Args:
        pretrained: run folder, model folder, hub name or ``tiny:NAME``; ``adapter, dtype, load_in_4bit`` as
            in `egspo.load_policy`; by default as the model was trained, else as its weights are stored.
        max_completion_length: tokens of the canvas; default: as the model was trained, else what the task
            allows an answer, else 256. An answer is cut to what the task allows.
        steps: denoising steps; default: as trained, or half the canvas.
        sampler: further settings of the sampler section. A temperature given here holds for every task.
        mc_num: canvases of a likelihood estimate.
        seed: of draws at a temperature above 0 and of the canvases.
        max_length: tokens of a window of a rolling likelihood, context included.
        add_bos_token: put the tokenizer's first token before every context.

    Raises:
        ValueError: for a model that is not found, or an impossible setting.
    """

    def __init__(
        self,
        pretrained: str,
        adapter: str | None = None,
        dtype: str | None = None,
        load_in_4bit: bool | None = None,
        max_completion_length: int | None = None,
        steps: int | None = None,
        mc_num: int = 128,
        seed: int = 0,
        max_length: int | None = None,
        add_bos_token: bool = False,
        batch_size: int | str = 64,
        device: str | None = None,
        **sampler: Any,
    ):
        super().__init__()
        self.batch_size = _positive("batch_size", batch_size)
        self.mc_num = _positive("mc_num", mc_num)
        self.accelerator = launch.accelerator() if launch.world_size() > 1 else None
        if self.accelerator is not None:
            self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
            device = self.accelerator.device
        elif device is not None and device.startswith("cuda") and not torch.cuda.is_available():
            device = None  # the command line asks for cuda:0 unless told otherwise
        given = {"dtype": dtype, "load_in_4bit": load_in_4bit}
        precision = precision_of(pretrained, adapter, [])
        precision |= {key: value for key, value in given.items() if value is not None}
        self.policy = load_policy(pretrained, adapter, device=device, **precision)
        self.tokenizer, self.seed = self.policy.tokenizer, seed
        if add_bos_token and self.tokenizer.bos_token_id is None:
            raise ValueError(f"add_bos_token: True, but {pretrained} names no first token; leave it out")
        self._first = [self.tokenizer.bos_token_id] if add_bos_token else []
        most = self.policy.max_length
        self.max_length = min(max_length or WINDOW, most or sys.maxsize)
        self._length, self._steps, self._settings = max_completion_length, steps, sampler
        self._trained = read_settings(self.policy).get("sampler", {}).get("max_completion_length")
        self._samplers: dict[Any, SamplerConfig] = {}
        self._ignored: set[str] = set()
        # Whatever is wrong shows before any task; a number of steps can be judged only with a length.
        self._cfg_scale = samplers_of(self.policy, [], None, self._overrides(sampler))[0].cfg_scale
        if max_completion_length or (steps and self._trained):
            self._sampler({})
            self._samplers.clear()

    # ---- what the harness asks about the model --------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.policy.device

    @property
    def eot_token_id(self) -> int:
        return self.policy.end_token_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """What an empty context stands for: the first token of a text, else the end of the last one."""
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else first

    @property
    def tokenizer_name(self) -> str:
        template = hashlib.sha256((self.tokenizer.chat_template or "").encode()).hexdigest()[:8]
        return f"{self.policy.source}-{template}".replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside the scores: how texts were decoded, if any were, and weighed."""
        used = [sampler.model_dump() for sampler in self._samplers.values()]
        weighing = {"cfg_scale": self._cfg_scale, "mc_num": self.mc_num}
        return {"egspo": {"model": self.policy.source, "seed": self.seed, **weighing, "samplers": used}}

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        ids = self.tokenizer(string, add_special_tokens=False)["input_ids"]
        return ids if add_special_tokens is False else [*self._first, *ids]

    def apply_chat_template(self, chat_history: list[dict], add_generation_prompt: bool = True) -> str:
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def all_gather(self, tensor):
        return tensor if self.accelerator is None else self.accelerator.gather(tensor)

    def gather_object(self, obj, dst: int = 0):
        if self.accelerator is None:
            return [obj]
        found = [None] * self.world_size if self.rank == dst else None
        torch.distributed.gather_object(obj, found, dst=dst)
        return found

    def barrier(self) -> None:
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    # ---- likelihood -----------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """The bound of each text, and whether greedy decoding writes it."""
        results = [(0.0, True)] * len(requests)
        for rows, pairs in self._portions([(c, t) for _, c, t in requests], "loglikelihood"):
            bounds = self._bounds(pairs)
            greedy = greedy_matches(self.policy, pairs, self.batch_size, self._cfg_scale)
            for row, *result in zip(rows, bounds, greedy, strict=True):
                results[row] = tuple(result)
                if requests[row][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[row][0], results[row])
        return results

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Bounds of whole texts, cut into windows; a window sees as much of what it follows as fits."""
        owners, pairs = [], []
        for i, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0], add_special_tokens=False)
            # The harness does not count the last token, which an autoregressive model never reads.
            windows = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length - 1, 1)
            for window in windows:
                owners.append(i)
                pairs.append(make_disjoint_window(window))
        totals = [0.0] * len(requests)
        for rows, portion in self._portions(pairs, "loglikelihood_rolling", disable_tqdm):
            for row, bound in zip(rows, self._bounds(portion), strict=True):
                totals[owners[row]] += bound
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _bounds(self, pairs: Sequence[Pair]) -> list[float]:
        return log_likelihoods(self.policy, pairs, self.mc_num, self.seed, self.batch_size, self._cfg_scale)

    def _portions(
        self, pairs: Sequence[Pair], title: str, quiet: bool = False
    ) -> Iterator[tuple[list[int], list[Pair]]]:
        """Portions of like lengths, longest first, with progress: what is too long shows at once."""
        order = sorted(range(len(pairs)), key=lambda i: (-len(pairs[i][1]), -len(pairs[i][0])))
        with tqdm(total=len(pairs), desc=title, disable=quiet or self.rank != 0) as bar:
            for start in range(0, len(order), 4 * self.batch_size):
                rows = order[start : start + 4 * self.batch_size]
                yield rows, [pairs[row] for row in rows]
                bar.update(len(rows))

    # ---- generation -----------------------------------------------------------------------------------

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Answers as `egspo.generate` writes them, cut at the first stop string and to the length allowed."""
        samplers = [self._sampler(request.args[1]) for request in requests]
        contexts = [self.tok_encode(request.args[0]) or [self.prefix_token_id] for request in requests]
        seeds = self._seeds(requests)
        # Requests of one sampler together, long contexts first.
        key = {id(sampler): number for number, sampler in enumerate(samplers)}
        order = sorted(range(len(requests)), key=lambda i: (key[id(samplers[i])], -len(contexts[i])))
        texts = [""] * len(requests)
        with tqdm(total=len(order), desc="generate_until", disable=disable_tqdm or self.rank != 0) as bar:
            while order:
                sampler = samplers[order[0]]
                rows = [row for row in order[: self.batch_size] if samplers[row] is sampler]
                order = order[len(rows) :]
                ids, mask = pad_prompts(self.policy, [contexts[row] for row in rows])
                final = rollout(self.policy, ids, mask, seeds[rows], sampler, batch_size=len(rows)).final
                for row, tokens in zip(rows, final, strict=True):
                    texts[row] = self._answer(tokens, requests[row].args[1])
                    self.cache_hook.add_partial("generate_until", requests[row].args, texts[row])
                bar.update(len(rows))
        return texts

    def _answer(self, tokens: torch.Tensor, wanted: dict[str, Any]) -> str:
        text = self.policy.decode(tokens[None, : _allowed(wanted)])[0]
        until = wanted.get("until") or []
        for stop in [until] if isinstance(until, str) else until:
            text = text.partition(stop)[0] if stop else text
        return text

    def _sampler(self, wanted: dict[str, Any]) -> SamplerConfig:
        """How to decode for a task that asks for this."""
        for name in set(wanted) - KNOWN - self._ignored:
            self._ignored.add(name)
            log.warning("generation_kwargs: %s=%r has no meaning here and is ignored", name, wanted[name])
        length = self._length or (None if self._trained else _allowed(wanted))
        settings = {"temperature": _temperature(wanted)} | self._settings
        if length is not None and self._length is None:  # the task's own limit: up to whole blocks
            block = min(length, settings.get("block_length", SamplerConfig().block_length))
            length = -(-length // block) * block
        key = (length, settings["temperature"])
        if key not in self._samplers:
            lengths, overrides = [] if length is None else [length], self._overrides(settings)
            self._samplers[key] = samplers_of(self.policy, lengths, self._steps, overrides)[0]
        return self._samplers[key]

    @staticmethod
    def _overrides(settings: dict[str, Any]) -> list[str]:
        return [f"sampler.{name}={value}" for name, value in settings.items()]

    def _seeds(self, requests) -> torch.Tensor:
        """A seed for each completion by its place in its task: the same on any rank and in any batch."""
        seen: Counter[tuple] = Counter()
        keys = []
        for request in requests:
            place = (request.task_name, request.doc_id, request.idx)
            digest = hashlib.sha256(f"{place} {seen[place]}".encode()).digest()
            keys.append(int.from_bytes(digest[:8], "big", signed=True))
            seen[place] += 1
        return noise.sample_seeds(self.seed, 0, torch.tensor(keys, device=self.device))


def _allowed(wanted: dict[str, Any]) -> int | None:
    """Tokens that a task allows an answer."""
    limits = [int(wanted[name]) for name in LENGTHS if wanted.get(name) is not None]
    return max(1, limits[0]) if limits else None


def _temperature(wanted: dict[str, Any]) -> float:
    """A task's temperature, after the habits of the harness: greedy unless it says otherwise."""
    sampled, given = wanted.get("do_sample"), wanted.get("temperature")
    if sampled is False or (sampled is None and given is None):
        return 0.0
    return 1.0 if given is None else float(given)


def _positive(name: str, value: int | str) -> int:
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise ValueError(f"{name}: {value!r}; give a whole number from 1")
    return number


def main() -> None:
    """``lm_eval``'s command line, with this model known to it."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except ValueError as error:
        if os.environ.get("EGSPO_DEBUG"):
            raise
        sys.stderr.write(f"egspo: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
