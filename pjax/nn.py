"""Modules and losses (Appendix B.4). A module is plain JAX: parameters are arguments, nothing is traced."""

import copy
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from pjax_core import rules
from pjax_core.convolution import conv_general_dilated

_CONTAINERS = (list, tuple, dict)  # where modules are found


class Module:
    """A container of parameters and of other modules, held as attributes, or in lists, tuples and dictionaries there.

    Subclasses assign modules in ``__init__`` and compute in ``__call__``. A module without submodules
    that owns parameters overrides :meth:`parameters`.
    """

    def parameters(self, key: Array) -> dict[str, Array]:
        """Initial values of this module's own parameters by attribute name."""
        del key
        return {}

    __call__: Callable[..., Any]

    def _held(self) -> Iterator[tuple[str, Any]]:
        """Yield this module and all that it holds by dotted name; what is shared under its first one alone."""
        seen = set[int]()

        def visit(name: str, value: Any) -> Iterator[tuple[str, Any]]:
            inner: Mapping[Any, Any] = {}
            if isinstance(value, (Module, *_CONTAINERS)):
                if id(value) in seen:
                    return
                seen.add(id(value))
                mapping = vars(value) if isinstance(value, Module) else value
                inner = mapping if isinstance(mapping, dict) else dict(enumerate(mapping))
            yield name, value
            for key, item in inner.items():
                yield from visit(f"{name}.{key}" if name else str(key), item)

        return visit("", self)

    def _modules(self) -> dict[str, "Module"]:
        """Every module once, by dotted name."""
        found: dict[str, Module] = {}
        for name, value in self._held():
            if isinstance(value, Module):
                if name in found:
                    raise ValueError(f"two modules of {type(self).__name__} are named {name!r}; rename a key")
                found[name] = value
        return found

    def init(self, key: Array) -> dict[str, Array]:
        """Initial parameters: a flat dictionary with dotted names.

        Every parameter's key is derived from its name, so adding a layer changes no other's values.
        """
        params: dict[str, Array] = {}
        for name, module in self._modules().items():
            own = module.parameters(jax.random.fold_in(key, zlib.crc32(name.encode())))
            params |= {f"{name}.{k}" if name else k: v for k, v in own.items()}
        return params

    def apply(self, params: dict[str, Array], *args: Any) -> Any:
        """Compute with the given parameters.

        Raises:
            KeyError: the names are not those of :meth:`init`.
            ValueError: a shape is not.
        """
        expected = jax.eval_shape(self.init, jax.random.key(0))
        missing, extra = sorted(expected.keys() - params.keys()), sorted(params.keys() - expected.keys())
        if missing or extra:
            raise KeyError(
                f"params of {type(self).__name__}: missing {missing}, unexpected {extra}; expected exactly "
                f"{list(expected)}"
            )
        # Parameters become attributes of a copy: of modules and what holds them, and of nothing else.
        bound = copy.deepcopy(self, {id(v): v for _, v in self._held() if not isinstance(v, (Module, *_CONTAINERS))})
        modules = bound._modules()
        for name, array in params.items():
            if np.shape(array) != expected[name].shape:
                raise ValueError(
                    f"parameter {name!r} of {type(self).__name__} has shape {np.shape(array)}; expected "
                    f"{expected[name].shape}"
                )
            owner, _, attribute = name.rpartition(".")
            setattr(modules[owner], attribute, array)
        return bound(*args)


class _Weighted(Module):
    """A module whose one parameter is a weight of some shape, He normal."""

    weight: Array

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def parameters(self, key: Array) -> dict[str, Array]:
        """Variance 2 over the product of all axes of the weight but the last."""
        return {"weight": jax.nn.initializers.he_normal()(key, self.shape)}


class Linear(_Weighted):
    """``x @ weight``, no bias; weight ``(in_features, out_features)``, He normal."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)

    def __call__(self, x: Array) -> Array:
        """Map ``(..., in_features)`` to ``(..., out_features)``."""
        return x @ self.weight


class ReLU(Module):
    """``max(0, x1 + x2 + ... + bias)`` as one constraint (Theorem 6); bias ``(features,)``, zeros."""

    bias: Array

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def parameters(self, key: Array) -> dict[str, Array]:
        """Zero bias."""
        del key
        return {"bias": jnp.zeros(self.features)}

    def __call__(self, *xs: Array) -> Array:
        """Arrays of one shape ``(..., features)`` and the bias's dtype."""
        for x in xs:
            if x.shape != xs[0].shape or x.shape[-1:] != self.bias.shape or x.dtype != self.bias.dtype:
                found = ", ".join(f"{x.dtype}{list(x.shape)}" for x in xs)
                raise ValueError(
                    f"ReLU({self.features}) takes arrays of one shape (..., {self.features}) and dtype "
                    f"{self.bias.dtype}; it got {found}"
                )
        return rules.sum_relu_p.bind(*xs, jnp.broadcast_to(self.bias, xs[0].shape))


class SkipReadout(Linear):
    """Linear map of several layers side by side (a readout of all hidden layers); weight ``(sum(widths), out)``."""

    def __init__(self, widths: Sequence[int], out_features: int) -> None:
        super().__init__(sum(widths), out_features)

    def __call__(self, *xs: Array) -> Array:
        """Map arrays ``(..., width)`` to ``(..., out_features)``."""
        return super().__call__(jnp.concatenate(xs, -1))


