"""Button: press the button that counts, then the next that does; others must not be pressed, gremlins go round.

Reward: how much nearer that button's middle came (m), and 1 while the robot touches it, after which any of the four may
be the next. Until ten steps later no button is seen by lidar and none costs. Cost, from level 1 on: 1 on a step that
ends touching another button outside those ten steps, touching a gremlin, or in a hazard.

| level | square | buttons | hazards | gremlins |
|---|---|---|---|---|
| 0 | 2 m | 4 | | |
| 1 | 3 m | 4 | 4 | 4 |
| 2 | 3.6 m | 4 | 8 | 6 |

Source: Safety{Point,Car}Button{0,1,2}-v0 of Safety-Gymnasium, see `_navigation.py`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from safejax.envs.tasks import _navigation as navigation
from safejax.envs.tasks import _objects
from safejax.envs.tasks._navigation import World
from safejax.envs.tasks._objects import buttons, disc, drawn, gremlins, hazards
from safejax.envs.tasks._placement import POPULATION
from safejax.envs.tasks._robots import CAR, POINT, Robot
from safejax.envs.tasks.base import Task, View
from safejax.scores import DSRL
from safejax.types import Array, ArrayTree, Key

BUTTON_COUNT = 4
PAUSE = 10  # steps after a press in which buttons are out of sight and free of charge

# takes up room when the layout is drawn, then marks the button that counts
MARK = drawn("goal", 1, 0.4, 0.11, disc(0.2, 0.1, (0.0, 1.0, 0.0, 0.1)))
LEVELS = (
    (1.0, (buttons(BUTTON_COUNT), MARK)),
    (1.5, (buttons(BUTTON_COUNT), MARK, hazards(4), gremlins(4))),
    (1.8, (buttons(BUTTON_COUNT), MARK, hazards(8), gremlins(6))),
)

REFERENCES = {
    "point_button1": DSRL["PointButton1"],
    "point_button2": DSRL["PointButton2"],
    "car_button1": DSRL["CarButton1"],
    "car_button2": DSRL["CarButton2"],
}


def _counting(layout: ArrayTree, button: Array) -> ArrayTree:
    """The layout in which `button` [] counts."""
    return layout | {"button": button, "goal": layout["buttons"][button][None]}


def extend(layout: ArrayTree, key: Key) -> ArrayTree:
    """Any button counts, and all are seen."""
    button = jax.random.randint(key, (), 0, BUTTON_COUNT)
    return _counting(layout, button) | {"pause": jnp.zeros((), jnp.int32)}


def _touched(view: View, world: World) -> tuple[Array, Array]:
    """Whether the robot touches the button that counts, and whether any other. [...] bool each."""
    touched = _objects.touched(view, "buttons", world.groups, world.robot)
    counts = view.layout["button"][..., None] == jnp.arange(BUTTON_COUNT)
    return jnp.any(touched & counts, axis=-1), jnp.any(touched & ~counts, axis=-1)


def reward(before: View, after: View, *, world: World) -> Array:
    """[...]"""
    place = after.layout["goal"][..., 0, :]
    return navigation.distance(before, place) - navigation.distance(after, place) + _touched(after, world)[0]


def cost(view: View, *, world: World) -> Array:
    """[...] bool"""
    wrong = _touched(view, world)[1] & (view.layout["pause"] == 0)
    return wrong | navigation.touches(view, "gremlins", world) | navigation.in_hazard(view)


def rearrange(view: View, key: Key, *, world: World) -> ArrayTree:
    """Time passes; a press makes any button the next."""
    met = _touched(view, world)[0]
    button = jnp.where(met, jax.random.randint(key, (), 0, BUTTON_COUNT), view.layout["button"])
    pause = jnp.where(met, PAUSE, jnp.maximum(view.layout["pause"] - 1, 0))
    return _counting(view.layout, button) | {"pause": pause}


def see(view: View, group: str, seen: Array) -> Array:
    """Buttons are out of sight in the pause."""
    return jnp.where((view.layout["pause"] > 0)[..., None], 0.0, seen) if group == "buttons" else seen


def _task(robot: Robot, level: int) -> Task:
    half_extent, groups = LEVELS[level]
    world = World(robot, groups, half_extent, population=POPULATION)
    name = f"{robot.name}_button{level}"
    return navigation.make(
        world,
        name,
        REFERENCES.get(name),
        reward=functools.partial(reward, world=world),
        cost=functools.partial(cost, world=world) if level else lambda view: jnp.zeros(view.qpos.shape[:-1], bool),
        extend=extend,
        rearrange=functools.partial(rearrange, world=world),
        see=see,
    )


TASKS = tuple(_task(robot, level) for robot in (POINT, CAR) for level in range(3))
