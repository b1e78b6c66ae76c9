"""The seams between subsystems, as structural types."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from forerun.core.rows import Rows

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from forerun.core.control import History, Plan
    from forerun.core.selection import Selection


class LanguageModel(Protocol):
    """A decoder with a key/value cache of its own, driven by rows of tokens.

    Attributes:
        num_sequences: Sequences the cache holds.
        capacity: Slots per sequence.
        vocab_ids: Target ids of the columns of the logits, ascending; ``None``: column i is id i.
    """

    num_sequences: int
    capacity: int
    vocab_ids: np.ndarray | None

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        ...

    def forward(self, rows: Rows, *, logit_rows: np.ndarray | None = None) -> np.ndarray:
        """Run rows, write their keys and values to their slots, and return logits.

        The logits are float32 ``[len(logit_rows), vocab_size]``; ``None`` asks for every row's.

        Slots at and beyond those written keep what they had: rolling back a sequence is to overwrite it.
        """
        ...

    def move_slots(self, sequence: int, sources: list[int], targets: list[int]) -> None:
        """Copy cached keys and values of a sequence between slots (all sources are read before a target is written)."""
        ...

    def read_states(self, sequence: int, start: int, stop: int, *, layer_ids: Sequence[int]) -> np.ndarray:
        """Return cached keys (with their rotary positions) and values of neighbouring slots.

        Args:
            sequence: Which sequence.
            start: First slot.
            stop: Slot after the last.
            layer_ids: Of which layers, in which order.

        Returns:
            float32 ``[stop - start, len(layer_ids), 2, num_kv_heads, head_dim]``: keys, then values.

        Raises:
            RequestError: The sequence or a slot lies outside the cache.
        """
        ...

    def write_states(self, sequence: int, start: int, states: np.ndarray) -> None:
        """Put keys and values into neighbouring slots of every layer; their positions are their slots.

        Args:
            sequence: Which sequence.
            start: First slot.
            states: float32 ``[num_slots, num_layers, 2, num_kv_heads, head_dim]``, as :meth:`read_states` gives.

        Raises:
            RequestError: The sequence or a slot lies outside the cache.
        """
        ...


class Pending(Protocol):
    """Results that may still be computed."""

    def result(self) -> np.ndarray:
        """Wait for the results, and return a copy; the same when asked again."""
        ...


@runtime_checkable
class TokenModel(LanguageModel, Protocol):
    """A language model that runs while the host goes on, and can choose tokens where its logits are."""

    def launch(
        self, rows: Rows, selection: "Selection | None" = None, *, logit_rows: np.ndarray | None = None
    ) -> Pending:
        """Begin what :meth:`LanguageModel.forward` does, and choose the token that follows each row asked for.

        Args:
            rows: As for :meth:`LanguageModel.forward`.
            selection: How the token of each row of ``logit_rows`` is chosen; ``None``: logits are wanted.
            logit_rows: int64 indices; ``None`` for all rows.

        Returns:
            int64 target ids ``[len(logit_rows)]``, -1 where the largest logit is not finite; or logits, as
            :meth:`LanguageModel.forward` gives.
        """
        ...


@runtime_checkable
class DraftVerifier(TokenModel, Protocol):
    """A token model that can verify drafts by the rule of rejection: :meth:`Selection.of_drafts` is no less to it.

    Attributes:
        verifies_drafts: True.
    """

    verifies_drafts: bool


@runtime_checkable
class SlotCopier(LanguageModel, Protocol):
    """A language model that can copy what is cached from sequence to sequence where it lies."""

    def copy_slots(self, source: int, target: int, start: int, stop: int) -> None:
        """Copy all that is cached in neighbouring slots of a sequence to the same slots of another.

        Args:
            source: Sequence to copy from.
            target: Sequence to copy to.
            start: First slot.
            stop: Slot after the last.

        Raises:
            RequestError: A sequence or a slot lies outside the cache.
        """
        ...


class Dynamics(Protocol):
    """A world model: what follows when actions are taken. Shapes as in :mod:`forerun.core.control`.

    Attributes:
        action_dim: Numbers of an action.
    """

    action_dim: int

    def rollout(
        self,
        history: "History",
        actions: "Float[Tensor, 'envs samples horizon action']",
        *,
        generator: "torch.Generator",
    ) -> "Float[Tensor, 'envs samples horizon state']":
        """Predict the state after each action; the first action is taken in the present.

        Mutates nothing but the generator, and that only if the prediction is a draw. A row of the result depends on
        that row's history and actions (and, for a draw, on the generator), not on the other rows.

        Args:
            history: What was seen of each environment.
            actions: Candidates; they may lie outside the box of actions, then the prediction may be anything finite.
            generator: Of every number drawn.
        """
        ...


class Objective(Protocol):
    """What is wanted of a future, as a number."""

    def score(
        self,
        history: "History",
        states: "Float[Tensor, 'envs samples horizon state']",
        actions: "Float[Tensor, 'envs samples horizon action']",
    ) -> "Float[Tensor, 'envs samples']":
        """Return a score for every candidate, higher is better; pure.

        Args:
            history: What was seen before.
            states: Predicted states, after each action.
            actions: The candidates.

        Returns:
            Finite numbers; at or below :data:`~forerun.core.control.INFEASIBLE` only for a broken hard constraint.
        """
        ...


class ActionProposal(Protocol):
    """Likely action sequences, given a history.

    Attributes:
        horizon: Actions of a sequence.
        action_dim: Numbers of an action.
    """

    horizon: int
    action_dim: int

    def propose(
        self,
        history: "History",
        num_samples: int,
        *,
        generator: "torch.Generator",
        warm_start: "Float[Tensor, 'envs horizon action'] | None" = None,
    ) -> "Float[Tensor, 'envs samples horizon action']":
        """Draw sequences for each environment; mutates nothing but the generator.

        Args:
            history: What was seen of each environment.
            num_samples: Sequences for each.
            generator: Of every number drawn.
            warm_start: Sequences to stay close to, for a proposal that can; others ignore it.
        """
        ...


@runtime_checkable
class RefiningProposal(ActionProposal, Protocol):
    """A proposal that can also draw near given sequences."""

    def refine(
        self,
        history: "History",
        actions: "Float[Tensor, 'envs samples horizon action']",
        *,
        level: float,
        generator: "torch.Generator",
    ) -> "Float[Tensor, 'envs samples horizon action']":
        """Draw a likely sequence near each given one; mutates nothing but the generator.

        Args:
            history: What was seen of each environment.
            actions: The given sequences.
            level: How far it may go, in (0, 1]: 1 forgets where it began.
            generator: Of every number drawn.
        """
        ...


class JointModel(Protocol):
    """Likely action sequences together with the states that follow them."""

    def draw(
        self, history: "History", num_samples: int, *, generator: "torch.Generator"
    ) -> "tuple[Float[Tensor, 'envs samples horizon action'], Float[Tensor, 'envs samples horizon state']]":
        """Draw actions and the states after each of them; mutates nothing but the generator.

        Args:
            history: What was seen of each environment.
            num_samples: Draws for each.
            generator: Of every number drawn.
        """
        ...


class Planner(Protocol):
    """Chooses actions for several environments at once. It keeps no state: what it may reuse is handed to it."""

    def plan(
        self,
        history: "History",
        *,
        generator: "torch.Generator",
        warm_start: "Float[Tensor, 'envs horizon action'] | None" = None,
        is_late: Callable[[], bool] = lambda: False,
    ) -> "Plan":
        """Return the best plan found; mutates nothing but the generator.

        Args:
            history: What was seen of each environment.
            generator: Of every number drawn; equal generators give equal plans.
            warm_start: A guess, such as the last plan's :meth:`~forerun.core.control.Plan.shifted`.
            is_late: Asked between iterations; once true, the best plan so far is returned. The first iteration is
                always done.

        Raises:
            ObjectiveError: The objective gave another shape, or a value that is not a number.
        """
        ...
