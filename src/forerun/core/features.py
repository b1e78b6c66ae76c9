"""The seam of a draft that reads hidden states: who gives them, and who takes them."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from forerun.core.protocols import LanguageModel


@runtime_checkable
class FeatureSource(LanguageModel, Protocol):
    """A language model that can keep hidden states: the residual stream as it enters chosen layers, slot by slot.

    One that is not asked keeps nothing, and its passes cost what they did.
    """

    def keep_features(self, layer_ids: Sequence[int]) -> None:
        """Keep, from the next pass on, what enters these layers; asked for the same again, what is kept stays.

        Raises:
            ConfigError: The model has no such layer, or one is named twice.
        """
        ...

    def read_features(self, sequence: int, start: int, stop: int) -> np.ndarray:
        """Return what was kept of neighbouring slots.

        Args:
            sequence: Which sequence.
            start: First slot.
            stop: Slot after the last.

        Returns:
            float32 ``[stop - start, num_kept_layers, hidden_size]``; no layers where none are kept.

        Raises:
            RequestError: The sequence or a slot lies outside the cache.
        """
        ...

    def write_features(self, sequence: int, start: int, features: np.ndarray) -> None:
        """Put into neighbouring slots what :meth:`read_features` gave of others.

        Raises:
            RequestError: The sequence or a slot lies outside the cache.
        """
        ...


@runtime_checkable
class FeatureReader(LanguageModel, Protocol):
    """A draft whose row reads a token and the hidden state of the token before it.

    That is the target's where the target has read that token, and the draft's own where it has not. So rows of one pass
    may follow each other only as far as those states are there before the pass. The row of the first token of a text
    has none to read: it sees itself alone, and no other row sees it.
    """

    def take_features(self, sequence: int, start: int, features: np.ndarray) -> None:
        """Take the target's hidden states of neighbouring tokens; from ``start`` 0 on it is another text.

        Args:
            sequence: Which sequence.
            start: Position of the first token, where the last call ended.
            features: float32 ``[num_tokens, num_kept_layers, hidden_size]``, as :class:`FeatureSource` gives them.

        Raises:
            RequestError: The sequence or a position lies outside the cache.
        """
        ...