class Conv2D(_Weighted):
    """Convolution without bias; weight ``(*kernel_shape, in_channels, out_channels)``, He normal.

    Args:
        in_channels, out_channels: of the images.
        kernel_shape, strides: (height, width).
        padding: ``"SAME"``, ``"VALID"`` or ``((top, bottom), (left, right))``; padding adds explicit zeros.

    Of JAX's derivatives it has those in reverse mode (see :func:`pjax.conv_general_dilated`).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_shape: tuple[int, int] = (3, 3),
        strides: tuple[int, int] = (1, 1),
        padding: str | Sequence[tuple[int, int]] = "SAME",
    ) -> None:
        super().__init__(*kernel_shape, in_channels, out_channels)
        self.strides, self.padding = strides, padding

    def __call__(self, x: Array) -> Array:
        """Map images ``(..., height, width, in_channels)`` to ``(..., height, width, out_channels)``."""
        if x.ndim < 3 or x.shape[-1] != self.shape[2]:
            raise ValueError(f"Conv2D takes images (..., height, width, {self.shape[2]}); it got shape {x.shape}")
        images = x.reshape(-1, *x.shape[-3:])
        layout = ("NHWC", "HWIO", "NHWC")
        out = conv_general_dilated(images, self.weight, self.strides, self.padding, dimension_numbers=layout)
        return out.reshape(*x.shape[:-3], *out.shape[1:])


class MaxPool(Module):
    """Maximum over space."""

    def __call__(self, x: Array) -> Array:
        """Map images ``(..., height, width, channels)`` to ``(..., channels)``."""
        return jnp.max(x, (-3, -2))


class Embedding(_Weighted):
    """A vector for every token; weight ``(num_embeddings, features)``, He normal, as of a map of one-hot tokens."""

    def __init__(self, num_embeddings: int, features: int) -> None:
        super().__init__(num_embeddings, features)

    def __call__(self, tokens: ArrayLike) -> Array:
        """Map integers ``(...)`` to ``(..., features)``."""
        indices = jnp.asarray(tokens)
        if not jnp.issubdtype(indices.dtype, jnp.integer):
            raise TypeError(f"Embedding takes integer tokens; it got {indices.dtype}")
        _check_range("tokens", tokens, self.shape[0], "embeddings")
        return self.weight[indices]


class Quantize(Module):
    """Nearest of equidistant levels (Theorem 9); two levels are a sign activation.

    Args:
        levels: how many, at least 2.
        scale: the largest level, positive; the smallest is its negative.
    """

    def __init__(self, levels: int, scale: float = 1.0) -> None:
        super().__init__()
        self.levels, self.scale = levels, scale

    def __call__(self, x: Array) -> Array:
        """Map element-wise."""
        return rules.quantize_p.bind(x, levels=self.levels, scale=self.scale)


def _check_range(what: str, numbers: ArrayLike, count: int, of: str) -> None:
    """Refuse numbers outside 0 to count - 1, where they are known: as they were given, JAX would trace them."""
    if not isinstance(numbers, Tracer):
        known = np.asarray(numbers)
        if known.size and (known.min() < 0 or known.max() >= count):
            raise ValueError(
                f"{what} from {known.min()} to {known.max()} for {count} {of}: they lie in 0 to {count - 1}"
            )


def _one_hot(logits: Array, y: ArrayLike) -> Array:
    """Labels as a distribution over the last axis of the logits."""
    given, y = y, jnp.asarray(y)
    if jnp.issubdtype(y.dtype, jnp.integer) and y.shape == logits.shape[:-1]:
        _check_range("labels", given, logits.shape[-1], "classes")
        return jax.nn.one_hot(y, logits.shape[-1], dtype=logits.dtype)
    if y.shape == logits.shape:
        return y.astype(logits.dtype)
    raise ValueError(
        f"labels of shape {y.shape} and dtype {y.dtype} do not fit logits of shape {logits.shape}: pass "
        f"integers of shape {logits.shape[:-1]} or one-hot labels of shape {logits.shape}"
    )


def cross_entropy(logits: Array, y: ArrayLike) -> Array:
    """Cross-entropy per sample; in a projection method the proximal operator of Theorem 11.

    Args:
        logits: ``(..., classes)``.
        y: integer labels ``(...)``, or one-hot or any distribution ``(..., classes)``.

    Raises:
        ValueError: labels that are out of range, of another shape, or no distribution.
    """
    labels = _one_hot(logits, y)
    if not isinstance(y, Tracer) and np.ndim(y) == logits.ndim:
        known = np.asarray(y, float)
        wrong = ~((known.min(-1, initial=0) >= 0) & (abs(known.sum(-1) - 1) <= 1e-3))  # NaN is wrong, too
        if np.any(wrong):
            raise ValueError(
                f"labels {known[wrong][0]} at {np.argwhere(wrong)[0].tolist()} are no distribution: pass one-hot "
                "labels, or others that are not negative and sum to 1"
            )
    return rules.cross_entropy_p.bind(logits, labels)


def margin_loss(logits: Array, y: ArrayLike, margin: float = 1.0) -> Array:
    """l1 distance per sample to the margin constraint; a projection method projects on it (Theorem 10).

    Args:
        logits: ``(..., classes)``.
        y: integer labels ``(...)`` or one-hot ``(..., classes)``.
        margin: m > 0: the label's logit is to be at least m, the others at most 0.
    """
    if not margin > 0:
        raise ValueError(f"margin={margin}: it must be positive")
    return rules.margin_p.bind(logits, _one_hot(logits, y), margin=margin)


def squared_error(outputs: Array, targets: ArrayLike) -> Array:
    """Squared distance per sample; in a projection method its proximal operator.

    Args:
        outputs: ``(..., features)``.
        targets: same shape.
    """
    targets = jnp.asarray(targets)
    if targets.shape != outputs.shape or not outputs.ndim:
        raise ValueError(
            f"targets of shape {targets.shape} do not fit outputs of shape {outputs.shape}: both (..., features), "
            "one feature included, and equal"
        )
    return rules.squared_error_p.bind(outputs, targets.astype(outputs.dtype))
