"""What is drawn: geoms and sites of a MuJoCo model and shapes beside them, as constant tables by kind and look."""

# pyright: reportAttributeAccessIssue=false
# (the names of the compiled mujoco module are not declared)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import mujoco
import numpy as np

from safejax.envs.rendering.cameras import Bodies, compose, rotate
from safejax.envs.rendering.geometry import KINDS, PIECES, radius
from safejax.envs.tasks.base import Shape
from safejax.types import Array

_GEOM = mujoco.mjtGeom
_KIND_OF = {int(getattr(_GEOM, f"mjGEOM_{kind.upper()}")): kind for kind in (*KINDS, "sphere")}
_PLANE = int(_GEOM.mjGEOM_PLANE)
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
    order: np.ndarray  # [N] their places among visible geoms, sites and shapes, in that order
    body: np.ndarray  # [G] of the visible geoms and sites
    position: np.ndarray  # [G, 3] in their bodies
    rotation: np.ndarray  # [G, 3, 3]
    size: np.ndarray  # [N, 3]
    rgba: np.ndarray  # [N, 4]
    material: np.ndarray  # [N, 3] emission, specular, exponent of the highlight
    label: np.ndarray  # [N] geom id; number of geoms + index of a shape; -2 - site id
    checkers: tuple[Checker, ...]

    @property
    def radius(self) -> np.ndarray:
        """[N] of the balls around the solids, inf of planes."""
        parts = [radius(group.kind, self.size[group.first : group.last]) for group in self.groups]
        return np.concatenate([np.zeros(0, np.float32), *parts])

    @property
    def pieces(self) -> np.ndarray:
        """[pieces] the solid that each piece of a surface belongs to: of each group first pieces, second pieces, ..."""
        tiles = [np.tile(np.arange(group.first, group.last), PIECES[group.kind]) for group in self.groups]
        return np.concatenate([np.zeros(0, int), *tiles])

    @property
    def looks(self) -> np.ndarray:
        """[pieces] the look of each, see Group."""
        counts = [PIECES[group.kind] * (group.last - group.first) for group in self.groups]
        return np.repeat(np.array([group.look for group in self.groups], str), counts)

    def poses(self, bodies: Bodies, positions: Array) -> tuple[Array, Array]:
        """World positions [N, 3] and rotations [N, 3, 3]; `positions` [n, 3] are those of the shapes."""
        turn = bodies.rotation[self.body]
        position = bodies.position[self.body] + rotate(turn, self.position)
        upright = jnp.broadcast_to(jnp.eye(3, dtype=position.dtype), (len(positions), 3, 3))
        position = jnp.concatenate([position, positions])[self.order]
        return position, jnp.concatenate([compose(turn, self.rotation), upright])[self.order]


class _Drawn(NamedTuple):
    """One thing to draw."""

    kind: str
    size: np.ndarray  # [3]
    rgba: np.ndarray  # [4]
    material: np.ndarray  # [3]
    label: int
    body: int = 0
    position: Any = (0.0, 0.0, 0.0)
    quaternion: Any = (1.0, 0.0, 0.0, 0.0)
    two_sided: bool = False
    checker: Checker | None = None

    @property
    def look(self) -> str:
        return "translucent" if self.rgba[3] < OPAQUE else "two_sided" if self.two_sided else "opaque"


def read(model: mujoco.MjModel, shapes: Sequence[Shape], groups: Sequence[int]) -> Solids:
    """The geoms and sites of `model` in `groups` that are not wholly transparent, and `shapes`.

    Raises:
      ValueError: a visible geom, or a shape, of a kind that is not supported.
    """
    fixed = [_geom(model, geom) for geom in range(model.ngeom) if model.geom_group[geom] in groups]
    fixed += [_site(model, site) for site in range(model.nsite) if model.site_group[site] in groups]
    fixed = [drawn for drawn in fixed if drawn is not None]
    placed = [_shape(shape, model.ngeom + index) for index, shape in enumerate(shapes)]
    drawn = [
        each if each.kind != "sphere" else each._replace(kind="ellipsoid", size=np.repeat(each.size[:1], 3))
        for each in fixed + placed
    ]
    keys = [(list(KINDS).index(each.kind), each.look) for each in drawn]
    order = sorted(range(len(drawn)), key=lambda index: (keys[index], index))
    drawn = [drawn[index] for index in order]
    edges = {key: [place for place, index in enumerate(order) if keys[index] == key] for key in sorted(set(keys))}
    turned = np.zeros((len(fixed), 9))
    for row, each in zip(turned, fixed, strict=True):
        mujoco.mju_quat2Mat(row, np.asarray(each.quaternion, np.float64))

    def table(rows: list[Any], *shape: int) -> np.ndarray:
        return np.asarray(rows, np.float32).reshape(-1, *shape)

    return Solids(
        groups=tuple(Group(list(KINDS)[kind], look, at[0], at[-1] + 1) for (kind, look), at in edges.items()),
        order=np.array(order, int),
        body=np.array([each.body for each in fixed], int),
        position=table([each.position for each in fixed], 3),
        rotation=table(list(turned), 3, 3),
        size=table([each.size for each in drawn], 3),
        rgba=table([each.rgba for each in drawn], 4),
        material=table([each.material for each in drawn], 3),
        label=np.array([each.label for each in drawn], np.int32),
        checkers=tuple(
            each.checker._replace(solid=index) for index, each in enumerate(drawn) if each.checker is not None
        ),
    )


