"""A model as loaded: shape, lazy weights, tokenizer and where it came from."""

from dataclasses import dataclass

from forerun.models.config import DecoderConfig
from forerun.models.layout import TensorReader
from forerun.models.tokenizer import Tokenizer
from forerun.nn.law_average import Average


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """Everything needed to build and run a model; the weights stay in the file until they are asked for.

    Attributes:
        config: Shape of the decoder.
        tokenizer: Text to ids and back.
        eos_ids: Ids that end a text: every one that the files name.
        source: The name or path it was loaded from, for messages.
        size_bytes: Size of the weight files.
        tensors: Reads one float32 parameter at a time.
        quantised: Whether weights are stored in quantised blocks (a CPU then keeps them quantised by default).
        ensemble: The models whose laws are averaged; ``None`` for a model of its own. An ensemble's ``config`` is its
            first member's, with the shortest context of all; its ``tensors`` has none.
        base: The small model that an inflated one computes; ``None`` for others.
    """

    config: DecoderConfig
    tokenizer: Tokenizer
    eos_ids: frozenset[int]
    source: str
    size_bytes: int
    tensors: TensorReader
    quantised: bool
    ensemble: "Ensemble | None" = None
    base: "Checkpoint | None" = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Ensemble:
    """Models whose laws are averaged; they share one vocabulary.

    Attributes:
        members: The models, in order.
        average: Which average.
    """

    members: tuple[Checkpoint, ...]
    average: Average
