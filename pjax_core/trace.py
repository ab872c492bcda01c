"""From plain JAX to a constraint graph.

``jax.make_jaxpr`` gives the equations; each is one of four kinds. A *constant* depends on no parameter
and is evaluated on the spot. A *copy* has a rule in ``copy_rules``. A *constraint* or *loss* has a
projection. Anything else is an error that says what to do. Calls (``jit``, ``custom_jvp``, ``remat``) are
inlined, ``lax.scan`` becomes constraints with a time axis, and primitives in ``decompositions`` are
replaced by simpler ones.

The same walk over the equations gives the graph, from shapes, and the forward pass, from arrays
(:class:`Program`): the values of a recurrence cannot be had from its graph, which has a cycle.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Primitive, Var
from jax.extend.core import primitives as jax_primitives
from jax.sharding import AxisType

from pjax_core import rules
from pjax_core.bipartite import make_bipartite
from pjax_core.fusion import fuse_mean, fuse_sum_relu
from pjax_core.graph import Copy, Graph, Node, Operand, OperandBuilder, Source
from pjax_core.jaxprs import Fingerprint, Value, at_once, aval, called, fingerprint
from pjax_core.recurrence import trace_scan

Params = Any  # a pytree of floating-point arrays


@dataclasses.dataclass(frozen=True)
class Program:
    """The forward pass: from the arrays that a function was traced with to the values of its nodes.

    Equal where the equations are, so that a compiled solver is found again.
    """

    equations: Fingerprint
    decisions: tuple[bool, ...]  # what was known to be zero, in order
    jaxpr: Jaxpr = dataclasses.field(compare=False)

    def values(self, captured: Sequence[Array], leaves: Sequence[Array]) -> list[Array]:
        """Values of the parameters, constraints and losses, in the order of the trace (``Node.origins``)."""
        tracer = JaxprTracer(iter(self.decisions))
        arguments = [tracer.parameter("", leaf) for leaf in leaves]
        tracer.run(self.jaxpr, captured, arguments, [True] * len(self.jaxpr.outvars))
        return tracer.values


class Trace(NamedTuple):
    """A graph and its forward pass with the arrays they were traced with."""

    graph: Graph
    program: Program
    captured: list[Array]  # what the function closes over
    constants: list[Array]  # values of the constant nodes, in order
    indices: list[Array]  # index arrays of copies (an embedding's tokens)


def trace(fun: Callable[[Params], Any], params: Params) -> Graph:
    """Trace ``fun(params)`` into its constraint graph.

    Args:
        fun: plain JAX that returns losses (``nn.cross_entropy``, ``nn.margin_loss``), one or a pytree.
        params: pytree of floating-point arrays.

    Raises:
        TypeError: an operation without a rule, a parameter that is not floating-point, an output that is
            not a loss.
    """
    return trace_with_arrays(fun, params).graph


def trace_with_arrays(fun: Callable[[Params], Any], params: Params) -> Trace:
    """Trace as :func:`trace` does and return the arrays that the graph's constants stand for."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise TypeError("params holds no array; pass the dictionary that model.init returned")
    for path, leaf in leaves:
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"parameter {_path_name(path)!r} has dtype {dtype}; projections need "
                "floating-point parameters. Close over integer arrays instead of passing them as params"
            )
        if dtype.itemsize < 4:
            raise TypeError(
                f"parameter {_path_name(path)!r} has dtype {dtype}, whose rounding is larger than a projection "
                "step; use float32 or float64 parameters"
            )
    closed = jax.make_jaxpr(fun)(params)
    for array in [*closed.consts, *(leaf for _, leaf in leaves)]:
        if AxisType.Explicit in jax.typeof(array).sharding.mesh.axis_types:
            raise TypeError(
                f"an array of shape {np.shape(array)} is sharded over explicit mesh axes; make the mesh with "
                "axis_types=(jax.sharding.AxisType.Auto, ...), so that the compiler shards what is in between"
            )
    tracer = JaxprTracer()
    arguments = [tracer.parameter(_path_name(path), leaf) for path, leaf in leaves]
    outputs = tracer.run(closed.jaxpr, closed.consts, arguments, [True] * len(closed.jaxpr.outvars))
    graph, constants = tracer.finish(outputs)
    program = Program(fingerprint(closed.jaxpr), tuple(tracer.decided), closed.jaxpr)
    captured = [jnp.asarray(const) for const in closed.consts]
    return Trace(graph, program, captured, constants, [jnp.asarray(i) for i in tracer.indices])


def _path_name(path: Sequence[Any]) -> str:
    return jax.tree_util.keystr(tuple(path), simple=True, separator=".")


