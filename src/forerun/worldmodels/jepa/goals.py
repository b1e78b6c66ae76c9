"""Goals other than one picture: any of several, known quantities while others may be anything, rewards by a head."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.control import History
from forerun.core.errors import ConfigError
from forerun.core.protocols import Objective
from forerun.worldmodels.jepa.probes import LinearProbe


class AnyGoal:
    """Minus the squared distance of the last predicted embedding to the nearest of several goals.

    Args:
        goals: The same choice for all environments, or one choice for each.

    Raises:
        ConfigError: There is no goal.
    """

    def __init__(self, goals: Float[Tensor, "goals D"] | Float[Tensor, "envs goals D"]) -> None:
        self._goals = goals if goals.ndim == 3 else goals[None]
        if not self._goals.shape[1]:
            raise ConfigError("any of no goals: name at least one")

    def score(
        self,
        history: History,
        states: Float[Tensor, "envs samples horizon D"],
        actions: Float[Tensor, "envs samples horizon action"],
    ) -> Float[Tensor, "envs samples"]:
        """As :meth:`forerun.core.protocols.Objective.score`."""
        gaps = states[:, :, -1, None] - self._goals[:, None]
        return -gaps.square().sum(dim=-1).min(dim=-1).values


class ProbeGoal:
    """Minus the squared error of some quantities, read off the last predicted embedding; the others don't count.

    Errors are in units of each quantity's standard deviation where the probe was fitted.

    Args:
        probe: Reads the quantities.
        names: Of all quantities that it reads, in its order.
        wanted: The values of some of them.

    Raises:
        ConfigError: A name is unknown, or nothing is wanted.
    """

    def __init__(self, probe: LinearProbe, names: Sequence[str], wanted: Mapping[str, float]) -> None:
        unknown = set(wanted) - set(names)
        if unknown or not wanted:
            raise ConfigError(f"a goal for {sorted(wanted)}: must name one or more of {list(names)}")
        self._probe = probe
        self._columns = torch.tensor([names.index(name) for name in wanted])
        self._values = torch.tensor(list(wanted.values()), dtype=torch.float32)
        self._scale = probe.target_normalizer.scale[self._columns]

    def score(
        self,
        history: History,
        states: Float[Tensor, "envs samples horizon D"],
        actions: Float[Tensor, "envs samples horizon action"],
    ) -> Float[Tensor, "envs samples"]:
        """As :meth:`forerun.core.protocols.Objective.score`."""
        read = self._probe(states[:, :, -1])[..., self._columns]
        return -((read - self._values) / self._scale).square().sum(dim=-1)


class ReadObjective:
    """An objective that sees, before the numbers of an embedding, what a head reads off it.

    So a reward in units of the task serves a planner that knows embeddings only: "the disc at x = 150, whatever y is".
    The head may be a probe of known quantities, or one fitted to a reward that was recorded with the frames.

    Args:
        objective: Of states [quantities, embedding].
        head: Reads quantities off embeddings, such as a :class:`~forerun.worldmodels.jepa.probes.MlpProbe`.
    """

    def __init__(
        self, objective: Objective, head: Callable[[Float[Tensor, "*batch D"]], Float[Tensor, "*batch Q"]]
    ) -> None:
        self._objective, self._head = objective, head

    def score(
        self,
        history: History,
        states: Float[Tensor, "envs samples horizon D"],
        actions: Float[Tensor, "envs samples horizon action"],
    ) -> Float[Tensor, "envs samples"]:
        """As :meth:`forerun.core.protocols.Objective.score`."""
        seen = History(states=self._read(history.states), actions=history.actions)
        return self._objective.score(seen, self._read(states), actions)

    def _read(self, latents: Tensor) -> Tensor:
        return torch.cat([self._head(latents), latents], dim=-1)
