"""Hidden states kept beside a cache of blocks, for a draft that reads them."""

from collections.abc import Sequence

import numpy as np

from forerun.core.errors import ConfigError
from forerun.core.memory import sparse_zeros


def feature_columns(layer_ids: Sequence[int], *, num_layers: int) -> dict[int, int]:
    """Return where in what is kept of a token each layer comes.

    Raises:
        ConfigError: The model has no such layer, or one is named twice.
    """
    columns = {layer: column for column, layer in enumerate(layer_ids)}
    if len(columns) < len(layer_ids) or not all(0 <= layer < num_layers for layer in layer_ids):
        raise ConfigError(
            f"layers {list(layer_ids)}: to keep what enters them they must be different, and from 0 to "
            f"{num_layers - 1}; name others"
        )
    return columns


class FeatureStore:
    """What entered some layers of a model, place by place of its cache; at first of none.

    Args:
        num_layers: Layers of the model.
        hidden_size: Width of its residual stream.
        num_places: Places, numbered from 0.

    Attributes:
        layer_ids: The layers.
    """

    def __init__(self, *, num_layers: int, hidden_size: int, num_places: int) -> None:
        self.layer_ids: tuple[int, ...] = ()
        self._num_layers, self._hidden_size, self._num_places = num_layers, hidden_size, num_places
        self._columns: dict[int, int] = {}
        self._values = np.empty((0, 0, hidden_size), np.float32)

    def keep(self, layer_ids: Sequence[int]) -> None:
        """Keep what enters these layers from now on; asked for the same again, what is kept stays.

        Raises:
            ConfigError: The model has no such layer, or one is named twice.

        Effects:
            Allocates ``num_places * len(layer_ids) * hidden_size`` float32, touched as used.
        """
        if self.layer_ids == tuple(layer_ids):
            return
        self._columns = feature_columns(layer_ids, num_layers=self._num_layers)
        self.layer_ids = tuple(layer_ids)
        self._values = sparse_zeros((self._num_places, len(layer_ids), self._hidden_size))

    def put(self, layer: int, places: np.ndarray, entering: np.ndarray) -> None:
        """Keep what enters a layer in a pass, float32 ``[rows, hidden]``, if it is one of those."""
        column = self._columns.get(layer)
        if column is not None:
            self._values[places, column] = entering

    def read(self, places: np.ndarray) -> np.ndarray:
        """Return float32 ``[places, layers, hidden]``."""
        if not self.layer_ids:
            return np.empty((len(places), 0, self._hidden_size), np.float32)
        return self._values[places]

    def write(self, places: np.ndarray, features: np.ndarray) -> None:
        """Put what :meth:`read` gave of other places."""
        if self.layer_ids:
            self._values[places] = features
