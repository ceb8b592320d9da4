"""FLOPs of a traced program in its products and convolutions, two per multiply-add; loops as often as they run.

What XLA's own count leaves out: of a loop it counts the body once. Not counted: everything else, which is some per cent
(see `flops.py`); products that XLA finds to be equal count as often as they are written.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def count(function: Callable[..., Any], *arguments: Any) -> int:
    """Of one call of `function`; the arguments may be `jax.ShapeDtypeStruct`s."""
    return _of(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of(jaxpr: Any) -> int:
    return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    shapes = [atom.aval.shape for atom in (*equation.invars, *equation.outvars)]
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * math.prod(shapes[-1]) * math.prod(shapes[0][axis] for axis in contracted)
    if name == "conv_general_dilated":
        _, kernel, out = shapes
        dims = params["dimension_numbers"]
        taps = math.prod(kernel[axis] for axis in dims.rhs_spec[1:])  # inputs of one group and places of the kernel
        # of an input spread with zeros, as in a transposed convolution, the products with them do not count
        return 2 * math.prod(out) * taps // math.prod(params["lhs_dilation"])
    inner = [
        _open(value) for value in jax.tree.leaves(list(params.values()), is_leaf=_is_program) if _is_program(value)
    ]
    if name == "cond":
        return max(map(_of, inner))
    return params.get("length", 1) * sum(map(_of, inner)) if name == "scan" else sum(map(_of, inner))


def _is_program(value: Any) -> bool:
    return isinstance(value, Jaxpr | ClosedJaxpr)


def _open(value: Any) -> Any:
    return value.jaxpr if isinstance(value, ClosedJaxpr) else value
