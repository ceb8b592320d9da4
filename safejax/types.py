"""The nouns of safejax, and `bind`, which turns a module of functions into one `Algorithm` value.

Shape letters, used in every docstring: B batch or environments, T time, N data set rows, E critics of an
ensemble, S seeds, K candidate actions, O observation, A action. Costs and cost excesses are positive when bad.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any, NamedTuple, Protocol

import jax

Array = jax.Array
ArrayTree = Any
Key = jax.Array
Params = Any
Carry = Any
Metrics = dict[str, Array]


class Transition(NamedTuple):
    """Steps of experience. Leading axes are [B], [B, T] or [N]; `...` below stands for them."""

    observation: ArrayTree  # [..., O] float32, or a dictionary with "pixels" [..., H, W, C] uint8 and "state"
    action: Array  # [..., A] in [-1, 1]; int32 [...] in discrete worlds
    reward: Array  # [...] task units; NaN: the simulation diverged, and the row is no transition
    cost: Array  # [...] >= 0, cost units
    discount: Array  # [...] 0 where the episode TERMINATED here, else 1 (1 at a truncation)
    last: Array  # [...] 1 where the trajectory ends here, for either reason
    next_observation: ArrayTree  # as observation, before any reset; () in windows that do without
    extras: dict[str, Array] = {}  # names of a closed list, see EXTRAS


EXTRAS = frozenset(
    [
        "log_prob",
        "raw_action",
        "return_to_go",
        "cost_to_go",
        "skill",
        "goal",
        "weight",
        "policy_index",
        "is_offline",
        "n_step_discount",
        "time_index",
    ]
)
"""The names that `Transition.extras` may hold."""


class TrainState(NamedTuple):
    """Something that gradient descent moves."""

    params: Params
    opt_state: ArrayTree


class Network(Protocol):
    """Two pure functions. A flax linen module satisfies this as it stands."""

    def init(self, key: Any, /, *inputs: Any) -> Any: ...

    def apply(self, params: Any, /, *inputs: Any) -> Any: ...


class EpisodeStats(NamedTuple):
    """Sums over episodes; any leading shape. Only rows with `finished` count."""

    episode_return: Array  # [...] undiscounted sum of rewards
    episode_cost: Array  # [...] undiscounted sum of costs, cost units
    length: Array  # [...] int32, environment steps
    finished: Array  # [...] bool
    diverged: Array | bool = False  # [...] bool, the simulation failed on this step and the episode is forgotten


class BatchSpec(NamedTuple):
    """What an algorithm's `update` eats; training loops choose the sampler from it."""

    kind: str  # "fresh", "uniform", "mixed" or "sequence"
    offline_fraction: float = 0.0  # share of each "mixed" or "sequence" batch drawn from the offline data set
    length: int = 1  # steps of each row of a "sequence" batch
    successors: bool = True  # whether batches hold next_observation; windows may do without, at half the memory

    @classmethod
    def fresh(cls) -> BatchSpec:
        """On-policy: the rollout just collected, [B, T], once."""
        return cls("fresh")

    @classmethod
    def uniform(cls) -> BatchSpec:
        """Transitions [B], drawn uniformly with replacement."""
        return cls("uniform")

    @classmethod
    def mixed(cls, offline_fraction: float) -> BatchSpec:
        """Transitions [B], of which round(B * offline_fraction) come from the offline data set, first."""
        check_range("offline_fraction", offline_fraction, 0.0, 1.0)
        return cls("mixed", offline_fraction=offline_fraction)

    @classmethod
    def sequence(cls, length: int, offline_fraction: float = 0.0, *, successors: bool = True) -> BatchSpec:
        """Windows [B, T = length] of consecutive transitions; they may span episode ends (see `last`).

        Online, round(B * offline_fraction) of the windows come from the offline data set, first. Without `successors`
        their next_observation is (), and no replay keeps it.
        """
        check_range("length", length, 1)
        check_range("offline_fraction", offline_fraction, 0.0, 1.0)
        return cls("sequence", offline_fraction, length, successors)

    @property
    def mixes(self) -> bool:
        """Whether online batches need the offline data set."""
        return self.kind == "mixed" or self.offline_fraction > 0.0


class Algorithm(NamedTuple):
    """A method with its configuration and networks bound. Jit belongs to the caller."""

    init: Callable[..., Any]  # (key, example: Transition without leading axes) -> State
    update: Callable[..., Any]  # (state, batch: Transition, key) -> (State, Metrics)
    act: Callable[..., Any]  # (state, observation [B, O], key, carry=(), *, explore=False) -> (action, carry, extras)
    initial_carry: Callable[..., Any]  # (state, batch_size) -> Carry
    advance: Callable[..., Any]  # (carry, transition [B]) -> Carry, after every environment step
    adapt: Callable[..., Any]  # (state, episodes: EpisodeStats) -> State
    batch: BatchSpec


