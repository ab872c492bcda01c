"""Recurrence without unrolling: ``lax.scan`` as constraints with a time axis.

Projections are local, so all steps are projected at once. The equations of the body are traced over a leading
axis, and the carry is a copy, ``concatenate(init, carry[:-1])``: the graph of arrays has a cycle, the graph of
scalars has none.
"""

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import ShapedArray
from jax.extend.core import Jaxpr, JaxprEqn, Var, jaxpr_as_fun
from jax.extend.core import primitives as jax_primitives

from pjax_core import rules
from pjax_core.graph import Copy, Node, Source
from pjax_core.jaxprs import Value, array_of, at_once, aval, called

if TYPE_CHECKING:
    from pjax_core.trace import JaxprTracer


def trace_scan(tracer: "JaxprTracer", eqn: JaxprEqn, inputs: list[Any]) -> list[Any]:
    """Trace all steps of a recurrence at once: its carry is a copy that shifts time by one step.

    A carry that depends on no parameter is evaluated; one that every step hands on as it is has one value.
    One that is only moved about would be a copy of itself: an identity (Theorem 4) breaks that circle.
    """
    body, length, carried = eqn.params["jaxpr"], eqn.params["length"], _carried(eqn)
    start, count = carried.start, carried.stop - carried.start
    if length == 0:
        raise tracer.error(eqn, "has no step; leave it out")
    unknown = _carry_on(eqn, [isinstance(x, Value) for x in inputs])
    with at_once(*map(array_of, inputs)):
        pairs = zip(inputs, eqn.invars, strict=True)
        inputs = [x if isinstance(x, Value) else jnp.asarray(x, aval(var).dtype) for x, var in pairs]
        before, after = _run(eqn, [*map(array_of, inputs)], unknown)

    def shift(first: Array, steps: Array) -> tuple[Array, Array]:
        """Values of a carry before each step and after the last from the first and those after each."""
        if eqn.params["reverse"]:
            return jnp.concatenate([steps[1:], first[None]]), steps[0]
        return jnp.concatenate([first[None], steps[:-1]]), steps[-1]

    arguments, last = list(inputs), inputs[carried]
    axes = [None] * start + [0] * (len(inputs) - start)
    shifted: dict[int, int] = {}  # position of a carry -> the copy that is its values before each step
    for i in range(count):
        if not unknown[start + i]:
            arguments[start + i], last[i] = before[i], after[i]
        elif body.jaxpr.outvars[i] is body.jaxpr.invars[start + i]:
            axes[start + i] = None
        else:
            source = tracer.copy(jax_primitives.copy_p, {}, [])  # its input is known below
            arguments[start + i], shifted[i] = Value(source, before[i]), source[1]
    stacked = jax.vmap(jaxpr_as_fun(body), tuple(axes), axis_size=length)
    outputs = tracer.derive(eqn, stacked, *arguments)
    for i, number in shifted.items():
        carry, last[i] = tracer.derive(eqn, shift, inputs[start + i], outputs[i])
        carry = tracer.value(carry)
        if _moves(tracer.copies, carry.source, number):
            node = Node("constraint", "identity", carry.array.shape, carry.array.dtype, rules.identity_p)
            carry = tracer.add(node, [carry], before[i])
        tracer.copies[number] = Copy(jax_primitives.copy_p, (), (carry.source,))
    return [*last, *outputs[count:]]


def _moves(copies: Sequence[Copy], source: Source, number: int) -> bool:
    """Whether a value is made of a result of a copy by copies alone."""
    kind, made = source
    return kind == "copy" and (made == number or any(_moves(copies, x, number) for x in copies[made].inputs))


def _depends(jaxpr: Jaxpr, inputs: Sequence[bool]) -> list[bool]:
    """Find which outputs depend on the inputs that are marked."""
    marked = {var for var, mark in zip(jaxpr.invars, inputs, strict=True) if mark}

    def read(atoms: Sequence[Any]) -> list[bool]:
        return [isinstance(atom, Var) and atom in marked for atom in atoms]

    for eqn in jaxpr.eqns:
        body, found = called(eqn), read(eqn.invars)
        if eqn.primitive is jax_primitives.scan_p:
            body, found = eqn.params["jaxpr"], _carry_on(eqn, found)
        found = _depends(body.jaxpr, found) if body else [any(found)] * len(eqn.outvars)
        marked.update(var for var, mark in zip(eqn.outvars, found, strict=True) if mark)
    return read(jaxpr.outvars)


def _carry_on(eqn: JaxprEqn, inputs: Sequence[bool]) -> list[bool]:
    """Mark also the carries of a scan that depend, at some step, on inputs that are marked."""
    marked, carried = list(inputs), _carried(eqn)
    for _ in range(carried.stop - carried.start):  # each time one more is found, or none is left to find
        marked[carried] = map(operator.or_, marked[carried], _depends(eqn.params["jaxpr"].jaxpr, marked))
    return marked


def _carried(eqn: JaxprEqn) -> slice:
    """Where a scan's carries are among its inputs: they follow the constants, and only what is behind has steps."""
    body = eqn.params["jaxpr"].jaxpr
    sides = (eqn.invars, body.invars), (eqn.outvars, body.outvars)
    end, count = (sum(aval(a).ndim == aval(b).ndim for a, b in zip(*side, strict=True)) for side in sides)
    return slice(end - count, end)


def _run(eqn: JaxprEqn, inputs: Sequence[Any], unknown: Sequence[bool]) -> tuple[list[Any], list[Any]]:
    """Run a scan; returns every carry's values before each step, stacked, and its value after the last.

    Where a graph is traced, only those of known carries are values; of the others the first is a shape.
    """
    body, length, carried = jaxpr_as_fun(eqn.params["jaxpr"]), eqn.params["length"], _carried(eqn)
    shapes = [ShapedArray((length, *x.shape), x.dtype) for x in inputs[carried]]
    traced = any(isinstance(x, ShapedArray) for x in inputs)
    runs = [not (traced and unsure) for unsure in unknown[carried]]
    if not any(runs):
        return shapes, shapes
    # What runs does not depend on what zeros stand for.
    arrays = [jnp.zeros(x.shape, x.dtype) if isinstance(x, ShapedArray) else x for x in inputs]

    def step(carry: list[Array], x: list[Array]) -> tuple[list[Array], list[Array]]:
        new = body(*arrays[: carried.start], *carry, *x)
        return [after if run else before for run, before, after in zip(runs, carry, new, strict=False)], carry

    after, before = lax.scan(step, arrays[carried], arrays[carried.stop :], length, eqn.params["reverse"])
    return [x if run else shape for run, x, shape in zip(runs, before, shapes, strict=True)], after
