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
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Primitive
from jax.extend.core import primitives as jax_primitives
from jax.interpreters.partial_eval import dce_jaxpr
from jax.sharding import AxisType

from pjax_core import rules
from pjax_core.bipartite import make_bipartite
from pjax_core.fusion import fuse, needed
from pjax_core.graph import Copy, Graph, Node, Operand, Source
from pjax_core.jaxprs import Fingerprint, Value, array_of, at_once, aval, bind, called, fingerprint
from pjax_core.recurrence import trace_scan

Params = Any  # a pytree of floating-point arrays
LossFn = Callable[[Params], Any]  # of every sample


@dataclasses.dataclass(frozen=True)
class Program:
    """The forward pass: from the arrays that a function was traced with to the values of its nodes.

    Equal where the equations are, so that a compiled solver is found again.
    """

    equations: Fingerprint
    jaxpr: Jaxpr = dataclasses.field(compare=False)

    def values(self, captured: Sequence[Array], leaves: Sequence[Array]) -> list[Array]:
        """Values of the parameters, constraints and losses, in the order of the trace (``Node.origins``)."""
        tracer = JaxprTracer()
        tracer.trace(ClosedJaxpr(self.jaxpr, captured), [("", leaf) for leaf in leaves])
        return tracer.values


class Trace(NamedTuple):
    """A graph and its forward pass with the arrays they were traced with."""

    graph: Graph
    program: Program
    captured: list[Array]  # what the function closes over
    constants: list[Array]  # values of the constant nodes, in order
    indices: list[Array]  # index arrays of copies (an embedding's tokens)


