"""Where rays from one eye first enter MuJoCo's primitives: convex solids, all of a kind at once.

A function takes poses in the eye's frame and returns distances [n, P] of n solids and P rays, one array for each
smooth piece of the surface (a cylinder has a side and a cap), and for each piece the affine map of a point to its
outward normal, not normalised. Distances are in lengths of the ray's direction, inf where a ray misses. Only faces
turned to the eye are hit, as with OpenGL's culling: an eye inside a solid does not see it.

For ellipsoids and cylinders the frame is turned so that one axis points to the eye. With f the direction's
components there and |o| the eye's distance in radii, the discriminant is f3^2 - (|o|^2 - 1) (f1^2 + f2^2), and for
the ends of capsules |f|^2 - |o x f|^2; unlike the usual b^2 - a c both lose no digits far away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from safejax.types import Array


class Rays(NamedTuple):
    """Directions from the eye, and the distances between which a hit counts."""

    x: Any  # array [P] or a number, as the others
    y: Any
    z: Any
    near: Any = 0.0
    far: Any = jnp.inf


class Normals(NamedTuple):
    """The outward normal at a point p of a piece: slope p + offset."""

    slope: Array  # [n, 3, 3] symmetric
    offset: Array  # [n, 3]

    def table(self) -> Array:
        """[n, 9] the slope's xx, xy, xz, yy, yz, zz, and the offset."""
        return jnp.concatenate([self.slope.reshape(-1, 9)[:, [0, 1, 2, 4, 5, 8]], self.offset], axis=1)


Hits = tuple[tuple[Array, ...], tuple[Normals, ...]]  # distances [n, P] and normals, one for each piece
PIECES = {"plane": 1, "ellipsoid": 1, "cylinder": 2, "capsule": 3, "box": 3}


def radius(kind: str, size: np.ndarray) -> np.ndarray:
    """Radii [n] of the balls around solids of one kind, `size` [n, 3]; inf of planes."""
    if kind == "plane":
        return np.full(len(size), np.inf, np.float32)
    if kind == "ellipsoid":
        return size.max(axis=1)
    if kind == "capsule":
        return size[:, 0] + size[:, 1]
    return np.linalg.norm(size[:, : 2 if kind == "cylinder" else 3], axis=1)


def along(vectors: Array, rays: Rays) -> Array:
    """Components [n, P] of the rays' directions along `vectors` [n, 3]."""
    x, y, z = vectors[:, 0:1], vectors[:, 1:2], vectors[:, 2:3]
    return x * rays.x + (y * rays.y + z * rays.z)


def _within(valid: Array, distance: Array, rays: Rays) -> Array:
    return jnp.where(valid & (distance > rays.near) & (distance < rays.far), distance, jnp.inf)


def _dot(left: Array, right: Array) -> Array:
    return jnp.sum(left * right, axis=-1, keepdims=True)


def _flat(normal: Array) -> Normals:
    return Normals(jnp.zeros((*normal.shape, 3), normal.dtype), normal)


def _axes(rotation: Array, scale: Array) -> tuple[tuple[Array, Array, Array], Array]:
    """Rows of the map from the eye's frame to the solid's, divided by `scale` [n, 3], and that map [n, 3, 3]."""
    matrix = jnp.swapaxes(rotation, -1, -2) / scale[:, :, None]
    return (matrix[:, 0], matrix[:, 1], matrix[:, 2]), matrix


def plane(rotation: Array, center: Array, size: Any, rays: Rays) -> Hits:
    """Rectangles with half sizes `size` [n, 2+], infinite where not positive; seen from both sides."""
    (x_axis, y_axis, normal), _ = _axes(rotation, jnp.ones_like(center))
    half = jnp.where(size > 0, size, jnp.inf)
    distance = _dot(normal, center) / along(normal, rays)
    inside = (jnp.abs(distance * along(x_axis, rays) - _dot(x_axis, center)) <= half[:, 0:1]) & (
        jnp.abs(distance * along(y_axis, rays) - _dot(y_axis, center)) <= half[:, 1:2]
    )
    return (_within(inside, distance, rays),), (_flat(normal),)


def ellipsoid(rotation: Array, center: Array, size: Any, rays: Rays) -> Hits:
    """Ellipsoids with semi-axes `size` [n, 3]."""
    _, matrix = _axes(rotation, size)
    eye = -jnp.sum(matrix * center[:, None, :], axis=-1)
    radius = jnp.sqrt(_dot(eye, eye)) + 1e-12
    f1, f2, f3 = (along(jnp.sum(direction[:, :, None] * matrix, axis=1), rays) for direction in _frame(eye / radius))
    across = f1 * f1 + f2 * f2
    discriminant = f3 * f3 - (radius * radius - 1.0) * across
    distance = -(radius * f3 + jnp.sqrt(jnp.maximum(discriminant, 0.0))) / (across + f3 * f3)
    slope = jnp.sum(matrix[:, :, :, None] * matrix[:, :, None, :], axis=1) * jnp.min(size, 1)[:, None, None] ** 2
    return (_within(discriminant > 0.0, distance, rays),), (Normals(slope, -_times(slope, center)),)


def cylinder(rotation: Array, center: Array, size: Any, rays: Rays) -> Hits:
    """Cylinders of radius `size[:, 0]` and half height `size[:, 1]`: side, and the cap turned to the eye."""
    radius, half = size[:, 0:1], size[:, 1:2]
    side, height, rise, f1, f3, eye = _round(
        rotation, center, jnp.concatenate([radius, radius, jnp.ones_like(half)], 1), rays
    )
    distance, valid = side
    top = jnp.where(height > 0.0, half, -half)
    cap = (top - height) / rise
    inside = (jnp.square(eye + cap * f3) + jnp.square(cap * f1) <= 1.0) & (jnp.abs(height) > half)
    distances = (
        _within(valid & (jnp.abs(height + distance * rise) <= half), distance, rays),
        _within(inside, cap, rays),
    )
    axis = rotation[:, :, 2]
    return distances, (_round_normals(axis, center), _flat(jnp.where(height > 0.0, axis, -axis)))


