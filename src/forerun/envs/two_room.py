"""Two-Room: a disc in two rooms that a wall with a door divides, many worlds side by side, in NumPy.

A world is a square of 224 units. An action in [-1, 1] in each direction moves the disc by at most five units, and walls
stop it. Of each collision only the direction into the wall is lost, so a disc slides along. For collisions the disc
counts as its bounding square. Pixels are drawn on demand: an agent that looks at every fifth state pays for these only.

Shape letters: N worlds, R pixels of a side.
"""

from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, UInt8

from forerun.core.errors import ConfigError

SIZE: Final = 224.0
"""Units of a side."""
SPEED: Final = 5.0
"""Units that a full action moves the disc in one step, in each direction."""
SUCCESS_RADIUS: Final = 16.0
"""A goal is reached at this distance, in units."""
WALL_X: Final = SIZE / 2
"""Where the middle of the wall is."""
_WALL_HALF_WIDTH: Final = 5.0
_TOUCH: Final = 1e-6
"""Units by which a disc that touches a wall may overlap it after rounding; it is beside the wall, not in it."""
STATE_NAMES: Final = ("x", "y")
ACTION_DIM: Final = 2

Rgb = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """How worlds look and are built: the factors of variation.

    Attributes:
        agent_rgb: Colour of the disc.
        wall_rgb: Colour of the wall.
        floor_rgb: Colour of the rooms.
        agent_radius: Of the disc, in units.
        door_y: Middle of the door, in units from the top.
        door_half_width: Half its width, in units; wider than the disc.
    """

    agent_rgb: Rgb = (220, 50, 47)
    wall_rgb: Rgb = (40, 44, 52)
    floor_rgb: Rgb = (238, 238, 238)
    agent_radius: float = 10.0
    door_y: float = 70.0
    door_half_width: float = 30.0

    def __post_init__(self) -> None:
        """Check that the disc fits through the door and the door into the wall.

        Raises:
            ConfigError: It doesn't, or a colour is none.
        """
        if not 2 <= self.agent_radius < self.door_half_width:
            raise ConfigError(
                f"agent_radius={self.agent_radius}: must lie in [2, door_half_width={self.door_half_width}), or the "
                "disc can't pass the door"
            )
        if not self.door_half_width <= self.door_y <= SIZE - self.door_half_width:
            raise ConfigError(
                f"door_y={self.door_y}: must lie in [{self.door_half_width}, {SIZE - self.door_half_width}], inside "
                "the wall"
            )
        for name in ("agent_rgb", "wall_rgb", "floor_rgb"):
            if not all(0 <= level <= 255 for level in getattr(self, name)):
                raise ConfigError(f"{name}={getattr(self, name)}: must be three numbers in [0, 255]")


def varied(look: Look, factors: frozenset[str], rng: np.random.Generator) -> Look:
    """Return a look with some factors drawn anew.

    Args:
        look: Where the other factors come from.
        factors: Of ``color`` (of the disc), ``size`` and ``door``.
        rng: Draws.

    Raises:
        ConfigError: A factor is unknown.
    """
    if unknown := factors - {"color", "size", "door"}:
        raise ConfigError(f"factors of variation {sorted(unknown)}: known are color, size and door")
    if "color" in factors:
        levels = rng.integers(0, 200, 3)
        look = replace(look, agent_rgb=(int(levels[0]), int(levels[1]), int(levels[2])))
    if "size" in factors:
        look = replace(look, agent_radius=float(rng.uniform(7, 15)))
    if "door" in factors:
        look = replace(look, door_y=float(rng.uniform(40, SIZE - 40)))
    return look


