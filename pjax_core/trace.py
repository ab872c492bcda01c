"""From plain JAX to a constraint graph: the only file that touches jaxprs.

``jax.make_jaxpr`` gives the equations; each is one of four kinds. A *constant* depends on no parameter
and is evaluated on the spot. A *copy* has a rule in ``copy_rules``. A *constraint* or *loss* has a
projection. Anything else is an error that says what to do. Calls (``jit``, ``custom_jvp``, ``remat``) are
inlined.
"""

import collections
import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import ShapedArray, Tracer
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Primitive
from jax.extend.core import primitives as jax_primitives

from pjax_core import rules
from pjax_core.graph import Copy, Graph, Node, Operand, make_bipartite

Params = Any  # a pytree of floating-point arrays


class Trace(NamedTuple):
    """A graph with the arrays it was traced with."""

    graph: Graph
    constants: list[Array]  # values of the constant nodes, in order
    indices: list[Array]  # index arrays of copies (an embedding's tokens)


class _Value(NamedTuple):
    """A traced value that depends on a parameter: a node's value or a result of a copy equation."""

    node: int | None
    copy: tuple[int, int] | None  # (equation, result)
    shape: tuple[int, ...]
    dtype: np.dtype


class _CopyEqn(NamedTuple):
    primitive: Primitive
    params: tuple[tuple[str, Any], ...]
    inputs: tuple[Any, ...]  # _Value, or ("index", position)
    results: int


# Calls whose body is inlined, with the parameter that holds it.
_CALLS: dict[Primitive, str] = {
    jax_primitives.jit_p: "jaxpr",
    jax_primitives.closed_call_p: "call_jaxpr",
    jax_primitives.custom_jvp_call_p: "call_jaxpr",
    jax_primitives.custom_vjp_call_p: "call_jaxpr",
    jax_primitives.remat_p: "jaxpr",
}


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
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"parameter {_path_name(path)!r} has dtype {jnp.result_type(leaf)}; projections need "
                "floating-point parameters. Close over integer arrays instead of passing them as params"
            )
    closed = jax.make_jaxpr(fun)(params)
    tracer = _Tracer()
    arguments = [tracer.parameter(_path_name(path), leaf) for path, leaf in leaves]
    outputs = tracer.run(closed.jaxpr, closed.consts, arguments)
    return tracer.finish(outputs)


def _path_name(path: Sequence[Any]) -> str:
    return jax.tree_util.keystr(tuple(path), simple=True, separator=".")


def _frozen(params: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(params.items()))


def _aval(atom: Any) -> ShapedArray:
    """Shape and dtype of a jaxpr's variable."""
    return atom.aval


