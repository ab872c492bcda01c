"""The certificate of a rule: it holds for right rules, and names what is wrong with wrong ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import primitives as P

import pjax
from pjax.rules import displacement_rules
from pjax_core import rules

RIGHT = {
    "sum": (P.reduce_sum_p, [(2, 3, 2)], {"axes": (0, 2), "out_sharding": None}),
    "mean": (rules.mean_p, [(2, 3, 2)], {"axes": (-3, -1)}),
    "add of arrays": (P.add_p, [(3,), (3,)], {}),
    "sum_relu": (rules.sum_relu_p, [(), (), ()], {}),
    "max": (P.reduce_max_p, [(2, 2, 3)], {"axes": (0, 2), "out_sharding": None}),
    "maximum": (P.max_p, [(), ()], {}),
    "quantize": (rules.quantize_p, [()], {"levels": 5, "scale": 1.5}),
    "sign": (P.sign_p, [(2,)], {}),
}


@pytest.mark.parametrize(("prim", "shapes", "params"), RIGHT.values(), ids=RIGHT)
def test_the_engines_rules_are_certified(prim, shapes, params):
    report = pjax.check_projection(prim, shapes, params=params, samples=40, scales=(0.1, 10.0))
    assert report.primitive == str(prim)
    assert report.problems == 40 * 2 * 2
    assert max(report[2:]) < 1e-6
    assert jnp.ones(()).dtype == jnp.float32  # 64-bit floats were switched on inside alone


def test_what_is_published_is_not_what_is_certified():
    with pytest.raises(pjax.ProjectionError, match=r"sum_relu at target scale .* a point of the graph is nearer"):
        pjax.check_projection(rules.sum_relu_p, [(), ()], operators=pjax.PUBLISHED)


scaled_sum_p = rules.defprimitive("scaled_sum", lambda x, w, *, slope: x + slope * w)


def _linear(operands, target, weight, slope, sign=1):
    x, w = operands
    step = (target - x - sign * slope * w) / (1 + slope**2 + 1 / weight)
    return (x + step, w + sign * slope * step), target - step / weight


def _right(operands, target, weight, operators, *, slope):
    return _linear(operands, target, weight, slope)


def _wrong_sign(operands, target, weight, operators, *, slope):
    return _linear(operands, target, weight, slope, sign=-1)


def _wrong_divisor(operands, target, weight, operators, *, slope):
    """On the graph, a little too far: n instead of n + 1 / weight."""
    x, w = operands
    step = (target - x - slope * w) / (1 + slope**2)
    return (x + step, w + slope * step), target


def _no_slope_in_divisor(operands, target, weight, operators, *, slope):
    x, w = operands
    step = (target - x - slope * w) / (2 + 1 / weight)
    x, w = x + step, w + slope * step
    return (x, w), x + slope * w


def _wrong_output(operands, target, weight, operators, *, slope):
    return _right(operands, target, weight, operators, slope=slope)[0], target


def _half_the_way(operands, target, weight, operators, *, slope):
    us, _ = _right(operands, target, weight, operators, slope=slope)
    x, w = ((u + x) / 2 for u, x in zip(us, operands, strict=True))
    return (x, w), x + slope * w


def _not_negative(operands, target, weight, operators, *, slope):
    return _right(operands, jnp.maximum(target, 0), weight, operators, slope=slope)


def _no_weight(operands, target, weight, operators, *, slope):
    return _right(operands, target, 1, operators, slope=slope)


def _nothing(operands, target, weight, operators, *, slope):
    x, w = operands
    return operands, x + slope * w


def _slightly_off(operands, target, weight, operators, *, slope):
    return _right(operands, target * (1 + 1e-4), weight, operators, slope=slope)


def _only_far(operands, target, weight, operators, *, slope):
    """Right up to targets of 50."""
    return _right(operands, jnp.clip(target, -50, 50), weight, operators, slope=slope)


def _of_the_batch(operands, target, weight, operators, *, slope):
    """Right for one sample; a batch moves by its mean."""
    return _right(operands, jnp.broadcast_to(jnp.mean(target), target.shape), weight, operators, slope=slope)


def _wrong_at_ties(operands, target, weight, operators, *, slope):
    (x, w), _ = _right(operands, target, weight, operators, slope=slope)
    x = jnp.where(operands[0] == operands[1], operands[0], x)
    return (x, w), x + slope * w


def _wrong_at_zero(operands, target, weight, operators, *, slope):
    (x, w), _ = _right(operands, target, weight, operators, slope=slope)
    x = jnp.where(target == 0, operands[0], x)
    return (x, w), x + slope * w


def _moves_on(operands, target, weight, operators, *, slope):
    """On the graph, and no fixed point."""
    (x, w), output = _right(operands, target, weight, operators, slope=slope)
    return (x + 1e-3, w), output + 1e-3


def _not_a_number(operands, target, weight, operators, *, slope):
    return _right(operands, jnp.where(target < -1, jnp.nan, target), weight, operators, slope=slope)


def _doubled_operand(operands, target, weight, operators, *, slope):
    (x, _), output = _right(operands, target, weight, operators, slope=slope)
    return (x,), output


def _half_precision(operands, target, weight, operators, *, slope):
    us, output = _right(operands, target, weight, operators, slope=slope)
    return us, output.astype(jnp.float16)


def _another_shape(operands, target, weight, operators, *, slope):
    us, output = _right(operands, target, weight, operators, slope=slope)
    return us, output[None]


WRONG = {
    _wrong_sign: "off_graph|moves",
    _wrong_divisor: "nearer",
    _no_slope_in_divisor: "nearer",
    _wrong_output: "output is not the primitive's value",
    _half_the_way: "nearer",
    _not_negative: "moves",
    _no_weight: "weight 7.5: a point of the graph is nearer",
    _nothing: "nearer",
    _slightly_off: "moves",
    _only_far: "scale 100",
    _of_the_batch: "the rule of a batch is not",
    _wrong_at_ties: "nearer",
    _wrong_at_zero: "nearer",
    _moves_on: "moves",
    _not_a_number: "inf",
    _doubled_operand: r"returns \['float64\[\]', 'float64\[\]'\] for",
    _half_precision: "returns .*float16",
    _another_shape: r"returns .*float64\[1\]",
}


@pytest.fixture
def check():
    """Certify a rule of this file's primitive, registered for the while."""

    def run(rule, **options):
        rules.projection_rules[scaled_sum_p] = rule
        return pjax.check_projection(scaled_sum_p, [(), ()], params={"slope": 0.6}, **options)

    yield run
    rules.projection_rules.pop(scaled_sum_p, None)