@dataclass(slots=True)
class TwoRoom:
    """Worlds that are stepped together. States and looks may be assigned: that is what a teleport is.

    Attributes:
        looks: How each world looks.
        positions: Of each disc, [N, 2] in units, x to the right and y down.
        action_map: What each world makes of an action, [N, 2, 2]: the identity unless its rules were changed.
    """

    looks: list[Look]
    positions: Float[np.ndarray, "N 2"]
    action_map: Float[np.ndarray, "N 2 2"] = field(default_factory=lambda: np.empty((0, 2, 2)))

    def __post_init__(self) -> None:
        self.positions = np.array(self.positions, dtype=np.float64)
        if not len(self.action_map):
            self.action_map = np.tile(np.eye(2), (len(self.looks), 1, 1))
        if self.positions.shape != (len(self.looks), 2):
            raise ConfigError(
                f"positions of shape {list(self.positions.shape)}: must be [{len(self.looks)}, 2], one for each world"
            )

    @property
    def states(self) -> Float[np.ndarray, "N 2"]:
        """What is known of each world: where its disc is."""
        return self.positions

    def step(self, actions: Float[np.ndarray, "N 2"]) -> None:
        """Move every disc once.

        Args:
            actions: Clipped to [-1, 1] first.

        Raises:
            ConfigError: An action is not a number, or there is not one for each world.
        """
        if actions.shape != self.positions.shape or not np.isfinite(actions).all():
            raise ConfigError(
                f"actions of shape {list(actions.shape)}, finite: {bool(np.isfinite(actions).all())}: must be finite "
                f"numbers, {list(self.positions.shape)}"
            )
        moves = SPEED * np.einsum("nij,nj->ni", self.action_map, np.clip(actions, -1, 1))
        radius = self._radii()
        x, y = self.positions.T
        new_x = np.clip(x + moves[:, 0], radius, SIZE - radius)
        reach = _WALL_HALF_WIDTH + radius
        is_blocked = _overlaps_wall(new_x, radius) & ~self._is_in_gap(y)
        new_x = np.where(is_blocked, np.where(x < WALL_X, WALL_X - reach, WALL_X + reach), new_x)
        new_y = np.clip(y + moves[:, 1], radius, SIZE - radius)
        door_y, half = self._gaps()
        new_y = np.where(_overlaps_wall(new_x, radius), np.clip(new_y, door_y - half, door_y + half), new_y)
        self.positions = np.stack([new_x, new_y], axis=1)

    def render(self, resolution: int) -> UInt8[np.ndarray, "N R R 3"]:
        """Draw every world, edges smoothed over a pixel.

        Args:
            resolution: R, at least 8.
        """
        return np.stack(
            [_drawn(look, position, resolution) for look, position in zip(self.looks, self.positions, strict=True)]
        )

    def _radii(self) -> Float[np.ndarray, " N"]:
        return np.array([look.agent_radius for look in self.looks])

    def _gaps(self) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
        """Return the middles of the doors, and how far from there a disc's centre may be in them."""
        half = np.array([look.door_half_width for look in self.looks]) - self._radii()
        return np.array([look.door_y for look in self.looks]), half

    def _is_in_gap(self, y: Float[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
        door_y, half = self._gaps()
        return np.abs(y - door_y) <= half + _TOUCH


def is_free(look: Look, position: Float[np.ndarray, " 2"]) -> bool:
    """Return whether a disc may be at a position: inside the square and not in the wall."""
    radius = look.agent_radius
    is_inside = bool(((position >= radius) & (position <= SIZE - radius)).all())
    return is_inside and (
        not is_in_wall(look, position) or abs(position[1] - look.door_y) <= look.door_half_width - radius + _TOUCH
    )


def is_in_wall(look: Look, position: Float[np.ndarray, " 2"]) -> bool:
    """Return whether a disc overlaps the wall's width, where only the door has room for it."""
    return bool(_overlaps_wall(position[:1], np.array([look.agent_radius]))[0])


def _overlaps_wall(x: Float[np.ndarray, " N"], radius: Float[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
    return np.abs(x - WALL_X) < _WALL_HALF_WIDTH + radius - _TOUCH


def free_position(look: Look, rng: np.random.Generator) -> Float[np.ndarray, " 2"]:
    """Draw a position evenly from where a disc may be."""
    while True:
        position = rng.uniform(0, SIZE, 2)
        if is_free(look, position):
            return position


def _drawn(look: Look, position: Float[np.ndarray, " 2"], resolution: int) -> UInt8[np.ndarray, "R R 3"]:
    unit = SIZE / resolution
    centres = (np.arange(resolution) + 0.5) * unit
    floor, wall, agent = (np.array(rgb, np.float64) for rgb in (look.floor_rgb, look.wall_rgb, look.agent_rgb))
    across = np.clip((_WALL_HALF_WIDTH - np.abs(centres - WALL_X)) / unit + 0.5, 0, 1)
    along = np.clip((np.abs(centres - look.door_y) - look.door_half_width) / unit + 0.5, 0, 1)
    wall_share = (along[:, None] * across[None, :])[..., None]
    image = floor + wall_share * (wall - floor)
    distance = np.hypot(centres[None, :] - position[0], centres[:, None] - position[1])
    agent_share = np.clip((look.agent_radius - distance) / unit + 0.5, 0, 1)[..., None]
    return np.rint(image + agent_share * (agent - image)).astype(np.uint8)