class _Tracer:
    """Interpreter of jaxprs: every variable is a concrete array (constant) or a :class:`_Value`."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.copies: list[_CopyEqn] = []
        self.constants: list[tuple[Any, int]] = []  # (array, node)
        self.indices: list[Any] = []
        self._callers: list[JaxprEqn] = []  # calls being inlined, the outermost first

    def _source(self, eqn: JaxprEqn) -> str:
        """Return the user's line that made an equation: its own, or that of the innermost call that has one."""
        found = (source_info_util.summarize(e.source_info) for e in (eqn, *reversed(self._callers)))
        return next(filter(None, found), "an unknown line")

    def parameter(self, name: str, leaf: Any) -> _Value:
        return self._add(Node("parameter", name, np.shape(leaf), jnp.result_type(leaf)))

    def _add(self, node: Node) -> _Value:
        self.nodes.append(node)
        return _Value(len(self.nodes) - 1, None, node.shape, node.dtype)

    def _constant(self, array: Any) -> _Value:
        """Node of a constant; the same array is one node."""
        for known, number in self.constants:
            if known is array:
                node = self.nodes[number]
                return _Value(number, None, node.shape, node.dtype)
        name = f"constant{len(self.constants)}"
        value = self._add(Node("constant", name, np.shape(array), jnp.result_type(array)))
        assert value.node is not None
        self.constants.append((array, value.node))
        return value

    def run(self, jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        """Interpret a jaxpr; returns a value for every output."""
        env: dict[Any, Any] = {}

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else env[atom]

        env.update(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, arguments, strict=True))
        for eqn in jaxpr.eqns:
            inputs = [read(atom) for atom in eqn.invars]
            env.update(zip(eqn.outvars, self._equation(eqn, inputs), strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, eqn: JaxprEqn, inputs: list[Any]) -> list[Any]:
        prim = eqn.primitive
        if prim in _CALLS:
            body = eqn.params[_CALLS[prim]]
            closed = body if isinstance(body, ClosedJaxpr) else ClosedJaxpr(body, ())
            self._callers.append(eqn)
            outputs = self.run(closed.jaxpr, closed.consts, inputs)
            self._callers.pop()
            return outputs
        if not any(isinstance(x, _Value) for x in inputs):
            # What is known now stays known inside an outer jit, so that the graph does not depend on it.
            known = not any(isinstance(x, Tracer) for x in inputs)
            with jax.ensure_compile_time_eval() if known else contextlib.nullcontext():
                out = prim.bind(*inputs, **eqn.params)
            return list(out) if prim.multiple_results else [out]
        if any(isinstance(x, _Value) and x.node is not None and self._is_loss(x) for x in inputs):
            raise TypeError(
                f"{prim} at {self._source(eqn)} reads the value of a loss. Return the loss of every sample as "
                "it is; the optimizer averages it (no .mean(), no sum with another term: return a tuple)"
            )
        if self._is_copy(eqn):
            return self._copy(eqn, inputs)
        if prim is jax_primitives.max_p and any(_is_zero(x) for x in inputs):
            operands = [x for x in inputs if isinstance(x, _Value)]
            return [self._node(eqn, "constraint", rules.sum_relu_p, operands, {})]
        if prim in (jax_primitives.mul_p, jax_primitives.div_p) and not isinstance(inputs[-1], _Value):
            factor = inputs[1] if prim is jax_primitives.mul_p else 1 / inputs[1]
            return [self._node(eqn, "constraint", rules.scale_p, [inputs[0], factor], {})]
        if prim is jax_primitives.mul_p and not isinstance(inputs[0], _Value):
            return [self._node(eqn, "constraint", rules.scale_p, [inputs[1], inputs[0]], {})]
        if prim in rules.loss_rules:
            return [self._loss(eqn, inputs)]
        if prim in rules.projection_rules or prim in rules.bilinear_rules:
            return [self._node(eqn, "constraint", prim, inputs, eqn.params)]
        raise TypeError(self._no_rule(eqn))

    def _no_rule(self, eqn: JaxprEqn) -> str:
        known = sorted(str(p) for table in (rules.projection_rules, rules.bilinear_rules) for p in table)
        return (
            f"{eqn.primitive} at {self._source(eqn)} has no projection rule. Constraints with a rule: "
            f"{', '.join(known)}, max(., 0), division by a constant; copies: "
            f"{', '.join(sorted(map(str, rules.copy_rules)))}. Write the operation with these, close over it if it "
            "does not depend on the parameters, or register a rule: pjax_core.defproj(primitive, rule), see "
            "pjax_core.rules"
        )

    def _is_loss(self, value: _Value) -> bool:
        return value.node is not None and self.nodes[value.node].kind == "loss"

    @staticmethod
    def _is_copy(eqn: JaxprEqn) -> bool:
        """Report copies, and conversions that change no value."""
        if eqn.primitive is jax_primitives.convert_element_type_p:
            return _aval(eqn.invars[0]).dtype == _aval(eqn.outvars[0]).dtype
        return eqn.primitive in rules.copy_rules

    def _copy(self, eqn: JaxprEqn, inputs: list[Any]) -> list[Any]:
        if eqn.primitive is jax_primitives.convert_element_type_p:
            return inputs
        data = rules.copy_rules[eqn.primitive]
        sources: list[Any] = []
        for position, x in enumerate(inputs):
            if isinstance(x, _Value):
                if data is not None and position not in data:
                    raise TypeError(
                        f"{eqn.primitive} at {self._source(eqn)} is indexed by a value that depends on a "
                        "parameter; indices must be constants"
                    )
                sources.append(x)
            elif data is None or position in data:
                sources.append(self._constant(x))
            else:
                self.indices.append(x)
                sources.append(("index", len(self.indices) - 1))
        self.copies.append(_CopyEqn(eqn.primitive, _frozen(eqn.params), tuple(sources), len(eqn.outvars)))
        number = len(self.copies) - 1
        return [_Value(None, (number, i), _aval(var).shape, _aval(var).dtype) for i, var in enumerate(eqn.outvars)]

    def _loss(self, eqn: JaxprEqn, inputs: list[Any]) -> _Value:
        if any(isinstance(x, _Value) for x in inputs[1:]):
            raise TypeError(
                f"the labels of {eqn.primitive} at {self._source(eqn)} depend on a parameter; they must be constants"
            )
        return self._node(eqn, "loss", eqn.primitive, inputs, eqn.params)

    def _node(self, eqn: JaxprEqn, kind: Any, prim: Primitive, inputs: list[Any], params: dict[str, Any]) -> _Value:
        (var,) = eqn.outvars
        dtype = next(x.dtype for x in inputs if isinstance(x, _Value))
        known = not any(isinstance(x, Tracer) for x in inputs)  # and stays so inside an outer jit
        with jax.ensure_compile_time_eval() if known else contextlib.nullcontext():
            values = [x if isinstance(x, _Value) else self._constant(jnp.asarray(x, dtype)) for x in inputs]
        if prim in rules.elementwise:
            values = [self._repeat(x, _aval(var).shape) for x in values]
        if len({x.dtype for x in values}) > 1:
            dtypes = ", ".join(str(x.dtype) for x in values)
            raise TypeError(
                f"{prim} at {self._source(eqn)} mixes dtypes ({dtypes}); convert inputs and parameters to one"
            )
        operands = tuple(self._operand(x) for x in values)
        name = str(prim)
        return self._add(Node(kind, name, _aval(var).shape, _aval(var).dtype, prim, _frozen(params), operands))

    def _repeat(self, value: _Value, shape: tuple[int, ...]) -> _Value:
        """Copy scalars and axes of length 1 as an element-wise primitive does."""
        if value.shape == shape:
            return value
        params = {
            "shape": shape,
            "broadcast_dimensions": tuple(range(len(value.shape))),
            "sharding": None,
        }
        self.copies.append(_CopyEqn(jax_primitives.broadcast_in_dim_p, _frozen(params), (value,), 1))
        return _Value(None, (len(self.copies) - 1, 0), shape, value.dtype)

    def _operand(self, value: _Value) -> Operand:
        """Collect the copy equations between producers and this value, in order."""
        producers: list[int] = []
        program: list[Copy] = []
        first_result: dict[int, int] = {}  # copy equation -> number of its first result
        count = 0

        def visit(x: Any) -> tuple[str, int]:
            nonlocal count
            if not isinstance(x, _Value):
                return x
            if x.node is not None:
                if x.node not in producers:
                    producers.append(x.node)
                return "producer", producers.index(x.node)
            assert x.copy is not None
            number, result = x.copy
            if number not in first_result:
                eqn = self.copies[number]
                inputs = tuple(visit(i) for i in eqn.inputs)
                program.append(Copy(eqn.primitive, eqn.params, inputs))
                first_result[number] = count
                count += eqn.results
            return "copy", first_result[number] + result

        kind, last = visit(value)
        if kind == "copy" and last != count - 1:
            # The operand is an earlier result of an equation with several: end on it.
            program.append(Copy(jax_primitives.copy_p, (), (("copy", last),)))
        return Operand(tuple(producers), tuple(program), value.shape, value.dtype)

    def finish(self, outputs: list[Any]) -> Trace:
        """Check the outputs, fuse, prune what no loss needs, and make the graph bipartite."""
        if not outputs:
            raise TypeError("the traced function returns nothing; return nn.cross_entropy(...)")
        for value in outputs:
            if not (isinstance(value, _Value) and self._is_loss(value)):
                what = "a constant" if not isinstance(value, _Value) else f"shape {value.shape}"
                raise TypeError(
                    f"the traced function returns something that is not a loss ({what}). Every output "
                    "must come from a loss of nn (nn.cross_entropy), one value per sample"
                )
        _fuse_sum_relu(self.nodes)
        _fuse_mean(self.nodes, self.constants)
        needed: set[int] = set()
        stack = [value.node for value in outputs]
        while stack:
            number = stack.pop()
            if number not in needed:
                needed.add(number)
                stack.extend(self.nodes[number].producers())
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
        graph = make_bipartite(Graph(nodes))
        return Trace(graph, constants, [jnp.asarray(i) for i in self.indices])


def _is_zero(x: Any) -> bool:
    """Whether a constant is known to be zero while tracing (a traced array is not known)."""
    if isinstance(x, (_Value, Tracer)):
        return False
    return not np.any(np.asarray(x))


def _fuse_sum_relu(nodes: list[Node]) -> None:
    """Merge additions into the ReLU that alone reads them (Theorem 6), in place."""
    readers = [0] * len(nodes)
    for node in nodes:
        for operand in node.operands:
            for producer in operand.producers:
                readers[producer] += 1

    def terms(operand: Operand) -> tuple[Operand, ...]:
        if operand.copies:
            return (operand,)
        node = nodes[operand.producers[0]]
        if node.primitive is not jax_primitives.add_p or readers[operand.producers[0]] != 1:
            return (operand,)
        return tuple(term for inner in node.operands for term in terms(inner))

    for i, node in enumerate(nodes):
        if node.primitive is rules.sum_relu_p:
            operands = tuple(term for operand in node.operands for term in terms(operand))
            nodes[i] = dataclasses.replace(node, operands=operands)


def _fuse_mean(nodes: list[Node], constants: Sequence[tuple[Any, int]]) -> None:
    """Merge a sum into the multiplication by 1 / size that alone reads it, uncopied, in place."""
    readers = collections.Counter(p for node in nodes for operand in node.operands for p in operand.producers)
    known = {number: array for array, number in constants if not isinstance(array, Tracer)}
    for i, node in enumerate(nodes):
        if node.primitive is not rules.scale_p:
            continue
        (total, *_), (factor, *_) = (operand.producers for operand in node.operands)
        alone = not node.operands[0].copies and readers[total] == 1
        if alone and nodes[total].primitive is jax_primitives.reduce_sum_p and factor in known:
            (summed,), params = nodes[total].operands, dict(nodes[total].params)
            size = math.prod(summed.shape[axis] for axis in params["axes"])
            if np.allclose(size * np.asarray(known[factor]), 1, rtol=1e-6, atol=0):
                axes = tuple(axis - len(summed.shape) for axis in params["axes"])
                nodes[i] = dataclasses.replace(
                    node, name="mean", primitive=rules.mean_p, params=(("axes", axes),), operands=(summed,)
                )