def _geom(model: mujoco.MjModel, geom: int) -> _Drawn | None:
    rgba, material = _look(model, model.geom_rgba[geom], model.geom_matid[geom])
    if rgba[3] == 0:
        return None
    image = _texture_of(model, model.geom_matid[geom])
    is_plane = model.geom_type[geom] == _PLANE
    colors = None if image is None or not is_plane else _checker_colors(image)
    if image is not None and colors is None:
        rgba = rgba * np.array([*image.reshape(-1, 3).mean(axis=0), 1.0])
    return _Drawn(
        _kind(model, geom),
        model.geom_size[geom],
        rgba,
        material,
        geom,
        model.geom_bodyid[geom],
        model.geom_pos[geom],
        model.geom_quat[geom],
        is_plane and not _is_floor(model, geom),
        None if colors is None else _checker(model, geom, colors),
    )


def _site(model: mujoco.MjModel, site: int) -> _Drawn | None:
    rgba, material = _look(model, model.site_rgba[site], model.site_matid[site])
    if rgba[3] == 0:
        return None
    return _Drawn(
        _KIND_OF[int(model.site_type[site])],
        model.site_size[site],
        rgba,
        material,
        -2 - site,
        model.site_bodyid[site],
        model.site_pos[site],
        model.site_quat[site],
    )


def _shape(shape: Shape, label: int) -> _Drawn:
    if shape.kind not in SHAPE_KINDS:
        raise ValueError(f"shape kind is {shape.kind!r}, expected one of {', '.join(SHAPE_KINDS)}")
    return _Drawn(shape.kind, np.asarray(shape.size), np.asarray(shape.rgba), _PLAIN, label)


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


def _look(model: mujoco.MjModel, rgba: np.ndarray, material: int) -> tuple[np.ndarray, np.ndarray]:
    """The colour [4] and the material [3] of what has this rgba and material id."""
    if material < 0:
        return rgba, _PLAIN
    if np.array_equal(rgba, np.array([0.5, 0.5, 0.5, 1.0], np.float32)):  # not given
        rgba = model.mat_rgba[material]
    shine = model.mat_specular[material], 128 * model.mat_shininess[material]
    return rgba, np.array([model.mat_emission[material], *shine])


def _is_floor(model: mujoco.MjModel, geom: int) -> bool:
    normal = np.zeros(3)
    mujoco.mju_rotVecQuat(normal, np.array([0.0, 0.0, 1.0]), model.geom_quat[geom])
    return bool(model.body_weldid[model.geom_bodyid[geom]] == 0 and normal[2] > 0.7)


def texture(model: mujoco.MjModel, index: int) -> np.ndarray:
    """[height, width, 3] in [0, 1]; the six faces of a cube lie below one another."""
    shape = model.tex_height[index], model.tex_width[index], model.tex_nchannel[index]
    start = model.tex_adr[index]
    return model.tex_data[start : start + np.prod(shape, dtype=int)].reshape(shape)[..., :3] / 255.0


def _texture_of(model: mujoco.MjModel, material: int) -> np.ndarray | None:
    index = -1 if material < 0 else int(model.mat_texid[material, int(mujoco.mjtTextureRole.mjTEXROLE_RGB)])
    return None if index < 0 else texture(model, index)


def _checker_colors(image: np.ndarray) -> np.ndarray | None:
    """[2, 3] the two colours of a builtin checker; None for any other texture."""
    rows, columns = image.shape[0] // 2, image.shape[1] // 2
    quarters = [
        np.median(image[row : row + rows, column : column + columns].reshape(-1, 3), axis=0)
        for row in (0, rows)
        for column in (0, columns)
    ]
    checkered = np.allclose(quarters[0], quarters[3]) and np.allclose(quarters[1], quarters[2])
    return np.array(quarters[:2]) if checkered and not np.allclose(quarters[0], quarters[1]) else None


def _checker(model: mujoco.MjModel, geom: int, colors: np.ndarray) -> Checker:
    material = model.geom_matid[geom]
    size, repeat = model.geom_size[geom, :2], model.mat_texrepeat[material]
    finite = size > 0
    length = np.where(finite, 2 * size, 2.0)  # metres of one unit of the texture's coordinate
    repeat = np.where(repeat > 0, repeat, 1.0)
    if model.mat_texuniform[material]:
        repeat = repeat * np.where(finite, size, 1.0)
    scale = 2 * repeat / length * np.array([1.0, -1.0])  # a texture has two squares a side; its rows go down
    # a finite plane's texture starts at its corner, an infinite one's half a texture beside its centre
    shift = np.where(finite, repeat, 0.0) - (0.0 if finite.all() else 1.0)
    return Checker(0, scale.astype(np.float32), shift.astype(np.float32), colors.astype(np.float32))
