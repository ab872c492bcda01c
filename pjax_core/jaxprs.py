"""What the trace needs to know of jaxprs: calls, equality, and what is known of a recurrence beforehand."""

import contextlib
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import ShapedArray, Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Primitive, jaxpr_as_fun
from jax.extend.core import primitives as jax_primitives

Fingerprint = tuple[Any, ...]

_CALLS: dict[Primitive, str] = {
    jax_primitives.jit_p: "jaxpr",
    jax_primitives.closed_call_p: "call_jaxpr",
    jax_primitives.custom_jvp_call_p: "call_jaxpr",
    jax_primitives.custom_vjp_call_p: "call_jaxpr",
    jax_primitives.remat_p: "jaxpr",
}

UNKNOWN: Any = object()
"""Stands for a value that depends on a parameter."""


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


def known_outputs(closed: ClosedJaxpr, arguments: Sequence[Any]) -> list[Any]:
    """Evaluate what depends on no UNKNOWN argument."""
    env: dict[Any, Any] = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    env.update(zip(closed.jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else env[atom]

    for eqn in closed.jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        body = called(eqn)
        if body:
            outputs = known_outputs(body, inputs)
        elif any(x is UNKNOWN for x in inputs):
            outputs = [UNKNOWN] * len(eqn.outvars)
        else:
            out = eqn.primitive.bind(*inputs, **eqn.params)
            outputs = list(out) if eqn.primitive.multiple_results else [out]
        env.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in closed.jaxpr.outvars]


def known_carries(eqn: JaxprEqn, inputs: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Evaluate the carries of a scan (forward in time) that depend on no UNKNOWN input.

    Returns:
        For every carry its values before each step, stacked, and its value after the last; else UNKNOWN.
    """
    start, end = eqn.params["num_consts"], eqn.params["num_consts"] + eqn.params["num_carry"]
    consts, carry, xs = inputs[:start], list(inputs[start:end]), inputs[end:]

    def known(values: Sequence[Any]) -> list[Array]:
        return [x for x in values if x is not UNKNOWN]

    def fill(template: Sequence[Any], values: Sequence[Array]) -> list[Any]:
        remaining = iter(values)
        return [x if x is UNKNOWN else next(remaining) for x in template]

    def after(before: Sequence[Array], slices: Sequence[Array]) -> list[Any]:
        arguments = [*consts, *fill(carry, before), *fill(xs, slices)]
        return known_outputs(eqn.params["jaxpr"], arguments)[: len(carry)]

    def step(before: list[Array], slices: list[Array]) -> tuple[list[Array], list[Array]]:
        outputs = [x for c, x in zip(carry, after(before, slices), strict=True) if c is not UNKNOWN]
        return outputs, before

    slices = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in known(xs)]
    while True:
        found: list[bool] = []

        def probe(before: list[Array], x: list[Array], found: list[bool] = found) -> None:
            found.extend(y is UNKNOWN for y in after(before, x))

        jax.eval_shape(probe, known(carry), slices)
        narrowed = [UNKNOWN if unknown else x for unknown, x in zip(found, carry, strict=True)]
        if len(known(narrowed)) == len(known(carry)):
            break
        carry = narrowed
    if not known(carry):
        return carry, carry
    final, sequences = lax.scan(step, known(carry), known(xs), eqn.params["length"])
    return fill(carry, cast(list[Array], sequences)), fill(carry, final)


def all_carries(eqn: JaxprEqn, inputs: Sequence[Array]) -> list[Array]:
    """Run a scan (forward in time); returns every carry's values before each step, stacked."""
    start, end = eqn.params["num_consts"], eqn.params["num_consts"] + eqn.params["num_carry"]
    body = jaxpr_as_fun(eqn.params["jaxpr"])

    def step(carry: list[Array], x: list[Array]) -> tuple[list[Array], list[Array]]:
        return list(body(*inputs[:start], *carry, *x))[: end - start], carry

    carry = [jnp.asarray(x) for x in inputs[start:end]]
    return lax.scan(step, carry, list(inputs[end:]), eqn.params["length"])[1]