class EnvState(NamedTuple):
    """One environment after a step or a reset. After an episode's end it already holds the next episode's start."""

    physics: ArrayTree  # whatever the engine carries
    observation: ArrayTree  # [O], what the policy sees next
    reward: Array  # [] float32, of the step just made
    cost: Array  # [] float32, of the step just made
    terminated: Array  # [] bool, the task ended the episode on this step
    truncated: Array  # [] bool, time ended the episode on this step
    final_observation: ArrayTree  # [O], after this step and before any reset
    steps: Array  # [] int32, steps made in the current episode
    layout: ArrayTree = ()  # what the task drew beside the physics: where goals and hazards are
    diverged: Array | bool = False  # [] bool, the step's numbers were not finite: truncated, reward and cost 0


class Env(NamedTuple):
    """An unbatched world of pure functions; loops vmap it."""

    reset: Callable[[Key], EnvState]
    step: Callable[[EnvState, Array, Key], EnvState]
    observation_spec: ArrayTree  # jax.ShapeDtypeStruct without leading axes
    action_size: int  # A, or the number of actions of a discrete world
    episode_length: int  # environment steps until truncation
    name: str = ""
    discrete: bool = False
    check: Callable[[], None] = lambda: None  # raises what a host engine kept back; call between chunks
    scene: Any = None  # what may be drawn: safejax.envs.rendering.Scene


class HostEnv(NamedTuple):
    """B worlds that step together on the host, with a state of their own that no JAX program holds.

    What `step` returns means what it means in `Env`, except in rows that are not `real`: such a row took no step,
    it only moved on to its next episode's start, and is no transition.
    """

    reset: Callable[[], EnvState]  # () -> [B], all in new episodes
    step: Callable[[EnvState, Any], tuple[EnvState, Any]]  # ([B], actions [B, A]) -> ([B], real [B] bool)
    observation_spec: ArrayTree  # jax.ShapeDtypeStruct without leading axes
    action_size: int  # A, or the number of actions of a discrete world
    env_count: int  # B
    name: str = ""
    discrete: bool = False


def example_transition(env: Env | HostEnv) -> Transition:
    """Zeros in the shape of one transition of `env`, without leading axes: what `Algorithm.init` takes."""
    zeros = functools.partial(jax.tree.map, lambda spec: jax.numpy.zeros(spec.shape, spec.dtype))
    scalar = jax.numpy.zeros((), "float32")
    action = jax.numpy.zeros((), "int32") if env.discrete else jax.numpy.zeros((env.action_size,), "float32")
    observation = zeros(env.observation_spec)
    return Transition(observation, action, scalar, scalar, scalar, scalar, zeros(env.observation_spec))


def _no_carry(state: Any, batch_size: int, *, config: Any, networks: Any) -> Carry:
    del state, batch_size, config, networks
    return ()


def _same_carry(carry: Carry, transition: Transition, *, config: Any, networks: Any) -> Carry:
    del transition, config, networks
    return carry


def _no_adaptation(state: Any, episodes: EpisodeStats, *, config: Any, networks: Any) -> Any:
    del episodes, config, networks
    return state


def bind(
    *,
    config: Any,
    networks: Any,
    batch: BatchSpec,
    init: Callable[..., Any],
    update: Callable[..., Any],
    act: Callable[..., Any],
    initial_carry: Callable[..., Any] = _no_carry,
    advance: Callable[..., Any] = _same_carry,
    adapt: Callable[..., Any] = _no_adaptation,
) -> Algorithm:
    """An `Algorithm` with `config` and `networks` filled in; the defaults serve memoryless methods."""
    bound = {
        name: functools.partial(function, config=config, networks=networks)
        for name, function in dict(
            init=init, update=update, act=act, initial_carry=initial_carry, advance=advance, adapt=adapt
        ).items()
    }
    return Algorithm(batch=batch, **bound)


def check_range(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Refuse a Config number outside [low, high], ends excluded by `open_low`, `open_high`; arrays pass, traced or not.

    Raises:
      ValueError: one line with the name, the value and the range.
    """
    if isinstance(value, jax.Array):
        return
    if not (low < value if open_low else low <= value) or not (value < high if open_high else value <= high):
        left, right = "(" if open_low else "[", ")" if open_high else "]"
        raise ValueError(f"{name} is {value}, expected a number in {left}{low:g}, {high:g}{right}")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Refuse what is no whole number, or below `least`.

    Raises:
      ValueError: one line with the name, the value and what was expected.
    """
    if not isinstance(value, Integral):
        raise ValueError(f"{name} is {value!r}, expected a whole number")
    if value < least:
        raise ValueError(f"{name} is {value}, expected at least {least}")


def check_choice(name: str, value: str, choices: Mapping[str, Any] | tuple[str, ...]) -> None:
    """Refuse a name that is not among `choices`.

    Raises:
      ValueError: one line that lists the choices.
    """
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(sorted(choices))}")


def choose_networks(networks: Any, default_networks: Callable[[int], Any], action_size: int | None) -> Any:
    """The networks given, or the defaults for `action_size` actions.

    Raises:
      ValueError: if neither is given.
    """
    if networks is not None:
        return networks
    if action_size is None:
        raise ValueError("action_size is None, expected a number of actions, or networks=")
    return default_networks(action_size)
