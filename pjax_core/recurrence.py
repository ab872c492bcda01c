"""Recurrence without unrolling: ``lax.scan`` as constraints with a time axis.

Projections are local, so all steps are projected at once. The equations of the body are traced over a leading
axis, and the carry is a copy, ``concatenate(init, carry[:-1])``: the graph of arrays has a cycle, the graph of
scalars has none.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, jaxpr_as_fun
from jax.extend.core import primitives as jax_primitives

from pjax_core import rules
from pjax_core.graph import Copy, Node
from pjax_core.jaxprs import Value, at_once, aval, called

if TYPE_CHECKING:
    from pjax_core.trace import JaxprTracer

UNKNOWN: Any = object()
"""Stands for a value that depends on a parameter."""


def trace_scan(tracer: "JaxprTracer", eqn: JaxprEqn, inputs: list[Any], wanted: Sequence[bool]) -> list[Any]:
    """Trace all steps of a recurrence at once: its carry is a copy that shifts time by one step.

    A carry that depends on no parameter is evaluated; one that every step hands on as it is has one value.
    One that is only moved about would be a copy of itself: an identity (Theorem 4) breaks that circle.
    """
    body, length = eqn.params["jaxpr"], eqn.params["length"]
    start, end = eqn.params["num_consts"], eqn.params["num_consts"] + eqn.params["num_carry"]
    if length == 0:
        raise TypeError(f"scan at {tracer.source(eqn)} has no step; leave it out")

    def forward(x: Any) -> Any:
        return tracer.derive(eqn, lambda a: jnp.flip(a, 0), x)[0] if eqn.params["reverse"] else x

    inputs = [*inputs[:end], *map(forward, inputs[end:])]
    with at_once(*(x for x in inputs if not isinstance(x, Value))):
        pairs = zip(inputs, eqn.invars, strict=True)
        inputs = [x if isinstance(x, Value) else jnp.asarray(x, aval(var).dtype) for x, var in pairs]
        before, after = _known_carries(eqn, [UNKNOWN if isinstance(x, Value) else x for x in inputs])
    if not tracer.evaluates:
        arrays = [None] * len(before)
    else:
        arrays = _all_carries(eqn, [x.array if isinstance(x, Value) else x for x in inputs])
    arguments, axes = list(inputs), [None] * start + [0] * (len(inputs) - start)
    shifted: dict[int, int] = {}  # position of a carry -> copy equation of its values before each step
    for i, (known, var) in enumerate(zip(before, body.jaxpr.invars[start:end], strict=True)):
        if known is not UNKNOWN:
            arguments[start + i] = known
        elif body.jaxpr.outvars[i] is var:
            axes[start + i] = None
        else:
            shifted[i] = len(tracer.copies)
            tracer.copies.append(Copy(jax_primitives.copy_p, (), (), 1))  # its input is known below
            shape = (length, *aval(var).shape)
            arguments[start + i] = Value(None, (shifted[i], 0), shape, aval(var).dtype, arrays[i])
    stacked = jax.vmap(jaxpr_as_fun(body), tuple(axes), axis_size=length)
    count = end - start
    outputs = tracer.derive(eqn, stacked, *arguments, wanted=[True] * count + list(wanted[count:]))
    last = [x if known is UNKNOWN else known for x, known in zip(inputs[start:end], after, strict=True)]
    for i, number in shifted.items():
        carry, last[i] = tracer.derive(
            eqn, lambda a, b: (jnp.concatenate([a[None], b[:-1]]), b[-1]), inputs[start + i], outputs[i]
        )
        if _moves(tracer.copies, carry, number):
            node = Node("constraint", "identity", carry.shape, carry.dtype, rules.identity_p)
            carry = tracer.add(node, [carry], arrays[i])
        tracer.copies[number] = Copy(jax_primitives.copy_p, (), (carry,), 1)
    return [*last, *(y if y is None else forward(y) for y in outputs[count:])]


def _moves(copies: Sequence[Copy], value: Value, number: int) -> bool:
    """Whether a value is made of the result of a copy equation by copies alone."""
    if value.copy is None:
        return False
    inputs = [x for x in copies[value.copy[0]].inputs if isinstance(x, Value)]
    return value.copy[0] == number or any(_moves(copies, x, number) for x in inputs)


def _known_outputs(closed: ClosedJaxpr, arguments: Sequence[Any]) -> list[Any]:
    """Evaluate what depends on no UNKNOWN argument."""
    env: dict[Any, Any] = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    env.update(zip(closed.jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else env[atom]

    for eqn in closed.jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        body = called(eqn)
        if body:
            outputs = _known_outputs(body, inputs)
        elif any(x is UNKNOWN for x in inputs):
            outputs = [UNKNOWN] * len(eqn.outvars)
        else:
            out = eqn.primitive.bind(*inputs, **eqn.params)
            outputs = list(out) if eqn.primitive.multiple_results else [out]
        env.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in closed.jaxpr.outvars]


def _known_carries(eqn: JaxprEqn, inputs: Sequence[Any]) -> tuple[list[Any], list[Any]]:
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
        return _known_outputs(eqn.params["jaxpr"], arguments)[: len(carry)]

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


def _all_carries(eqn: JaxprEqn, inputs: Sequence[Array]) -> list[Array]:
    """Run a scan (forward in time); returns every carry's values before each step, stacked."""
    start, end = eqn.params["num_consts"], eqn.params["num_consts"] + eqn.params["num_carry"]
    body = jaxpr_as_fun(eqn.params["jaxpr"])

    def step(carry: list[Array], x: list[Array]) -> tuple[list[Array], list[Array]]:
        return list(body(*inputs[:start], *carry, *x))[: end - start], carry

    carry = [jnp.asarray(x) for x in inputs[start:end]]
    return lax.scan(step, carry, list(inputs[end:]), eqn.params["length"])[1]
