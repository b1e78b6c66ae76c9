"""Where a planar runner's limbs are in a state, seen or imagined, so that it can be drawn without a graphics driver."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from forerun.core.dependencies import import_optional


class PlanarBody:
    """The limbs as capsules in the plane of running, of HalfCheetah or Walker2d.

    Args:
        make: Makes the task's environment.

    Raises:
        MissingDependencyError: Gymnasium or MuJoCo is not installed.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._mujoco = import_optional("mujoco", extra="worlds", purpose="a body")
        env = make()
        self.step_s = float(env.unwrapped.dt)
        """Seconds of a step."""
        self._model = env.unwrapped.model
        self._data = self._mujoco.MjData(self._model)
        env.close()
        is_capsule = self._model.geom_type == int(self._mujoco.mjtGeom.mjGEOM_CAPSULE)
        self._limbs = np.flatnonzero(is_capsule)
        self.widths: Float[np.ndarray, " limbs"] = 2 * self._model.geom_size[self._limbs, 0]
        """Metres."""

    def limbs(self, state: Float[np.ndarray, " state"], *, x: float) -> Float[np.ndarray, "limbs ends xz"]:
        """Return both ends of every limb, in metres.

        Args:
            state: As the task's; velocities don't matter.
            x: Where the torso is, which a state does not hold.
        """
        self._data.qpos[0] = x
        self._data.qpos[1:] = state[: self._model.nq - 1]
        self._mujoco.mj_kinematics(self._model, self._data)
        middle = self._data.geom_xpos[self._limbs]
        axis = self._data.geom_xmat[self._limbs].reshape(-1, 3, 3)[:, :, 2]
        half = self._model.geom_size[self._limbs, 1:2] * axis
        return np.stack([middle - half, middle + half], axis=1)[:, :, [0, 2]]
