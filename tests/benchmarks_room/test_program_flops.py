"""benchmarks/program_flops.py against hand arithmetic."""

import jax
import jax.numpy as jnp
import program_flops


def test_products_and_loops():
    weights, rows = jnp.ones((4, 4)), jnp.ones((2, 4))
    product = 2 * 2 * 4 * 4

    def program(weights, rows):
        carry, _ = jax.lax.scan(lambda carry, _: (carry @ weights, None), rows @ weights, None, 3)
        return jax.lax.cond(carry[0, 0] > 0, lambda x: x @ weights, lambda x: x, carry)

    assert program_flops.count(program, weights, rows) == (1 + 3 + 1) * product
    # the gradient of one product: two more
    assert program_flops.count(jax.grad(lambda w: jnp.sum(jnp.square(rows @ w))), weights) == 2 * product


def test_convolutions():
    pictures, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((4, 4, 3, 5))
    dims = ("NHWC", "HWIO", "NHWC")

    def halve(kernel):
        return jax.lax.conv_general_dilated(pictures, kernel, (2, 2), "SAME", dimension_numbers=dims)

    forward = 2 * (2 * 4 * 4 * 5) * (4 * 4 * 3)
    assert program_flops.count(halve, kernel) == forward
    # the gradient of the kernel costs as much again
    assert program_flops.count(jax.grad(lambda kernel: jnp.sum(jnp.square(halve(kernel)))), kernel) == 2 * forward
    # a transposed convolution that doubles: every pixel in meets every tap once
    double = lambda kernel: jax.lax.conv_transpose(pictures, kernel, (2, 2), "SAME")  # noqa: E731
    assert program_flops.count(double, kernel) == 2 * (2 * 8 * 8 * 3) * (4 * 4 * 5)
