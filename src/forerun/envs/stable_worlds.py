"""Worlds of ``stable-worldmodel`` side by side: one of its environments for each, drawn only when asked.

Pixels are as its own ``World`` makes them (drawn at the environment's size, reduced by Pillow's bilinear filter), and
states are set as its evaluation sets them, so that a model trained on these pictures can be scored there.
"""

import importlib
import os
import warnings
from types import ModuleType
from typing import Any, Final

import numpy as np
from jaxtyping import Float, UInt8

from forerun.core.dependencies import import_optional

EXTRA: Final = "stable-worlds"
_PURPOSE: Final = "a world of stable-worldmodel"
_DRAWING: Final = ("gymnasium", "pygame", "pymunk", "shapely", "cv2", "PIL")
"""Packages that its environments import without declaring all of them."""
_MISSING_OPERATORS: Final = ("nms", "qnms")


def import_stable_worldmodel() -> ModuleType:
    """Import ``stable_worldmodel``; its environments are then known to Gymnasium. Takes some seconds the first time.

    Effects:
        Sets ``PYGAME_HIDE_SUPPORT_PROMPT``, which keeps pygame from greeting on the standard output, unless it is set.

    Raises:
        MissingDependencyError: It, or a package that it draws with, is not installed.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    for package in _DRAWING:
        import_optional(package, extra=EXTRA, purpose=_PURPOSE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about families of environments that are not installed
        _import_torchvision()
        return import_optional("stable_worldmodel", extra=EXTRA, purpose=_PURPOSE)


def _import_torchvision() -> None:
    """Import torchvision even where its compiled operators are of another build of torch than the one installed.

    It then fails at the first of them, though nothing here calls it: declaring the operators is enough.
    """
    try:
        import_optional("torchvision", extra=EXTRA, purpose=_PURPOSE)
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        library = importlib.import_module("torch.library").Library("torchvision", "DEF")
        for name in _MISSING_OPERATORS:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
        importlib.import_module("torchvision")


_KEPT: list[Any] = []
"""Declarations of operators last as long as the object that made them."""


class StableWorlds:
    """Environments of one kind, stepped in turn.

    Args:
        env_id: Gymnasium's name of the environment, such as ``swm/PushT-v1``.
        num_worlds: How many.

    Raises:
        MissingDependencyError: See :func:`import_stable_worldmodel`.
    """

    def __init__(self, env_id: str, num_worlds: int) -> None:
        import_stable_worldmodel()
        gymnasium = import_optional("gymnasium", extra=EXTRA, purpose=_PURPOSE)
        self.envs: list[Any] = [gymnasium.make(env_id, render_mode="rgb_array").unwrapped for _ in range(num_worlds)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about types that its environments leave to Gymnasium
            for env in self.envs:
                env.reset(seed=0)

    def step(self, actions: Float[np.ndarray, "N A"]) -> None:
        """Act once in every world."""
        for env, action in zip(self.envs, actions, strict=True):
            env.step(np.asarray(action, np.float32))

    def render(self, resolution: int) -> UInt8[np.ndarray, "N resolution resolution 3"]:
        """Return what the camera sees of every world."""
        return np.stack([reduced(env.render(), resolution) for env in self.envs])


def reduced(
    frame: UInt8[np.ndarray, "height width 3"], resolution: int
) -> UInt8[np.ndarray, "resolution resolution 3"]:
    """Return a frame at another size, by Pillow's bilinear filter."""
    image = import_optional("PIL.Image", extra=EXTRA, purpose="reducing frames")
    small = image.fromarray(frame).resize((resolution, resolution), image.Resampling.BILINEAR)
    return np.asarray(small, np.uint8)
