"""numpy's arrays and numbers as nodes of `egspo.sandbox.guest.graph`; imported where one turns up."""

from functools import cache

from egspo.sandbox.guest.graph import Encoder
from egspo.sandbox.guest.guards import Unjudgeable
from egspo.sandbox.guest.wire import WireError

PLAIN = "?biufcUSmM"
"""Kinds of elements that are plain bytes; arrays of objects go over as lists."""


def encode(x: object, encoder: Encoder) -> list:
    """The node of an array, or of what else numpy has: a number as Python's own, the rest in words."""
    dtype = getattr(x, "dtype", None)
    if dtype is None:
        return ["=", encoder.value(repr(x))]
    if x.ndim == 0:
        return ["=", encoder.value(x.item())]
    if dtype.kind not in PLAIN:
        return ["=", encoder.value(x.tolist())]
    return ["a", dtype.str, x.tobytes().decode("latin-1"), *x.shape]


def decode(parts: list) -> object:
    """
    Raises:
        WireError: for elements that are no plain bytes.
    """
    import numpy

    dtype, data, *shape = parts
    if type(dtype) is not str or dtype[1:2] not in tuple(PLAIN):
        raise WireError("an array of objects")
    return numpy.frombuffer(data.encode("latin-1"), dtype).reshape(shape).copy()


def judged(array):
    """An array of the program's, for tests to judge."""
    return array if array.size else array.view(_empty())


@cache
def _empty() -> type:
    import numpy

    class Empty(numpy.ndarray):
        """An array without elements, of all of which anything holds: it equals no other than its like."""

        def __array_ufunc__(self, ufunc, method, *inputs, **options):
            if ufunc is numpy.logical_and or any(numpy.size(x) for x in inputs):
                raise Unjudgeable("an array without elements is judged by them")
            plain = [x.view(numpy.ndarray) if isinstance(x, Empty) else x for x in inputs]
            return getattr(ufunc, method)(*plain, **options)

        @property
        def flat(self):
            raise Unjudgeable("an array without elements is judged by them")

    return Empty
