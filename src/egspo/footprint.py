"""The very code of a forward and backward pass, run on tensors that have a shape and no memory.

A model's modules are made on torch's meta device and then claimed as fake CPU tensors; a counter below
autograd adds up the storages that are alive. What a pass would hold at its worst is thus read off the pass
itself, whatever the family, the adapter or the precision, and costs seconds for a model of any size.
"""

import weakref
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from egspo.models import tiny
from egspo.models.adapters import adapt, adapt_shape, has_adapter
from egspo.models.family import Family, family_of
from egspo.policy import Policy, read_config, recompute_activations
from egspo.sections import ModelConfig


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages made under it that are still alive; ``known`` ones do not count."""

    def __init__(self, known: Iterable[Tensor] = ()):
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known = [tensor.untyped_storage() for tensor in known]
        self._seen = {storage._cdata: None for storage in self._known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.bool:
            return True  # transformers 4 asks whether a mask attends to everything: here it does
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._see(value.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen[key] = weakref.ref(storage, lambda _: self._forget(key, size))
            self.now += size
            self.peak = max(self.peak, self.now)

    def _forget(self, key: int, size: int) -> None:
        del self._seen[key]
        self.now -= size


class ShapePolicy(Policy):
    """A policy that is all shape: no tokenizer, no weights, and an attention mask that hides nothing."""

    def __init__(self, model: nn.Module, family: Family, autocast: torch.dtype | None):
        self.model = model
        self.family = family
        self.autocast = autocast
        self.suppressed = (0,)
        self.mask_token_id = 0
        # A pass of the reference costs the same, be it a copy or the model with its adapter off.
        self._reference = None if has_adapter(model) else model
        self.model.eval()

    def logits(self, input_ids, attention_mask=None, positions=None, *others):
        """As a policy's; whether a mask hides something is in its values, of which there are none."""
        return super().logits(input_ids, None, positions, *others)


def build_shape(config: ModelConfig, max_number_token: int | None = None) -> ShapePolicy:
    """The policy of a configuration on the meta device; of a checkpoint only ``config.json`` is read.

    Raises:
        ValueError: if there is no such checkpoint or adapter, or they do not fit.
    """
    with torch.device("meta"):
        model, family = _bare(config, max_number_token)
        if config.gradient_checkpointing:
            recompute_activations(model)
        name = config.adapter
        model = adapt(model, config, family) if name is None else adapt_shape(model, name)
    return ShapePolicy(model, family, torch.bfloat16 if config.bf16 else None)


def _bare(config: ModelConfig, max_number_token: int | None) -> tuple[nn.Module, Family]:
    if config.init is not None:
        model = tiny.build_model(config.init, tiny.build_tokenizer(max_number_token))
        return model, family_of(model.config.model_type)
    folder, family = read_config(config.model_name_or_path)
    published = family.load_config(folder)
    dtype = config.dtype
    if dtype == "auto":
        dtype = str(getattr(published, "dtype", None) or _stored_dtype(folder)).removeprefix("torch.")
    return family.build(published).to(getattr(torch, dtype)), family


def _stored_dtype(folder: Path) -> str:
    """Precision of a checkpoint's weights; float32, the most that it can be, where they are not here."""
    from safetensors import safe_open

    names = {"BF16": "bfloat16", "F16": "float16"}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
        return next((names[kind] for kind in sorted(kinds) if kind in names), "float32")
    return "float32"


def peak_bytes(policy: ShapePolicy, work: Callable[[], object], with_gradients: bool) -> int:
    """The most bytes that ``work`` holds at a time beyond the model and, if there are any yet, gradients.

    ``with_gradients``: those of an earlier microbatch are there already, to be added to.
    """
    with FakeTensorMode():
        _claim(policy.model)
        parameters = list(policy.model.parameters())
        for parameter in parameters:
            held = with_gradients and parameter.requires_grad
            parameter.grad = torch.zeros_like(parameter) if held else None
        known = [*parameters, *policy.model.buffers(), *(p.grad for p in parameters if p.grad is not None)]
        with LiveBytes(known) as live:
            work()
        for parameter in parameters:
            parameter.grad = None
    return live.peak


def _claim(model: nn.Module) -> None:
    """Put fake tensors in the place of parameters and buffers; what was shared stays shared."""
    claimed: dict[int, Tensor] = {}
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is not None:
                    store[name] = claimed.setdefault(id(tensor), _fake(tensor))


def _fake(tensor: Tensor) -> Tensor:
    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
    return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
