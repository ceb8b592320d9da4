"""What is drawn: the geoms of a MuJoCo model and the shapes beside them, as constant tables sorted by kind and look."""

# pyright: reportAttributeAccessIssue=false
# (the names of the compiled mujoco module are not declared)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import mujoco
import numpy as np

from safejax.envs.rendering.cameras import Bodies, compose, rotate
from safejax.envs.rendering.geometry import KINDS, PIECES
from safejax.envs.tasks.base import Shape
from safejax.types import Array

_GEOM = mujoco.mjtGeom
_KIND_OF = {int(getattr(_GEOM, f"mjGEOM_{kind.upper()}")): kind for kind in (*KINDS, "sphere")}
SHAPE_KINDS = ("sphere", "capsule", "ellipsoid", "cylinder", "box")
_PLAIN = np.array([0.0, 0.5, 64.0])  # a geom without a material
OPAQUE = 0.995  # alpha from which OpenGL's pictures take a geom as opaque


class Checker(NamedTuple):
    """A checkered plane: texture coordinates are `scale` times the plane's own, plus `shift`."""

    solid: int
    scale: np.ndarray  # [2] squares per metre
    shift: np.ndarray  # [2]
    colors: np.ndarray  # [2, 3] factors of the plane's colour; the first where the squares' numbers have an even sum


class Group(NamedTuple):
    """Solids first, ..., last - 1 of a table: of one kind and one look."""

    kind: str
    look: str  # "opaque", "translucent" or "two_sided", planes that are translucent from behind
    first: int
    last: int


class Solids(NamedTuple):
    """Tables over the N things drawn, sorted into groups."""

    groups: tuple[Group, ...]
    order: np.ndarray  # [N] their places among visible geoms followed by shapes
    body: np.ndarray  # [G] of the visible geoms, in the model's order
    position: np.ndarray  # [G, 3] in their bodies
    rotation: np.ndarray  # [G, 3, 3]
    size: np.ndarray  # [N, 3]
    rgba: np.ndarray  # [N, 4]
    material: np.ndarray  # [N, 3] emission, specular, exponent of the highlight
    label: np.ndarray  # [N] geom id, or number of geoms + index of the shape
    checkers: tuple[Checker, ...]

    @property
    def pieces(self) -> np.ndarray:
        """[pieces] the solid that each piece of a surface belongs to: of each group first pieces, second pieces, ..."""
        tiles = [np.tile(np.arange(group.first, group.last), PIECES[group.kind]) for group in self.groups]
        return np.concatenate([np.zeros(0, int), *tiles])

    @property
    def two_sided(self) -> np.ndarray:
        """[N] bool."""
        return np.concatenate([np.zeros(0, bool), *(np.full(g.last - g.first, g.look == "two_sided") for g in self.groups)])

    def poses(self, bodies: Bodies, positions: Array) -> tuple[Array, Array]:
        """World positions [N, 3] and rotations [N, 3, 3]; `positions` [n, 3] are those of the shapes."""
        turn = bodies.rotation[self.body]
        position = bodies.position[self.body] + rotate(turn, self.position)
        upright = jnp.broadcast_to(jnp.eye(3, dtype=position.dtype), (len(positions), 3, 3))
        position = jnp.concatenate([position, positions])[self.order]
        return position, jnp.concatenate([compose(turn, self.rotation), upright])[self.order]


def read(model: mujoco.MjModel, shapes: Sequence[Shape], groups: Sequence[int]) -> Solids:
    """The geoms of `model` in `groups` that are not wholly transparent, and `shapes`.

    Raises:
      ValueError: a visible geom, or a shape, of a kind that is not supported.
    """
    geoms = [geom for geom in range(model.ngeom) if model.geom_group[geom] in groups and _rgba(model, geom)[3] > 0]
    kinds = [_kind(model, geom) for geom in geoms] + [_shape_kind(shape) for shape in shapes]
    sizes = [model.geom_size[geom] for geom in geoms] + [np.asarray(shape.size) for shape in shapes]
    for index, kind in enumerate(kinds):
        if kind == "sphere":
            kinds[index], sizes[index] = "ellipsoid", np.repeat(sizes[index][:1], 3)
    color = [_rgba(model, geom) * _tint(model, geom) for geom in geoms] + [np.asarray(shape.rgba) for shape in shapes]
    looks = ["translucent" if rgba[3] < OPAQUE else "opaque" for rgba in color]
    for index, geom in enumerate(geoms):
        if looks[index] == "opaque" and _is_two_sided(model, geom):
            looks[index] = "two_sided"
    keys = [(list(KINDS).index(kind), look) for kind, look in zip(kinds, looks, strict=True)]
    order = np.array(sorted(range(len(keys)), key=lambda index: (keys[index], index)), int)
    places = {key: [place for place, index in enumerate(order) if keys[index] == key] for key in sorted(set(keys))}
    material = [_material(model, geom) for geom in geoms] + [_PLAIN] * len(shapes)
    label = [*geoms, *range(model.ngeom, model.ngeom + len(shapes))]
    turned = np.zeros((len(geoms), 9))
    for row, geom in zip(turned, geoms, strict=True):
        mujoco.mju_quat2Mat(row, model.geom_quat[geom])

    def table(rows: list[Any], width: int) -> np.ndarray:
        return np.asarray(rows, np.float32).reshape(-1, width)[order]

    return Solids(
        groups=tuple(
            Group(list(KINDS)[kind], look, found[0], found[-1] + 1) for (kind, look), found in places.items()
        ),
        order=order,
        body=model.geom_bodyid[geoms],
        position=np.asarray(model.geom_pos[geoms], np.float32),
        rotation=np.asarray(turned.reshape(-1, 3, 3), np.float32),
        size=table(sizes, 3),
        rgba=table(color, 4),
        material=table(material, 3),
        label=np.asarray(label, np.int32)[order],
        checkers=tuple(
            _checker(model, geoms[place], index)
            for index, place in enumerate(order)
            if place < len(geoms) and _checker_colors(model, geoms[place]) is not None
        ),
    )


