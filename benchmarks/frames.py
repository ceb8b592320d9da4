"""How fast pictures are drawn: frames per CPU second of the ray caster and of mujoco.Renderer, side by side.

    python benchmarks/frames.py                        # 20 geoms, 64 x 64: two settings of MuJoCo's, two batch sizes
    python benchmarks/frames.py --figure pictures.png  # ours, MuJoCo's, and where their segmentations differ

Rounds are interleaved, and the CPU time is that of the whole process: on a GPU it says nothing. MuJoCo's fastest has no
shadows, no multisampling, no reflections and no haze. One JSON line per contender on standard output, a table on
standard error.
"""

# pyright: reportAttributeAccessIssue=false
# (the names of the compiled mujoco module are not declared)

from __future__ import annotations

import os

os.environ.setdefault("MUJOCO_GL", "egl")  # before mujoco is imported

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import drawn
import jax
import jax.numpy as jnp
import measure
import mujoco
import numpy as np
from matplotlib.figure import Figure
from offline_to_online import PICTURES, OneLineParser, at_least, output, stop

from safejax import envs
from safejax.envs.rendering import make_caster

SIZE = 64
VIEWS = (
    ("ball_circle", "track"),
    ("drone_run", "track"),
    ("ant_velocity", "track"),
    ("hopper_velocity", "track"),
    ("point_goal1", "vision"),
    ("point_push1", "fixednear"),
    ("car_goal2", "vision"),
    ("point_maze_large", "top"),
)


def scene() -> str:
    """A checkered floor, 8 obstacles, 8 translucent discs, a goal and a robot of two geoms: 20 geoms."""
    rng = np.random.default_rng(0)
    sizes = {"box": ".15 .15 .2", "cylinder": ".15 .2", "sphere": ".18", "capsule": ".1 .15"}
    geoms = []
    for kind in [*sizes] * 2:
        x, y, red, green, blue = *rng.uniform(-2, 2, 2), *rng.uniform(0.2, 1, 3)
        look = f'pos="{x:.2f} {y:.2f} .2" rgba="{red:.2f} {green:.2f} {blue:.2f} 1"'
        geoms.append(f'<geom type="{kind}" size="{sizes[kind]}" {look}/>')
    for x, y in rng.uniform(-2, 2, (8, 2)):
        geoms.append(f'<geom type="cylinder" size=".2 .01" pos="{x:.2f} {y:.2f} .02" rgba="0 0 1 .25"/>')
    return f"""<mujoco><asset>
      <texture name="squares" type="2d" builtin="checker" rgb1=".9 .9 .8" rgb2=".8 .8 .7" width="100" height="100"/>
      <texture type="skybox" builtin="gradient" rgb1=".4 .6 .8" rgb2="0 0 0" width="64" height="64"/>
      <material name="squares" texture="squares" texrepeat="10 10"/></asset>
    <worldbody><light directional="true" pos="0 0 5" dir=".2 .3 -1"/>
      <geom type="plane" size="3.5 3.5 .1" material="squares"/>
      <geom type="cylinder" size=".3 .15" pos="1 1 .16" rgba="0 1 0 .25"/>
      <body name="robot" pos="0 0 .12"><freejoint/>
        <camera name="track" mode="track" pos="0 -2.5 2" xyaxes="1 0 0 0 .6 .8"/>
        <geom type="sphere" size=".1" rgba="1 0 0 1"/>
        <geom type="box" size=".05 .05 .05" pos=".1 0 0" rgba="1 .5 0 1"/></body>
      {"".join(geoms)}</worldbody></mujoco>"""


def fastest(model: mujoco.MjModel) -> mujoco.MjModel:
    """`model` without what costs MuJoCo's renderer most."""
    model.vis.quality.shadowsize = model.vis.quality.offsamples = 0
    return model


def opengl(
    model: mujoco.MjModel, states: list[mujoco.MjData], plain: bool
) -> tuple[mujoco.Renderer, Callable[[], Any]]:
    """MuJoCo's renderer, and a function that draws all states with it."""
    renderer = mujoco.Renderer(model, SIZE, SIZE)
    if plain:
        for flag in ("SHADOW", "REFLECTION", "HAZE", "FOG"):
            renderer.scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = False

    def draw() -> None:
        for state in states:
            renderer.update_scene(state, "track")
            renderer.render()

    return renderer, draw


def caster(
    model: mujoco.MjModel, states: list[mujoco.MjData], batch: int
) -> tuple[Callable[[], Any], dict[str, float]]:
    """A function that draws `batch` states, shared by all devices, and the seconds that compiling it took."""
    rgb = make_caster(model, ("track",), height=SIZE, width=SIZE).rgb
    chosen = [states[index % len(states)] for index in range(batch)]
    poses = jnp.stack([state.xpos for state in chosen]), jnp.stack([state.xquat for state in chosen])
    if batch == 1:
        rgb, poses = rgb, (poses[0][0], poses[1][0])
    else:
        mesh, rows = jax.make_mesh((jax.device_count(),), ("picture",)), jax.P("picture")
        rgb = jax.shard_map(jax.vmap(rgb), mesh=mesh, in_specs=rows, out_specs=rows)
        poses = jax.device_put(poses, jax.NamedSharding(mesh, rows))
    compiled, times = measure.compile_timed(jax.jit(rgb), *poses)
    return lambda: jax.block_until_ready(compiled(*poses)), times


