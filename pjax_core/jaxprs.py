"""What the trace needs to know of jaxprs: calls, equality, and the values that it makes of their variables."""

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import ShapedArray, Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Primitive
from jax.extend.core import primitives as jax_primitives

Fingerprint = tuple[Any, ...]

_CALLS: dict[Primitive, str] = {
    jax_primitives.jit_p: "jaxpr",
    jax_primitives.closed_call_p: "call_jaxpr",
    jax_primitives.custom_jvp_call_p: "call_jaxpr",
    jax_primitives.custom_vjp_call_p: "call_jaxpr",
    jax_primitives.remat_p: "jaxpr",
}


class Value(NamedTuple):
    """A traced value that depends on a parameter: a node's value or a result of a copy equation."""

    node: int | None
    copy: tuple[int, int] | None  # (equation, result)
    shape: tuple[int, ...]
    dtype: np.dtype
    array: Any  # None while the graph is traced


def at_once(*inputs: Any) -> contextlib.AbstractContextManager[None]:
    """Evaluate inside even an outer jit, if all inputs are known, so that graphs and counts do not depend on it."""
    known = not any(isinstance(x, Tracer) for x in inputs)
    return jax.ensure_compile_time_eval() if known else contextlib.nullcontext()


def called(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """Return the body of a call that is inlined, ``None`` for any other equation."""
    if eqn.primitive not in _CALLS:
        return None
    body = eqn.params[_CALLS[eqn.primitive]]
    return body if isinstance(body, ClosedJaxpr) else ClosedJaxpr(body, ())


def aval(atom: Any) -> ShapedArray:
    """Shape and dtype of a jaxpr's variable."""
    return atom.aval


def fingerprint(jaxpr: Jaxpr) -> Fingerprint:
    """Describe equations so that equal descriptions compute the same; calls by their bodies alone."""
    numbers: dict[Any, int] = {}

    def shape(atom: Any) -> Fingerprint:
        return (*aval(atom).shape, str(aval(atom).dtype))

    def read(atom: Any) -> Any:
        if isinstance(atom, Literal):
            return (*shape(atom), np.asarray(atom.val).tobytes())
        return numbers[atom]

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

    def number(atoms: Sequence[Any]) -> Fingerprint:
        for atom in atoms:
            numbers[atom] = len(numbers)
        return tuple(map(shape, atoms))

    lines: list[Any] = [number(jaxpr.constvars), number(jaxpr.invars)]
    for eqn in jaxpr.eqns:
        body = called(eqn)
        params = static(body) if body else tuple((k, static(v)) for k, v in sorted(eqn.params.items()))
        inputs = tuple(map(read, eqn.invars))
        lines.append((eqn.primitive, params, inputs, number(eqn.outvars)))
    return (*lines, tuple(map(read, jaxpr.outvars)))
