"""Draw states with mujoco.Renderer; a process of its own, as MUJOCO_GL has to be set before mujoco is imported.

    python opengl_pictures.py states.npz pictures.npz

`states.npz` holds, for each model, `<name>/model` (MJCF text), `<name>/cameras` and `<name>/qpos` [K, nq]; out come
`<name>/xpos`, `<name>/xquat` and, [K, cameras, 64, 64, ...] each, `<name>/rgb`, `<name>/depth`, `<name>/segmentation`.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

SITE, GEOM = 6, 5  # mjtObj


def pictures(states: dict, folder: Path) -> dict | None:
    """What the process draws; None where no OpenGL library loads."""
    np.savez(folder / "states.npz", **states)
    for library in ("egl", "osmesa"):
        command = [sys.executable, __file__, str(folder / "states.npz"), str(folder / "pictures.npz")]
        result = subprocess.run(command, env=os.environ | {"MUJOCO_GL": library}, capture_output=True, check=False)
        if result.returncode == 0:
            return dict(np.load(folder / "pictures.npz"))
    return None


def main() -> None:
    import mujoco

    states, drawn = np.load(sys.argv[1]), {}
    for name in sorted({key.split("/")[0] for key in states}):
        model = mujoco.MjModel.from_xml_string(str(states[f"{name}/model"]))
        # smooth spheres and cylinders, no shadows, no multisampling: what the ray caster draws
        model.vis.quality.numslices = model.vis.quality.numstacks = 64
        model.vis.quality.shadowsize = model.vis.quality.offsamples = 0
        data, rows = mujoco.MjData(model), []
        with mujoco.Renderer(model, 64, 64) as renderer:
            for qpos in states[f"{name}/qpos"]:
                data.qpos[:] = qpos
                mujoco.mj_forward(model, data)
                views = [draw(renderer, data, str(camera)) for camera in states[f"{name}/cameras"]]
                rows.append(
                    (data.xpos.copy(), data.xquat.copy(), *(np.stack(part) for part in zip(*views, strict=True)))
                )
        for part, values in zip(
            ("xpos", "xquat", "rgb", "depth", "segmentation"), zip(*rows, strict=True), strict=True
        ):
            drawn[f"{name}/{part}"] = np.stack(values)
    np.savez(sys.argv[2], **drawn)


def draw(renderer, data, camera):
    renderer.update_scene(data, camera)
    rgb = renderer.render()
    renderer.enable_depth_rendering()
    depth = renderer.render()
    renderer.enable_segmentation_rendering()
    ids, kinds = np.moveaxis(renderer.render(), -1, 0)
    renderer.disable_segmentation_rendering()
    return rgb, depth, np.where(kinds == GEOM, ids, np.where(kinds == SITE, -2 - ids, -1)).astype(np.int16)


if __name__ == "__main__":
    main()
