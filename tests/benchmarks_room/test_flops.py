"""benchmarks/flops.py: against hand arithmetic, the products of every method's program counted one by one, and XLA."""

from __future__ import annotations

import importlib
import math

import jax
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from safejax import algorithms

flops = importlib.import_module("flops")
measure = importlib.import_module("measure")
throughput = importlib.import_module("throughput")


CLIMBED = {"td3_bc": 1, "diffusion_ql": 1, "diffcps": 1, "cpq": 2, "sac_lag": 3}  # critics that an actor climbs


class Products:
    """The dense products of a program, each counted once whatever computes it again, if an output needs it.

    Expressions are numbered: the same operation on the same numbers gets the same number. Loops are unrolled, and of
    a `cond` the last branch is followed, in which the actors of slower methods move.
    """

    def __init__(self, program):
        self.numbers, self.inputs, self.costs = {}, [], []
        arguments = [self.number(("argument", index)) for index in range(len(program.in_avals))]
        self.outputs = self.walk(program, arguments)

    def number(self, key, inputs=(), cost=0):
        if key not in self.numbers:
            self.numbers[key] = len(self.inputs)
            self.inputs.append(inputs)
            self.costs.append(cost)
        return self.numbers[key]

    def total(self):
        needed, waiting = set(), list(self.outputs)
        while waiting:
            one = waiting.pop()
            if one not in needed:
                needed.add(one)
                waiting.extend(self.inputs[one])
        return sum(self.costs[one] for one in needed)

    def constant(self, value):
        array = np.asarray(value)
        return self.number(("constant", array.dtype, array.shape, array.tobytes()))

    def walk(self, program, arguments):
        jaxpr, constants = (program.jaxpr, program.consts) if isinstance(program, ClosedJaxpr) else (program, ())
        known = dict(zip(jaxpr.invars, arguments, strict=True))
        known |= dict(zip(jaxpr.constvars, map(self.constant, constants), strict=True))
        read = lambda atom: self.constant(atom.val) if isinstance(atom, Literal) else known[atom]  # noqa: E731
        for equation in jaxpr.eqns:
            results = self.apply(equation, tuple(map(read, equation.invars)))
            known |= dict(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def apply(self, equation, inputs):
        name, params = equation.primitive.name, equation.params
        if name == "scan":
            return self.scan(params, inputs)
        if name == "cond":
            return self.walk(params["branches"][-1], inputs[1:])
        inner = [value for value in params.values() if isinstance(value, Jaxpr | ClosedJaxpr)]
        if len(inner) == 1:  # jit, custom gradients and the like
            return self.walk(inner[0], inputs)
        assert name == "while" or not inner, name
        cost = 0
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            cost = 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)
        key = (name, repr(params), inputs)
        return [self.number((*key, place), inputs, cost) for place in range(len(equation.outvars))]

    def scan(self, params, inputs):
        constants, carries = params["num_consts"], params["num_carry"]
        held, carry, rows = inputs[:constants], inputs[constants:][:carries], inputs[constants + carries :]
        steps = range(params["length"])
        columns = []
        for step in reversed(steps) if params["reverse"] else steps:
            row = [self.number(("row", step, each), (each,)) for each in rows]
            results = self.walk(params["jaxpr"], [*held, *carry, *row])
            carry = results[:carries]
            columns.append(results[carries:])
        columns = columns[::-1] if params["reverse"] else columns
        # a stack is read row by row
        stacks = [self.number(("stack", column), column) for column in zip(*columns, strict=True)]
        return [*carry, *stacks]


def sizes_of(method):
    return throughput.SIZES.get(method, throughput.OFF_POLICY)


def test_a_tiny_network_by_hand():
    sizes, batch = (3, 4, 2), 5
    # products per sample: 12 and 8; two FLOPs each
    assert flops.forward(sizes, batch) == 2 * 5 * (12 + 8)
    # the same again for the weights; for inputs, the second layer's only
    assert flops.train(sizes, batch) == 2 * 5 * (12 + 8 + 12 + 8 + 8)
    # two of three input columns: 8 products of layer 1
    assert flops.train(sizes, batch, columns=2) == 2 * 5 * (12 + 8 + 12 + 8 + 8 + 8)
    # one of three input columns: 4 products of layer 1
    assert flops.through(sizes, batch, columns=1) == 2 * 5 * (12 + 8 + 8 + 4)