def _kind(model: mujoco.MjModel, geom: int) -> str:
    kind = _KIND_OF.get(int(model.geom_type[geom]))
    if kind is None:
        found = _GEOM(model.geom_type[geom]).name.removeprefix("mjGEOM_").lower()
        name, group = model.geom(geom).name, model.geom_group[geom]
        raise ValueError(
            f"geom {geom} {name!r} (group {group}) is a {found}; the ray caster draws {', '.join(_KIND_OF.values())}:"
            " leave its group out of groups, or draw with mujoco.Renderer"
        )
    return kind


def _shape_kind(shape: Shape) -> str:
    if shape.kind not in SHAPE_KINDS:
        raise ValueError(f"shape kind is {shape.kind!r}, expected one of {', '.join(SHAPE_KINDS)}")
    return shape.kind


def _rgba(model: mujoco.MjModel, geom: int) -> np.ndarray:
    rgba, material = model.geom_rgba[geom], model.geom_matid[geom]
    default = np.array_equal(rgba, np.array([0.5, 0.5, 0.5, 1.0], np.float32))
    return model.mat_rgba[material] if default and material >= 0 else rgba


def _material(model: mujoco.MjModel, geom: int) -> np.ndarray:
    material = model.geom_matid[geom]
    if material < 0:
        return _PLAIN
    return np.array([model.mat_emission[material], model.mat_specular[material], 128 * model.mat_shininess[material]])


def _is_two_sided(model: mujoco.MjModel, geom: int) -> bool:
    """A plane; but of the world's, those that face up are floors."""
    if model.geom_type[geom] != _GEOM.mjGEOM_PLANE:
        return False
    normal = np.zeros(3)
    mujoco.mju_rotVecQuat(normal, np.array([0.0, 0.0, 1.0]), model.geom_quat[geom])
    return not (model.body_weldid[model.geom_bodyid[geom]] == 0 and normal[2] > 0.7)


def texture(model: mujoco.MjModel, index: int) -> np.ndarray:
    """[height, width, 3] in [0, 1]; the six faces of a cube lie below one another."""
    shape = model.tex_height[index], model.tex_width[index], model.tex_nchannel[index]
    start = model.tex_adr[index]
    return model.tex_data[start : start + np.prod(shape, dtype=int)].reshape(shape)[..., :3] / 255.0


def _texture_of(model: mujoco.MjModel, geom: int) -> int:
    material = model.geom_matid[geom]
    return -1 if material < 0 else int(model.mat_texid[material, mujoco.mjtTextureRole.mjTEXROLE_RGB])


def _checker_colors(model: mujoco.MjModel, geom: int) -> np.ndarray | None:
    """[2, 3] the two colours of a plane's builtin checker; None for any other texture, or none."""
    index = _texture_of(model, geom)
    if model.geom_type[geom] != _GEOM.mjGEOM_PLANE or index < 0:
        return None
    if model.tex_type[index] != mujoco.mjtTexture.mjTEXTURE_2D:
        return None
    image = texture(model, index)
    rows, columns = image.shape[0] // 2, image.shape[1] // 2
    quarters = [
        np.median(image[row : row + rows, column : column + columns].reshape(-1, 3), axis=0)
        for row in (0, rows)
        for column in (0, columns)
    ]
    checkered = np.allclose(quarters[0], quarters[3]) and np.allclose(quarters[1], quarters[2])
    return np.array(quarters[:2]) if checkered and not np.allclose(quarters[0], quarters[1]) else None


def _tint(model: mujoco.MjModel, geom: int) -> np.ndarray:
    """[4] the mean of a texture that is not drawn as such."""
    index = _texture_of(model, geom)
    if index < 0 or _checker_colors(model, geom) is not None:
        return np.ones(4)
    return np.array([*texture(model, index).reshape(-1, 3).mean(axis=0), 1.0])


def _checker(model: mujoco.MjModel, geom: int, solid: int) -> Checker:
    colors, material = _checker_colors(model, geom), model.geom_matid[geom]
    size, repeat = model.geom_size[geom, :2], model.mat_texrepeat[material]
    finite = size > 0
    length = np.where(finite, 2 * size, 2.0)  # metres of one unit of the texture's coordinate
    repeat = np.where(repeat > 0, repeat, 1.0)
    if model.mat_texuniform[material]:
        repeat = repeat * np.where(finite, size, 1.0)
    scale = 2 * repeat / length * np.array([1.0, -1.0])  # a texture has two squares a side; its rows go down
    # a finite plane's texture starts at its corner, an infinite one's half a texture beside its centre
    infinite = not finite.all()
    corner = np.where(finite, repeat * np.array([0.5, 0.5]), 0.0) - (0.5 if infinite else 0.0)
    return Checker(solid, np.float32(scale), np.float32(2 * corner), np.float32(colors))