def random_states(model: mujoco.MjModel, count: int) -> list[mujoco.MjData]:
    """The robot anywhere on the floor, turned anyhow."""
    rng, states = np.random.default_rng(1), []
    for _ in range(count):
        data = mujoco.MjData(model)
        data.qpos[:2] = rng.uniform(-1, 1, 2)
        data.qpos[3:7] = rng.normal(size=4)
        mujoco.mj_forward(model, data)
        states.append(data)
    return states


def compare(batches: list[int], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """A record for each contender."""
    models = [mujoco.MjModel.from_xml_string(scene()), fastest(mujoco.MjModel.from_xml_string(scene()))]
    states = random_states(models[0], 16)
    contenders: dict[str, tuple[Callable[[], Any], int, dict[str, float]]] = {}
    renderers = []
    for name, model, plain in zip(("mujoco default", "mujoco fastest"), models, (False, True), strict=True):
        renderer, draw = opengl(model, states, plain)
        renderers.append(renderer)
        contenders[name] = draw, len(states), {}
    for batch in batches:
        draw, times = caster(models[0], states, batch)
        contenders[f"caster x {batch}"] = draw, batch, times
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):  # the first warms up
        for name, (draw, frames, _) in contenders.items():
            count, start = 0, time.process_time()
            while time.process_time() - start < seconds:
                draw()
                count += frames
            rates[name] += [count / (time.process_time() - start)] if turn else []
    for renderer in renderers:
        renderer.close()
    place = measure.machine() | {
        "devices": jax.device_count(),
        "opengl": os.environ["MUJOCO_GL"],
        "load": os.getloadavg()[0],
    }
    return [
        {
            "what": "frames",
            "name": name,
            "unit": "frames/CPU s",
            "geoms": models[0].ngeom,
            "size": SIZE,
            "median": statistics.median(rates[name]),
            "rounds": rates[name],
            "times_default": ratio(rates[name], rates["mujoco default"]),
            "times_fastest": ratio(rates[name], rates["mujoco fastest"]),
            **times,
            **place,
        }
        for name, (_, _, times) in contenders.items()
    ]


def ratio(rates: list[float], others: list[float]) -> float:
    """The median over rounds of the ratio in each."""
    return statistics.median(rate / other for rate, other in zip(rates, others, strict=True))


def figure(path: Path) -> None:
    """Write a picture for each of VIEWS: ours, MuJoCo's, and white where the segmentations differ."""
    shown = Figure(figsize=(9, 6.5))
    axes = shown.subplots(len(VIEWS) // 2, 6)
    for index, (name, camera) in enumerate(VIEWS):
        env = envs.make(name, "mujoco")
        scene = env.scene
        view = scene.view(jax.jit(env.reset)(jax.random.key(3)))
        render = make_caster(scene.model, (camera,), height=SIZE, width=SIZE, shapes=scene.shapes).render
        image = jax.jit(render)(view.xpos, view.xquat, scene.place(view))
        model = fastest(drawn.world(envs.task(name), scene, view).compile())
        data = mujoco.MjData(model)
        data.qpos[:] = view.qpos
        mujoco.mj_forward(model, data)
        with mujoco.Renderer(model, SIZE, SIZE) as renderer:
            renderer.update_scene(data, camera)
            theirs = renderer.render()
            renderer.enable_segmentation_rendering()
            ids, kinds = np.moveaxis(renderer.render(), -1, 0)
        labels = np.where(kinds == int(mujoco.mjtObj.mjOBJ_SITE), -2 - ids, ids)
        differ = labels != np.asarray(image.segmentation[0])
        title = f"{name}, {camera}", "MuJoCo", f"{100 * (1 - differ.mean()):.2f} % same"
        panels = (image.rgb[0], theirs, np.repeat(differ[..., None], 3, 2) * 1.0)
        for column, (panel, text) in enumerate(zip(panels, title, strict=True)):
            axis = axes[index // 2, 3 * (index % 2) + column]
            axis.imshow(panel, interpolation="nearest")
            axis.set_title(text, fontsize=7)
            axis.axis("off")
    shown.tight_layout(pad=0.4)
    shown.savefig(path, dpi=130)


def main(arguments: list[str] | None = None) -> None:
    """Check the options, measure or draw."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 256], help="pictures of a call (default: 1 256)")
    parser.add_argument("--devices", type=int, default=1, help="that the CPU is split into (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="CPU seconds of a window (default: %(default)s)")
    parser.add_argument("--figure", type=Path, help="write this picture and measure nothing")
    options = parser.parse_args(arguments)
    at_least("batches", min(options.batches), 1)
    at_least("devices", options.devices, 1)
    if any(batch > 1 and batch % options.devices for batch in options.batches):
        stop(f"--batches are {options.batches}, expected 1 or multiples of the {options.devices} devices")
    at_least("rounds", options.rounds, 1)
    if not options.seconds > 0:
        stop(f"--seconds is {options.seconds}, expected a positive number")
    if options.figure:
        output("--figure", options.figure, PICTURES)
        figure(options.figure)
        return
    jax.config.update("jax_num_cpu_devices", options.devices)
    print(f"{'':16}{'frames/CPU s':>14}{'x default':>12}{'x fastest':>12}", file=sys.stderr)
    for record in compare(options.batches, options.rounds, options.seconds):
        print(json.dumps(record, allow_nan=False))
        ratios = f"{record['times_default']:12.1f}{record['times_fastest']:12.2f}"
        print(f"{record['name']:16}{record['median']:14.1f}{ratios}", file=sys.stderr)


if __name__ == "__main__":
    main()
