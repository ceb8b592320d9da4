"""Where cameras and lights are and how cameras see, from the poses of bodies, as MuJoCo has it.

Source: mj_camlight, mjv_cameraFrustum and setView of google-deepmind/mujoco 3.17.
"""

# pyright: reportAttributeAccessIssue=false
# (the names of the compiled mujoco module are not declared)

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import mujoco
import numpy as np

from safejax.types import Array

_FIXED, _TRACK, _TRACKCOM, _TARGETBODY = (
    int(getattr(mujoco.mjtCamLight, f"mjCAMLIGHT_{name}")) for name in ("FIXED", "TRACK", "TRACKCOM", "TARGETBODY")
)


class Bodies(NamedTuple):
    """Poses of all bodies in the world."""

    position: Array  # [nbody, 3]
    rotation: Array  # [nbody, 3, 3]


class Pixels(NamedTuple):
    """Directions through the centres of the pixels, row by row from the top, in the camera's frame; z is -1."""

    x: np.ndarray  # [P]
    y: np.ndarray  # [P]
    pitch: float  # from a pixel to the one below it


def rotation_matrix(quaternion: Array) -> Array:
    """[..., 4] unit quaternions w, x, y, z as matrices [..., 3, 3]."""
    w, x, y, z = (quaternion[..., index] for index in range(4))
    entries = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return jnp.stack([jnp.stack(row, axis=-1) for row in entries], axis=-2)


def rotate(rotation: Any, vectors: Any) -> Array:
    """`rotation` [..., 3, 3] times `vectors` [..., 3]; not `@`, whose inputs accelerators round."""
    return jnp.sum(rotation * vectors[..., None, :], axis=-1)


def compose(left: Any, right: Any) -> Array:
    """The product of matrices [..., 3, 3], in full precision."""
    return jnp.sum(left[..., :, :, None] * right[..., None, :, :], axis=-2)


def camera_pose(model: mujoco.MjModel, camera: int, bodies: Bodies) -> tuple[Array, Array]:
    """Position [3] and rotation [3, 3] of a camera that looks along its -z, y up."""
    body, target, mode = model.cam_bodyid[camera], model.cam_targetbodyid[camera], int(model.cam_mode[camera])
    position = _attached(model.cam_pos[camera], body, bodies)
    rotation = compose(bodies.rotation[body], _matrix(model.cam_quat[camera]))
    if mode == _TRACK:
        position = bodies.position[body] + _float32(model.cam_pos0[camera])
    elif mode == _TRACKCOM:
        position = _subtree_com(model, body, bodies) + _float32(model.cam_poscom0[camera])
    elif mode != _FIXED and target >= 0:
        backward = _unit(position - _target(model, mode, target, bodies))
        right = _unit(jnp.stack([-backward[1], backward[0], jnp.zeros_like(backward[0])]))
        rotation = jnp.stack([right, _unit(jnp.cross(backward, right)), backward], axis=-1)
    if mode in (_TRACK, _TRACKCOM):
        rotation = jnp.asarray(_float32(model.cam_mat0[camera]).reshape(3, 3))
    return position, rotation


def light_pose(model: mujoco.MjModel, light: int, bodies: Bodies) -> tuple[Array, Array]:
    """Position [3] of a light and the direction [3], of length 1, in which it shines."""
    body, target, mode = model.light_bodyid[light], model.light_targetbodyid[light], int(model.light_mode[light])
    position = _attached(model.light_pos[light], body, bodies)
    direction = rotate(bodies.rotation[body], _float32(model.light_dir[light]))
    if mode == _TRACK:
        position = bodies.position[body] + _float32(model.light_pos0[light])
    elif mode == _TRACKCOM:
        position = _subtree_com(model, body, bodies) + _float32(model.light_poscom0[light])
    elif mode != _FIXED and target >= 0:
        direction = _target(model, mode, target, bodies) - position
    if mode in (_TRACK, _TRACKCOM):
        direction = jnp.asarray(_float32(model.light_dir0[light]))
    return position, _unit(direction)


def pixels(model: mujoco.MjModel, camera: int, height: int, width: int) -> Pixels:
    """The camera's view; its own sensor size and intrinsics count where the model gives them."""
    tangent = math.tan(math.radians(float(model.cam_fovy[camera])) / 2)
    left = right = tangent * width / height
    down = up = tangent
    sensor = model.cam_sensorsize[camera]
    if sensor[1] > 0:
        focal_x, focal_y, principal_x, principal_y = model.cam_intrinsic[camera]
        left, right = (sensor[0] / 2 - principal_x) / focal_x, (sensor[0] / 2 + principal_x) / focal_x
        down, up = (sensor[1] / 2 - principal_y) / focal_y, (sensor[1] / 2 + principal_y) / focal_y
    x = -left + (left + right) * (np.arange(width) + 0.5) / width
    y = up - (down + up) * (np.arange(height) + 0.5) / height
    columns, rows = np.meshgrid(x, y)
    return Pixels(_float32(columns.ravel()), _float32(rows.ravel()), (down + up) / height)


def _attached(offset: np.ndarray, body: int, bodies: Bodies) -> Array:
    return bodies.position[body] + rotate(bodies.rotation[body], _float32(offset))


def _target(model: mujoco.MjModel, mode: int, target: int, bodies: Bodies) -> Array:
    if mode == _TARGETBODY:
        return bodies.position[target]
    return _subtree_com(model, target, bodies)


def _subtree_com(model: mujoco.MjModel, root: int, bodies: Bodies) -> Array:
    """Centre of mass [3] of a body and all below it; a massless one's own."""
    below = np.zeros(model.nbody, bool)
    for body in range(root, model.nbody):  # parents come first
        below[body] = body == root or (body > root and below[model.body_parentid[body]])
    weight = np.where(below, model.body_mass, 0.0)
    if weight.sum() < mujoco.mjMINVAL:
        weight = np.eye(model.nbody)[root]
    weight = _float32(weight / weight.sum())
    centers = bodies.position + rotate(bodies.rotation, _float32(model.body_ipos))
    return jnp.sum(weight[:, None] * centers, axis=0)


def _matrix(quaternion: np.ndarray) -> np.ndarray:
    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, np.asarray(quaternion, np.float64))
    return _float32(matrix.reshape(3, 3))


def _unit(vector: Array) -> Array:
    return vector / jnp.maximum(jnp.sqrt(jnp.sum(vector * vector)), 1e-12)


def _float32(values: Any) -> np.ndarray:
    return np.asarray(values, np.float32)