def capsule(rotation: Array, center: Array, size: Any, rays: Rays) -> Hits:
    """Capsules of radius `size[:, 0]`, `size[:, 1]` half the length of the straight part: side and two ends."""
    radius = size[:, 0:1]
    half = size[:, 1:2] / radius
    side, height, rise, f1, f3, eye = _round(rotation, center, jnp.broadcast_to(radius, center.shape), rays)
    distance, valid = side
    entry = height + jnp.maximum(distance, 0.0) * rise  # the end met, if any, lies on that side
    offset = height - jnp.clip(entry, -half, half)
    along_ray = eye * f3 + offset * rise
    square = f1 * f1 + f3 * f3 + rise * rise
    off_ray = eye * rise - offset * f3  # of the cross product of the end's place and the direction, f1's part apart
    discriminant = square - off_ray * off_ray - (eye * eye + offset * offset) * (f1 * f1)
    end = -(along_ray + jnp.sqrt(jnp.maximum(discriminant, 0.0))) / square
    end = _within(valid & (discriminant > 0.0), end, rays)
    distances = (
        _within(valid & (jnp.abs(entry) <= half), distance, rays),
        jnp.where(entry > half, end, jnp.inf),
        jnp.where(entry < -half, end, jnp.inf),
    )
    axis = rotation[:, :, 2]
    reach = axis * size[:, 1:2]
    identity = jnp.broadcast_to(jnp.eye(3, dtype=center.dtype), rotation.shape)
    ends = (Normals(identity, -center - reach), Normals(identity, -center + reach))
    return distances, (_round_normals(axis, center), *ends)


def box(rotation: Array, center: Array, size: Any, rays: Rays) -> Hits:
    """Boxes with half sizes `size` [n, 3]: the three faces turned to the eye."""
    rows, _ = _axes(rotation, size)
    starts, ends, normals = [], [], []
    for axis, row in enumerate(rows):
        eye = -_dot(row, center)
        direction = along(row, rays)
        inverse = 1.0 / jnp.where(jnp.abs(direction) < 1e-12, 1e-12, direction)
        middle, reach = -eye * inverse, jnp.abs(inverse)
        starts.append(middle - reach)
        ends.append(middle + reach)
        outward = rotation[:, :, axis]
        normals.append(_flat(jnp.where(eye > 0.0, outward, -outward)))
    start = jnp.maximum(jnp.maximum(starts[0], starts[1]), starts[2])
    end = jnp.minimum(jnp.minimum(ends[0], ends[1]), ends[2])
    hit = _within(start < end, start, rays)
    return tuple(jnp.where(face == start, hit, jnp.inf) for face in starts), tuple(normals)


KINDS: dict[str, Callable[[Array, Array, Any, Rays], Hits]] = {
    "plane": plane,
    "ellipsoid": ellipsoid,
    "cylinder": cylinder,
    "capsule": capsule,
    "box": box,
}
"""The kinds of solids, named as in MJCF; a sphere is an ellipsoid."""


def _frame(axis: Array) -> tuple[Array, Array, Array]:
    """Two unit vectors [n, 3] across the unit vectors `axis`, and `axis`; continuous but for one flip.

    Source: Duff et al. 2017, Building an orthonormal basis, revisited, https://jcgt.org/published/0006/01/01/.
    """
    x, y, z = axis[:, 0], axis[:, 1], axis[:, 2]
    sign = jnp.where(z >= 0.0, 1.0, -1.0)
    a = -1.0 / (sign + z)
    b = x * y * a
    first = jnp.stack([1.0 + sign * x * x * a, sign * b, -sign * x], axis=1)
    return first, jnp.stack([b, sign + y * y * a, -y], axis=1), axis


def _round(rotation: Array, center: Array, scale: Array, rays: Rays) -> tuple:
    """Entry into the infinite cylinders of unit radius in the scaled frames.

    Returns (distance, whether the line meets it), the eye's height, the direction's components along the axis,
    across, and away from the axis, and the eye's distance from the axis.
    """
    (x_axis, y_axis, z_axis), _ = _axes(rotation, scale)
    x, y, height = -_dot(x_axis, center), -_dot(y_axis, center), -_dot(z_axis, center)
    eye = jnp.sqrt(x * x + y * y) + 1e-12
    x, y = jnp.where(eye > 1e-9, x / eye, 1.0), y / eye
    f1 = along(x * y_axis - y * x_axis, rays)
    f3 = along(x * x_axis + y * y_axis, rays)
    rise = along(z_axis, rays)
    discriminant = f3 * f3 - (eye * eye - 1.0) * f1 * f1
    # a ray along the axis is as good as inside from the start
    distance = -(eye * f3 + jnp.sqrt(jnp.maximum(discriminant, 0.0))) / (f1 * f1 + f3 * f3 + 1e-20)
    return (distance, discriminant >= 0.0), height, rise, f1, f3, eye


def _round_normals(axis: Array, center: Array) -> Normals:
    slope = jnp.eye(3, dtype=axis.dtype) - axis[:, :, None] * axis[:, None, :]
    return Normals(slope, -_times(slope, center))


def _times(matrix: Array, vector: Array) -> Array:
    # not `@`: accelerators would round its inputs
    return jnp.sum(matrix * vector[..., None, :], axis=-1)
