"""Plans from two proposals side by side, such as likely ones and ones that know nothing."""

import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.control import History
from forerun.core.errors import ConfigError
from forerun.core.protocols import ActionProposal, RefiningProposal


class MixedProposal:
    """Draws a share of the sequences from another proposal; a single sequence is never the other's.

    Where the data stands before a wall, likely plans all push on. Some that nobody made there leave it.

    Args:
        first: Draws the most of them, and near given ones.
        other: Draws the others; of the same horizon and actions.
        share: Of the sequences that are the other's, in [0, 1).

    Raises:
        ConfigError: The share is out of range, or the proposals are of different sizes.
    """

    def __init__(self, first: RefiningProposal, other: ActionProposal, *, share: float) -> None:
        sizes = (first.horizon, first.action_dim), (other.horizon, other.action_dim)
        if not 0 <= share < 1 or sizes[0] != sizes[1]:
            raise ConfigError(
                f"share={share}, horizons and actions {sizes[0]} and {sizes[1]}: the share must lie in [0, 1), and the "
                "sizes must be the same"
            )
        self.horizon, self.action_dim = sizes[0]
        self._first, self._other, self._share = first, other, share

    def propose(
        self,
        history: History,
        num_samples: int,
        *,
        generator: torch.Generator,
        warm_start: Float[Tensor, "envs horizon action"] | None = None,
    ) -> Float[Tensor, "envs samples horizon action"]:
        """As :meth:`forerun.core.protocols.ActionProposal.propose`; the warm start is for the first proposal alone."""
        num_other = int(self._share * num_samples)
        drawn = self._first.propose(history, num_samples - num_other, generator=generator, warm_start=warm_start)
        if not num_other:
            return drawn
        return torch.cat([drawn, self._other.propose(history, num_other, generator=generator)], dim=1)

    def refine(
        self,
        history: History,
        actions: Float[Tensor, "envs samples horizon action"],
        *,
        level: float,
        generator: torch.Generator,
    ) -> Float[Tensor, "envs samples horizon action"]:
        """As :meth:`forerun.core.protocols.RefiningProposal.refine`, by the first proposal."""
        return self._first.refine(history, actions, level=level, generator=generator)