@pytest.mark.parametrize("rule", WRONG, ids=lambda rule: rule.__name__)
def test_wrong_rules_are_caught_and_explained(check, rule):
    with pytest.raises(pjax.ProjectionError, match=f"scaled_sum.*({WRONG[rule]})"):
        check(rule)


def test_the_same_rule_without_the_mistake_is_certified(check):
    assert max(check(_right)[2:]) < 1e-6


def test_an_inaccurate_rule_passes_at_the_tolerance_that_it_states(check):
    assert 1e-5 < check(_slightly_off, tolerance=1e-2).idempotence < 1e-2


def test_a_jump_excuses_neither_a_far_point_nor_a_wrong_output():
    """A sign that never leaves its half-line: on the graph, idempotent, and not the nearest."""
    sign_p = rules.defprimitive("own_sign", jnp.sign)
    rules.projection_rules[sign_p] = lambda xs, y, n, operators: (xs, jnp.sign(xs[0]))
    try:
        with pytest.raises(pjax.ProjectionError, match="nearer"):
            pjax.check_projection(sign_p, [()])
        rules.projection_rules[sign_p] = lambda xs, y, n, operators: (xs, jnp.where(y > 0, 1.0, -1.0))
        with pytest.raises(pjax.ProjectionError, match="off_graph"):
            pjax.check_projection(sign_p, [()])
    finally:
        del rules.projection_rules[sign_p]


@pytest.mark.parametrize("prim", [P.sin_p, P.dot_general_p, rules.margin_p], ids=str)
def test_a_primitive_without_a_rule_of_this_kind_is_refused(prim):
    with pytest.raises(TypeError, match="has no projection to check"):
        pjax.check_projection(prim, [()])


def test_the_message_shows_the_problem(check):
    with pytest.raises(pjax.ProjectionError) as error:
        check(_half_the_way, scales=(3.0,), key=jax.random.key(5))
    message = str(error.value)
    assert message.startswith("the rule of scaled_sum at target scale 3 and weight 1: a point of the graph is nearer")
    assert all(word in message for word in ("distance of the answer", "Operands [", "target ", "output "))
    assert np.isfinite(float(message.split("distance of the answer ")[1].split(",")[0]))


def _displaced_sum(operands, distance, weight, operators, *, slope):
    step = distance / (1 + slope**2 + 1 / weight)
    return (step, slope * step), step / weight


@pytest.mark.parametrize("wrong", [None, "sign", "left"])
def test_a_rule_of_displacements_is_certified_too(wrong, check, monkeypatch):
    def displace(operands, distance, weight, operators, *, slope):
        (dx, dw), left = _displaced_sum(operands, distance, weight, operators, slope=slope)
        return (dx, -dw if wrong == "sign" else dw), distance - left if wrong == "left" else left

    monkeypatch.setitem(displacement_rules, scaled_sum_p, displace)
    if wrong is None:
        assert check(_right).displacement < 1e-6
        return
    with pytest.raises(pjax.ProjectionError, match="the rule of displacements is not the difference of projections"):
        check(_right)


def test_a_sum_of_products_takes_no_displacements():
    prim = rules.defprimitive("product", lambda x, w: x * w)  # is refused before it is registered
    with pytest.raises(ValueError, match="has its displacements already"):
        pjax.defelementwise(prim, rules.bilinear_rules[P.mul_p], _displaced_sum)