def trace_with_arrays(fun: Callable[[Params], Any], params: Params) -> Trace:
    """Trace as ``pjax.trace`` does, and return the arrays that the graph's constants stand for."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    leaves = [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in leaves]
    if not leaves:
        raise TypeError("params holds no array; pass the dictionary that model.init returned")
    for name, leaf in leaves:
        try:
            dtype = jnp.result_type(leaf)
        except TypeError as error:
            raise TypeError(f"parameter {name!r} is no array but {leaf!r}") from error
        if not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize < 4:
            raise TypeError(
                f"parameter {name!r} has dtype {dtype}; use float32 or float64 parameters (half precision rounds by "
                "more than a projection step). Close over integer arrays instead of passing them as params"
            )
    closed = jax.make_jaxpr(fun)(params)
    for array in [*closed.consts, *(leaf for _, leaf in leaves)]:
        if AxisType.Explicit in jax.typeof(array).sharding.mesh.axis_types:
            raise TypeError(
                f"an array of shape {np.shape(array)} is sharded over explicit mesh axes; make the mesh with "
                "axis_types=(jax.sharding.AxisType.Auto, ...), so that the compiler shards what is in between"
            )
    tracer = JaxprTracer()
    shapes = [(name, aval(var)) for (name, _), var in zip(leaves, closed.jaxpr.invars, strict=True)]
    outputs = tracer.trace(closed, shapes)
    graph, constants = tracer.finish(outputs)
    program = Program(fingerprint(closed.jaxpr), closed.jaxpr)
    captured, indices = ([jnp.asarray(x) for x in arrays] for arrays in (closed.consts, tracer.indices))
    return Trace(graph, program, captured, constants, indices)


class JaxprTracer:
    """Interpreter of jaxprs: every variable is a concrete array (constant) or a :class:`Value`."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.inputs: list[Sequence[Value]] = []  # by node; operands when all equations are known
        self.copies: list[Copy] = []
        self.constants: dict[int, Any] = {}  # by node
        self.indices: list[Any] = []
        self.values: list[Any] = []  # of nodes that are not constants
        self._callers: list[JaxprEqn] = []  # calls being inlined, the outermost first

    def trace(self, closed: ClosedJaxpr, parameters: Sequence[tuple[str, Any]]) -> list[Any]:
        """Interpret a function of parameters, each given by its name and its array or shape."""
        arguments = [self.add(Node("parameter", name, x.shape, x.dtype), [], x) for name, x in parameters]
        return self.run(closed, arguments)

    def error(self, eqn: JaxprEqn, what: str) -> TypeError:
        """Say what is wrong in the user's line that made an equation, or the innermost call around it that has one."""
        lines = (source_info_util.summarize(e.source_info) for e in (eqn, *reversed(self._callers)))
        return TypeError(f"{eqn.primitive} at {next(filter(None, lines), 'an unknown line')} {what}")

    def add(self, node: Node, inputs: Sequence[Value], array: Any) -> Value:
        """Append a node with what it reads and its value."""
        if node.kind != "constant":
            node = dataclasses.replace(node, origins=(len(self.values),))
            self.values.append(array)
        self.nodes.append(node)
        self.inputs.append(inputs)
        return Value(("producer", len(self.nodes) - 1), array)

    def copy(self, prim: Primitive, params: Mapping[str, Any], inputs: Iterable[Source]) -> Source:
        """Append a copy."""
        self.copies.append(Copy(prim, tuple(sorted(params.items())), tuple(inputs)))
        return "copy", len(self.copies) - 1

    def value(self, x: Any) -> Value:
        """Make the node of a constant, one for the same array; anything else is a value already."""
        if isinstance(x, Value):
            return x
        for number, known in self.constants.items():
            if known is x:
                return Value(("producer", number), x)
        name = f"constant{len(self.constants)}"
        self.constants[len(self.nodes)] = x
        return self.add(Node("constant", name, np.shape(x), jnp.result_type(x)), [], x)

    def run(self, closed: ClosedJaxpr, arguments: Sequence[Any]) -> list[Any]:
        """Interpret what the outputs need."""
        # Without effects: what is only printed has no rule, and needs none.
        pure = closed.jaxpr.replace(eqns=[eqn.replace(effects=set()) for eqn in closed.jaxpr.eqns])
        jaxpr, _ = dce_jaxpr(pure, [True] * len(pure.outvars), instantiate=True)
        env: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
        env.update(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else env[atom]

        for eqn in jaxpr.eqns:
            env.update(zip(eqn.outvars, self._equation(eqn, [*map(read, eqn.invars)]), strict=True))
        return [*map(read, jaxpr.outvars)]

    def _equation(self, eqn: JaxprEqn, inputs: list[Any]) -> list[Any]:
        prim, params = eqn.primitive, eqn.params
        body = called(eqn)
        if body:
            return self._call(eqn, body, *inputs)
        known = [not isinstance(x, Value) for x in inputs]
        if all(known):
            return bind(prim, inputs, params, ())
        if any(map(self._is_loss, inputs)):
            raise self.error(
                eqn,
                "reads the value of a loss. Return the loss of every sample as it is; "
                "the optimizer averages it (no .mean(), no sum with another term: return a tuple)",
            )
        if prim is jax_primitives.scan_p:
            return trace_scan(self, eqn, inputs)
        simpler = rules.decompositions[prim](*map(aval, eqn.invars), **params) if prim in rules.decompositions else None
        if isinstance(simpler, str):
            raise self.error(eqn, f"cannot be projected: {simpler}")
        if simpler is not None:
            return self.derive(eqn, simpler, *inputs)
        if prim is jax_primitives.convert_element_type_p and aval(eqn.invars[0]).dtype == aval(eqn.outvars[0]).dtype:
            return inputs
        if prim in rules.copy_rules:
            return [self._copy(eqn, inputs)]
        if prim is jax_primitives.max_p and any(map(_is_zero, inputs)):
            (kept,) = (x for x in inputs if isinstance(x, Value))
            prim, inputs, params = rules.sum_relu_p, [self._broadcast(eqn, kept, aval(eqn.outvars[0]).shape)], {}
        elif prim is jax_primitives.div_p and known[1]:
            if not isinstance(inputs[1], Tracer) and not np.all(np.asarray(inputs[1])):
                raise self.error(eqn, "divides by a constant that holds a zero")
            prim, inputs, params = rules.scale_p, [inputs[0], 1 / inputs[1]], {}
        elif prim is jax_primitives.mul_p and any(known):
            prim, inputs, params = rules.scale_p, inputs if known[1] else inputs[::-1], {}
        elif prim in rules.loss_rules and not all(known[1:]):
            raise self.error(eqn, f"has no rule: the labels of {prim} depend on a parameter; they must be constants")
        if any(prim in table for table in (rules.projection_rules, rules.bilinear_rules, rules.loss_rules)):
            return [self._constraint(eqn, prim, inputs, params)]
        constraints = sorted(map(str, [*rules.projection_rules, *rules.bilinear_rules]))
        raise self.error(
            eqn,
            f"has no projection rule. Constraints with a rule: {', '.join(constraints)}, max(., 0), "
            f"division by a constant; copies: {', '.join(sorted(map(str, rules.copy_rules)))}. Write the operation "
            "with these, close over it if it does not depend on the parameters, or register a rule: "
            "pjax.defproj(primitive, rule), see pjax_core.rules",
        )

    def _call(self, eqn: JaxprEqn, body: ClosedJaxpr, *inputs: Any) -> list[Any]:
        self._callers.append(eqn)
        outputs = self.run(body, inputs)
        self._callers.pop()
        return outputs

    def derive(self, eqn: JaxprEqn, fun: Callable[..., Any], *inputs: Any) -> list[Any]:
        """Trace a function of an equation's inputs in its place."""
        shapes = [jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x)) for x in map(array_of, inputs)]
        with source_info_util.user_context(eqn.source_info.traceback):
            closed = jax.make_jaxpr(fun)(*shapes)
        return self._call(eqn, closed, *inputs)

    def _is_loss(self, x: Any) -> bool:
        return isinstance(x, Value) and x.source[0] == "producer" and self.nodes[x.source[1]].kind == "loss"

    def _copy(self, eqn: JaxprEqn, inputs: Sequence[Any]) -> Value:
        """Trace a copy; what it moves may depend on parameters, where it moves that to may not."""
        prim, data, values = eqn.primitive, rules.copy_rules[eqn.primitive], list[Value]()
        for position, x in enumerate(inputs):
            if data is None or position in data:
                values.append(self.value(x))
            elif isinstance(x, Value) and x.source[0] == "index":  # of a graph that is traced again
                values.append(x)
            elif isinstance(x, Value):
                raise self.error(eqn, "is indexed by a value that depends on a parameter; indices must be constants")
            else:
                values.append(Value(("index", len(self.indices)), x))
                self.indices.append(x)
        result = self.copy(prim, eqn.params, [x.source for x in values])
        return Value(result, *bind(prim, [x.array for x in values], eqn.params, [*map(aval, eqn.outvars)]))

    def _constraint(self, eqn: JaxprEqn, prim: Primitive, inputs: Sequence[Any], params: Mapping[str, Any]) -> Value:
        """Trace a constraint or loss. Constants take the dtype of what they meet; small inputs are copied to fit."""
        out = aval(eqn.outvars[0])
        dtype = next(x.array.dtype for x in inputs if isinstance(x, Value))
        with at_once(*inputs):
            values = [self.value(x if isinstance(x, Value) else jnp.asarray(x, dtype)) for x in inputs]
        if prim in rules.elementwise:
            values = [self._broadcast(eqn, x, out.shape) for x in values]
        arrays = [x.array for x in values]
        if any(a.dtype != dtype for a in arrays):
            dtypes = ", ".join(str(a.dtype) for a in arrays)
            raise self.error(eqn, f"mixes dtypes ({dtypes}); convert inputs and parameters to one")
        kind = "loss" if prim in rules.loss_rules else "constraint"
        node = Node(kind, str(prim), out.shape, out.dtype, prim, tuple(sorted(params.items())))
        return self.add(node, values, *bind(prim, arrays, params, [out]))

    def _broadcast(self, eqn: JaxprEqn, x: Value, shape: tuple[int, ...]) -> Value:
        """Copy scalars and axes of length 1 as an element-wise primitive does."""
        if x.array.shape == shape:
            return x
        return self.derive(eqn, lambda a: lax.broadcast_in_dim(a, shape, tuple(range(a.ndim))), x)[0]

    def finish(self, outputs: Sequence[Any]) -> tuple[Graph, list[Array]]:
        """Check the outputs, fuse, prune what no loss needs, and make the graph bipartite."""
        if not outputs:
            raise TypeError("the traced function returns nothing; return nn.cross_entropy(...)")
        for x in outputs:
            if not self._is_loss(x):
                what = f"shape {x.array.shape}" if isinstance(x, Value) else "a constant"
                raise TypeError(
                    f"the traced function returns something that is not a loss ({what}). Every output "
                    "must come from a loss of nn (nn.cross_entropy), one value per sample"
                )
            if not x.array.size:
                raise TypeError(f"a loss of shape {x.array.shape} has no sample; pass at least one")
        nodes = [
            dataclasses.replace(node, operands=tuple(Operand.of(*x, self.copies) for x in inputs))
            for node, inputs in zip(self.nodes, self.inputs, strict=True)
        ]
        losses = [x.source[1] for x in outputs]
        fuse(nodes, losses, self.constants)
        # A parameter that nobody reads stays, so that the solver returns the tree that it was given.
        used = needed(nodes, [*losses, *(n for n, node in enumerate(nodes) if node.kind == "parameter")])
        number_of = {old: new for new, old in enumerate(sorted(used))}
        graph = Graph(tuple(nodes[n].reading(number_of) for n in number_of))
        constants = [jnp.asarray(array) for n, array in self.constants.items() if n in used]
        return make_bipartite(graph), constants


def _is_zero(x: Any) -> bool:
    """Whether a constant is known to be zero; an evaluation that does not know has the same values."""
    return not isinstance(x, Value | Tracer) and not np.any(np.asarray(x))