def test_a_tiny_denoiser_by_hand():
    # features 4 -> 8 -> 4, of which the first layer (3 + 2 + 4 -> 5), then 5 -> 2
    denoiser = flops.mlp_denoiser(observation=3, action=2, hidden=(5,), time=4)
    assert denoiser == (3 * 5, 2 * 5, 4 * 8 + 8 * 4 + 4 * 5, 4 * 8, 5 * 2)
    # evaluation and weights: 15 + 10 + 84 + 10; inputs: all but of the layers on data (15, 10) and features (32)
    assert flops.clone(denoiser, batch=7) == 2 * 7 * (2 * (15 + 10 + 84 + 10) + 84 - 32 + 10)
    # two steps: 7 states once, 7 x 3 candidates twice, the step's embedding twice
    assert flops.sample(denoiser, batch=7, candidates=3, chain=2) == 2 * (7 * 15 + 2 * (21 * (10 + 10) + 84))
    # each step evaluates all but the state's part, needs all weights, and the inputs of time's and the last layer;
    # the second also the gradient of the action that the first made
    evaluation, weights, inputs = 7 * (10 + 10) + 84, 7 * (15 + 10 + 10) + 84, 7 * 10 + 84 - 32
    assert flops.climb(denoiser, batch=7, chain=2) == 2 * (2 * (evaluation + weights + inputs) + 7 * 10)
    # width 8: 4 features -> 8 -> 8 -> 8, three blocks 8 -> 32 -> 8, 8 -> 2
    assert flops.residual_denoiser(3, 2, 8) == (3 * 8, 2 * 8, 4 * 8 + 8 * 8 + 8 * 8, 0, 3 * 2 * 8 * 32 + 8 * 2)


def test_products_of_a_program_by_hand():
    def program(weights, inputs):
        unused = inputs @ weights @ weights
        first, again = inputs @ weights, inputs @ weights
        last, rows = jax.lax.scan(
            lambda carry, row: (carry @ weights + inputs @ weights, row), first, jax.numpy.ones(3)
        )
        return last + again, rows, unused[:0].shape[0]

    closed = jax.make_jaxpr(program)(np.ones((4, 4), np.float32), np.ones((2, 4), np.float32))
    assert Products(closed).total() == 2 * 2 * 4 * 4 * (1 + 3)


@pytest.mark.parametrize("method", throughput.METHODS)
def test_an_update_makes_exactly_the_counted_products(method):
    sizes = sizes_of(method)
    spec = {"name": method, **sizes}
    algorithm = measure.build(spec)
    state, batch, key = measure.abstract_update(spec, algorithm)

    def update(state, batch, key):
        new, metrics = algorithm.update(state, batch, key)
        # the only product that serves a metric alone: the value under the mean weight
        return new, {name: each for name, each in metrics.items() if name != "alignment/weight"}

    counted = Products(jax.make_jaxpr(update)(state, batch, key)).total()
    # concatenated inputs of a critic get their gradient whole, where only that of the actions is needed
    needless = CLIMBED.get(method, 0) * 2 * sizes["batch"] * sizes["observation"] * sizes["hidden"][0]
    assert counted == flops.update_flops(method, **sizes) + needless


@pytest.mark.parametrize("method", ["awr", "iql", "td3_bc", "diffusion_bc", "extraction", "diffusion_ql", "ppo_lag"])
def test_an_update_is_most_of_what_xla_counts(method):
    sizes = sizes_of(method)
    # XLA adds activations, optimisers and random numbers: 1 to 4 %, 6 % of the small networks of ppo_lag
    assert 1.0 < measure.xla_flops({"name": method, **sizes}) / flops.update_flops(method, **sizes) < 1.07


@pytest.mark.parametrize(("method", "frequency"), [("td3_bc", 2), ("diffcps", 2)])
def test_an_actor_that_rests_counts_in_part(method, frequency):
    assert algorithms.module(method).Config().policy_frequency == frequency == throughput.POLICY_FREQUENCY
    sizes = sizes_of(method)
    always, sometimes, never = (flops.update_flops(method, **sizes, policy_frequency=n) for n in (1, 2, math.inf))
    assert never < sometimes == (always + never) / 2


def test_every_method_has_a_count():
    assert set(algorithms.MODULES) - set(throughput.WORLD_MODELS) < set(throughput.METHODS)
    with pytest.raises(ValueError, match="method is 'none'"):
        flops.update_flops("none", **throughput.OFF_POLICY)
