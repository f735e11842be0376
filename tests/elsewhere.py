"""A device that is not the CPU, for machines without one: tensors say that they are on it, the CPU computes.

Importing this module adds `DEVICE` to the process. As on a GPU, an operation on tensors of both raises, and
so does reading a tensor as an array of numpy's; matrices of whole numbers cannot be multiplied.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
# What copies between devices, and what a GPU's tensor may be indexed with.
FROM_BOTH = {aten.copy_, aten._to_copy, aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
MATRIX_PRODUCTS = {aten.mm, aten.bmm, aten.addmm, aten.baddbmm}


class Elsewhere(Tensor):
    """A tensor on `DEVICE`; its numbers are in ``held``, which is on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor):
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = Tensor._make_wrapper_subclass(cls, held.shape, **layout, device=DEVICE)
        made.held = held
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.held!r})"

    # What torch does not do for tensors that it does not hold itself.
    def tolist(self) -> Any:
        return self.held.tolist()

    def __reduce_ex__(self, protocol: int) -> Any:
        return self.held.__reduce_ex__(protocol)  # saved, it is loaded to the CPU

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return compute(function, *args, **(kwargs or {}))


class Module(backend_registration._DummyBackendModule):
    """What ``torch.cuda`` is to CUDA, as far as it is asked for."""

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        """Nothing draws there."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def compute(function, *args: Any, **kwargs: Any) -> Any:
    """The result of an operation, on `DEVICE` if its tensors are, or if that is asked for."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    if there:
        _check(function, tensors)
    elsewhere = bool(there)
    if kwargs.get("device") is not None:
        elsewhere = torch.device(kwargs["device"]).type == DEVICE.type
        kwargs["device"] = torch.device("cpu")
    args, kwargs = tree_map_only(Elsewhere, lambda tensor: tensor.held, (args, kwargs))
    out = function(*args, **kwargs)
    # What was changed in place is the tensor that was given.
    given = {id(tensor): tensor for tensor in tensors} | {id(tensor.held): tensor for tensor in there}
    return tree_map_only(Tensor, lambda t: given.get(id(t), Elsewhere(t) if elsewhere else t), out)


def _check(function, tensors: list[Tensor]) -> None:
    """Numbers (tensors without dimensions) may come from the CPU."""
    operation = function.overloadpacket
    strangers = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere) and tensor.ndim]
    if strangers and operation not in FROM_BOTH:
        raise RuntimeError(f"{function}: expected all tensors on one device, but found {DEVICE} and cpu")
    if operation in MATRIX_PRODUCTS and not all(t.is_floating_point() for t in tensors if t.ndim):
        raise RuntimeError(f"{function}: not implemented for whole numbers on a GPU")


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    (target.held if isinstance(target, Elsewhere) else target).copy_(source)
    return target


backend_registration._setup_privateuseone_for_python_backend("elsewhere", backend_module=Module())
DEVICE = torch.device("elsewhere:0")
_MADE = torch.library.Library("aten", "IMPL")
for make in (aten.empty.memory_format, aten.empty_strided.default):
    _MADE.impl(make, partial(compute, make), "PrivateUse1")
_MADE.impl(aten._copy_from.default, _copy_from, "PrivateUse1")