def _frozen(params: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(params.items()))


class JaxprTracer:
    """Interpreter of jaxprs: every variable is a concrete array (constant) or a :class:`Value`.

    Args:
        decisions: of the trace that an evaluation with arrays repeats; ``None`` while tracing.
    """

    def __init__(self, decisions: Iterator[bool] | None = None) -> None:
        self.nodes: list[Node] = []
        self.inputs: list[list[Value]] = []  # by node; operands when all equations are known
        self.copies: list[Copy] = []
        self.constants: list[tuple[Any, int]] = []  # (array, node)
        self.indices: list[Any] = []
        self.values: list[Array] = []  # of nodes that are not constants
        self.decided: list[bool] = []
        self.evaluates = decisions is not None
        self._decisions = decisions
        self._callers: list[JaxprEqn] = []  # calls being inlined, the outermost first

    def source(self, eqn: JaxprEqn) -> str:
        """Return the user's line that made an equation: its own, or that of the innermost call that has one."""
        found = (source_info_util.summarize(e.source_info) for e in (eqn, *reversed(self._callers)))
        return next(filter(None, found), "an unknown line")

    def _apply(self, prim: Primitive, inputs: Sequence[Any], params: Mapping[str, Any]) -> Iterable[Any]:
        """Evaluate an equation, if there are arrays."""
        if self._decisions is None:
            return itertools.repeat(None)
        out = prim.bind(*(x.array if isinstance(x, Value) else x for x in inputs), **params)
        return out if prim.multiple_results else [out]

    def parameter(self, name: str, leaf: Any) -> Value:
        """Make the node of a parameter."""
        return self.add(Node("parameter", name, np.shape(leaf), jnp.result_type(leaf)), [], leaf)

    def add(self, node: Node, inputs: list[Value], array: Any) -> Value:
        """Append a node with what it reads, and its array where there are arrays."""
        if node.kind != "constant":
            node = dataclasses.replace(node, origins=(len(self.values),))
            self.values.append(array)
        self.nodes.append(node)
        self.inputs.append(inputs)
        return Value(len(self.nodes) - 1, None, node.shape, node.dtype, array)

    def _constant(self, array: Any) -> Value:
        """Node of a constant; the same array is one node."""
        for known, number in self.constants:
            if known is array:
                node = self.nodes[number]
                return Value(number, None, node.shape, node.dtype, array)
        name = f"constant{len(self.constants)}"
        value = self.add(Node("constant", name, np.shape(array), jnp.result_type(array)), [], array)
        assert value.node is not None
        self.constants.append((array, value.node))
        return value

    def run(self, jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Any], wanted: Sequence[bool]) -> list[Any]:
        """Interpret what the wanted outputs need; returns a value for each of them, ``None`` for the others."""
        env: dict[Any, Any] = {}

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else env.get(atom)

        env.update(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, arguments, strict=True))
        live = {atom for atom, want in zip(jaxpr.outvars, wanted, strict=True) if want and isinstance(atom, Var)}
        needed: list[tuple[JaxprEqn, list[bool]]] = []
        for eqn in reversed(jaxpr.eqns):
            outputs = [var in live for var in eqn.outvars]
            if any(outputs):
                needed.append((eqn, outputs))
                live.update(atom for atom in eqn.invars if isinstance(atom, Var))
        for eqn, outputs in reversed(needed):
            inputs = [read(atom) for atom in eqn.invars]
            env.update(zip(eqn.outvars, self._equation(eqn, inputs, outputs), strict=True))
        return [read(atom) if want else None for atom, want in zip(jaxpr.outvars, wanted, strict=True)]

    def _equation(self, eqn: JaxprEqn, inputs: list[Any], wanted: Sequence[bool]) -> list[Any]:
        prim = eqn.primitive
        body = called(eqn)
        if body:
            return self._call(eqn, body, inputs, wanted)
        if not any(isinstance(x, Value) for x in inputs):
            with at_once(*inputs):
                out = prim.bind(*inputs, **eqn.params)
            return list(out) if prim.multiple_results else [out]
        if any(isinstance(x, Value) and x.node is not None and self._is_loss(x) for x in inputs):
            raise TypeError(
                f"{prim} at {self.source(eqn)} reads the value of a loss. Return the loss of every sample as "
                "it is; the optimizer averages it (no .mean(), no sum with another term: return a tuple)"
            )
        if prim is jax_primitives.scan_p:
            return trace_scan(self, eqn, inputs, wanted)
        if prim in rules.decompositions:
            simpler = rules.decompositions[prim](**eqn.params)
            if isinstance(simpler, str):
                raise TypeError(f"{prim} at {self.source(eqn)}: {simpler}")
            if simpler is not None:
                return self.derive(eqn, simpler, *inputs)
        if self._is_copy(eqn):
            return self._copy(eqn, inputs)
        if prim is jax_primitives.max_p and any(self._is_zero(x) for x in inputs):
            operands = [x for x in inputs if isinstance(x, Value)]
            return [self._node(eqn, "constraint", rules.sum_relu_p, operands, {})]
        if prim in (jax_primitives.mul_p, jax_primitives.div_p) and not isinstance(inputs[-1], Value):
            factor = inputs[1] if prim is jax_primitives.mul_p else 1 / inputs[1]
            return [self._node(eqn, "constraint", rules.scale_p, [inputs[0], factor], {})]
        if prim is jax_primitives.mul_p and not isinstance(inputs[0], Value):
            return [self._node(eqn, "constraint", rules.scale_p, [inputs[1], inputs[0]], {})]
        if prim in rules.loss_rules:
            return [self._loss(eqn, inputs)]
        if prim in rules.projection_rules or prim in rules.bilinear_rules:
            return [self._node(eqn, "constraint", prim, inputs, eqn.params)]
        raise TypeError(self._no_rule(eqn))

    def _call(
        self, eqn: JaxprEqn, body: ClosedJaxpr, inputs: Sequence[Any], wanted: Sequence[bool] | None = None
    ) -> list[Any]:
        self._callers.append(eqn)
        outputs = self.run(body.jaxpr, body.consts, inputs, wanted or [True] * len(body.jaxpr.outvars))
        self._callers.pop()
        return outputs

    def derive(
        self, eqn: JaxprEqn, fun: Callable[..., Any], *inputs: Any, wanted: Sequence[bool] | None = None
    ) -> list[Any]:
        """Trace a function of an equation's inputs in its place."""
        shapes = [jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x)) for x in map(_shaped, inputs)]
        with source_info_util.user_context(eqn.source_info.traceback):
            closed = jax.make_jaxpr(fun)(*shapes)
        return self._call(eqn, closed, inputs, wanted)

    def _is_zero(self, x: Any) -> bool:
        """Whether a constant is known to be zero (a traced array is not known); an evaluation decides alike."""
        if isinstance(x, Value):
            return False
        if self._decisions is not None:
            return next(self._decisions)
        self.decided.append(not isinstance(x, Tracer) and not np.any(np.asarray(x)))
        return self.decided[-1]

    def _no_rule(self, eqn: JaxprEqn) -> str:
        known = sorted(str(p) for table in (rules.projection_rules, rules.bilinear_rules) for p in table)
        return (
            f"{eqn.primitive} at {self.source(eqn)} has no projection rule. Constraints with a rule: "
            f"{', '.join(known)}, max(., 0), division by a constant; copies: "
            f"{', '.join(sorted(map(str, rules.copy_rules)))}. Write the operation with these, close over it if it "
            "does not depend on the parameters, or register a rule: pjax_core.defproj(primitive, rule), see "
            "pjax_core.rules"
        )

    def _is_loss(self, value: Value) -> bool:
        return value.node is not None and self.nodes[value.node].kind == "loss"

    @staticmethod
    def _is_copy(eqn: JaxprEqn) -> bool:
        """Report copies, and conversions that change no value."""
        if eqn.primitive is jax_primitives.convert_element_type_p:
            return aval(eqn.invars[0]).dtype == aval(eqn.outvars[0]).dtype
        return eqn.primitive in rules.copy_rules

    def _copy(self, eqn: JaxprEqn, inputs: list[Any]) -> list[Any]:
        if eqn.primitive is jax_primitives.convert_element_type_p:
            return inputs
        data = rules.copy_rules[eqn.primitive]
        sources: list[Any] = []
        for position, x in enumerate(inputs):
            if isinstance(x, Value):
                if data is not None and position not in data:
                    raise TypeError(
                        f"{eqn.primitive} at {self.source(eqn)} is indexed by a value that depends on a "
                        "parameter; indices must be constants"
                    )
                sources.append(x)
            elif data is None or position in data:
                sources.append(self._constant(x))
            else:
                self.indices.append(x)
                sources.append(("index", len(self.indices) - 1))
        self.copies.append(Copy(eqn.primitive, _frozen(eqn.params), tuple(sources), len(eqn.outvars)))
        number, arrays = len(self.copies) - 1, self._apply(eqn.primitive, inputs, eqn.params)
        results = zip(map(aval, eqn.outvars), arrays, strict=False)
        return [Value(None, (number, i), a.shape, a.dtype, x) for i, (a, x) in enumerate(results)]

    def _loss(self, eqn: JaxprEqn, inputs: list[Any]) -> Value:
        if any(isinstance(x, Value) for x in inputs[1:]):
            raise TypeError(
                f"the labels of {eqn.primitive} at {self.source(eqn)} depend on a parameter; they must be constants"
            )
        return self._node(eqn, "loss", eqn.primitive, inputs, eqn.params)

    def _node(self, eqn: JaxprEqn, kind: Any, prim: Primitive, inputs: list[Any], params: dict[str, Any]) -> Value:
        (var,) = eqn.outvars
        dtype = next(x.dtype for x in inputs if isinstance(x, Value))
        with at_once(*inputs):
            values = [x if isinstance(x, Value) else self._constant(jnp.asarray(x, dtype)) for x in inputs]
        if prim in rules.elementwise:
            values = [self._repeat(x, aval(var).shape) for x in values]
        if len({x.dtype for x in values}) > 1:
            dtypes = ", ".join(str(x.dtype) for x in values)
            raise TypeError(
                f"{prim} at {self.source(eqn)} mixes dtypes ({dtypes}); convert inputs and parameters to one"
            )
        array = next(iter(self._apply(prim, values, params)))
        node = Node(kind, str(prim), aval(var).shape, aval(var).dtype, prim, _frozen(params))
        return self.add(node, values, array)

    def _repeat(self, value: Value, shape: tuple[int, ...]) -> Value:
        """Copy scalars and axes of length 1 as an element-wise primitive does."""
        if value.shape == shape:
            return value
        params = {
            "shape": shape,
            "broadcast_dimensions": tuple(range(len(value.shape))),
            "sharding": None,
        }
        array = next(iter(self._apply(jax_primitives.broadcast_in_dim_p, [value], params)))
        self.copies.append(Copy(jax_primitives.broadcast_in_dim_p, _frozen(params), (value,), 1))
        return Value(None, (len(self.copies) - 1, 0), shape, value.dtype, array)

    def _operand(self, value: Value) -> Operand:
        """Collect the copy equations between producers and this value, in order."""
        builder = OperandBuilder()
        done: dict[int, list[Source]] = {}  # by copy equation

        def visit(x: Any) -> Source:
            if not isinstance(x, Value):
                return x
            if x.node is not None:
                return builder.producer(x.node)
            assert x.copy is not None
            number, result = x.copy
            if number not in done:
                copy = self.copies[number]
                done[number] = builder.copy(copy.primitive, copy.params, [*map(visit, copy.inputs)], copy.results)
            return done[number][result]

        return builder.finish(visit(value), value.shape, value.dtype)

    def _needed(self, outputs: Sequence[Value]) -> set[int]:
        """Nodes that the outputs depend on."""
        needed: set[int] = set()
        stack = [value.node for value in outputs]
        while stack:
            number = stack.pop()
            if number is not None and number not in needed:
                needed.add(number)
                stack.extend(self.nodes[number].producers())
        return needed

    def finish(self, outputs: list[Any]) -> tuple[Graph, list[Array]]:
        """Check the outputs, fuse, prune what no loss needs, and make the graph bipartite."""
        if not outputs:
            raise TypeError("the traced function returns nothing; return nn.cross_entropy(...)")
        for value in outputs:
            if not (isinstance(value, Value) and self._is_loss(value)):
                what = "a constant" if not isinstance(value, Value) else f"shape {value.shape}"
                raise TypeError(
                    f"the traced function returns something that is not a loss ({what}). Every output "
                    "must come from a loss of nn (nn.cross_entropy), one value per sample"
                )
        self.nodes = [
            dataclasses.replace(node, operands=tuple(map(self._operand, inputs)))
            for node, inputs in zip(self.nodes, self.inputs, strict=True)
        ]
        fuse_sum_relu(self.nodes, self._needed(outputs))
        fuse_mean(self.nodes, self._needed(outputs), self.constants)
        needed = self._needed(outputs)
        # A parameter that nobody reads stays, so that the solver returns the tree that it was given.
        kept = [i for i, n in enumerate(self.nodes) if i in needed or n.kind == "parameter"]
        number_of = {old: new for new, old in enumerate(kept)}
        nodes = tuple(
            dataclasses.replace(
                self.nodes[i],
                operands=tuple(
                    dataclasses.replace(o, producers=tuple(number_of[p] for p in o.producers))
                    for o in self.nodes[i].operands
                ),
            )
            for i in kept
        )
        constants = [jnp.asarray(array) for array, node in self.constants if node in number_of]
        return make_bipartite(Graph(nodes)), constants


def _shaped(x: Any) -> Any:
    return jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, Value) else x
