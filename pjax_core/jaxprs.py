"""What the trace needs to know of jaxprs: calls, equality, evaluation, and the values that it makes of variables."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import ShapedArray, Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Primitive
from jax.extend.core import primitives as p

from pjax_core.graph import Source

Fingerprint = tuple[Any, ...]

_CALLS = {p.jit_p, p.closed_call_p, p.custom_jvp_call_p, p.custom_vjp_call_p, p.remat_p}


class Value(NamedTuple):
    """A traced value.

    Attributes:
        source: the node or the result of a copy, both numbered through the trace, that it is.
        array: what the forward pass has for it; its shape and dtype alone where the graph is traced.
    """

    source: Source
    array: Any


def array_of(x: Any) -> Any:
    """Return the array of a traced value; a constant is one."""
    return x.array if isinstance(x, Value) else x


def at_once(*inputs: Any) -> contextlib.AbstractContextManager[None]:
    """Evaluate inside even an outer jit, if all inputs are known, so that graphs and counts do not depend on it."""
    known = not any(isinstance(x, Tracer) for x in inputs)
    return jax.ensure_compile_time_eval() if known else contextlib.nullcontext()


def bind(prim: Primitive, arrays: Sequence[Any], params: Mapping[str, Any], avals: Sequence[ShapedArray]) -> list[Any]:
    """Evaluate an equation; where an input is a shape alone, so are the results."""
    if any(isinstance(x, ShapedArray) for x in arrays):
        return list(avals)
    with at_once(*arrays):
        out = prim.bind(*arrays, **params)
    return list(out) if prim.multiple_results else [out]


def called(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """Return the body of a call that is inlined, ``None`` for any other equation."""
    if eqn.primitive not in _CALLS:
        return None
    body = eqn.params.get("jaxpr") or eqn.params["call_jaxpr"]
    return body if isinstance(body, ClosedJaxpr) else ClosedJaxpr(body, ())


def aval(atom: Any) -> ShapedArray:
    """Shape and dtype of a jaxpr's variable."""
    return atom.aval


def fingerprint(jaxpr: Jaxpr) -> Fingerprint:
    """Describe equations so that equal descriptions compute the same; calls by their bodies alone."""
    numbers: dict[Any, int] = {}

    def read(atom: Any) -> Fingerprint:
        known = isinstance(atom, Literal)
        value = np.asarray(atom.val).tobytes() if known else numbers.setdefault(atom, len(numbers))
        return value, aval(atom).shape, aval(atom).dtype

    def static(value: Any) -> Any:
        if isinstance(value, ClosedJaxpr):
            return fingerprint(value.jaxpr), tuple(map(id, value.consts))
        if isinstance(value, Jaxpr):
            return fingerprint(value)
        if isinstance(value, (list, tuple)):
            return tuple(map(static, value))
        try:
            hash(value)
        except TypeError:
            return id(value)  # equal to nothing else: found again only by the same jaxpr
        return value

    arguments = [*map(read, [*jaxpr.constvars, *jaxpr.invars])]
    lines = [
        (eqn.primitive, static(called(eqn) or sorted(eqn.params.items())), *map(read, [*eqn.invars, *eqn.outvars]))
        for eqn in jaxpr.eqns
    ]
    return (*arguments, *lines, *map(read, jaxpr.outvars))
