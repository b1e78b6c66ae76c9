"""Decoders as a message: what it may choose from, and its code."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Int64

from forerun.bounds.coding import ArithmeticEncoder
from forerun.bounds.language import decoder_verifier
from forerun.bounds.language.message import encode_steps
from forerun.core.errors import ConfigError

_STEP_EXPONENT_UNIT: Final = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderGrid:
    """Options, each list uniformly likely.

    Attributes:
        shapes: Hidden size, intermediate size, layers and heads of a member.
        smoothings: Shares of the uniform law in the law of a token, in (0, 1).
        windows: Tokens predicted in one window.
        averages: How laws of members are averaged.
        member_counts: Numbers of members.
        ranks: Of an adapter; 0 for a decoder of its own.
        step_exponents: A tensor's step is 2 ** (-exponent / 2).
        rates: Rates of the bound, per bit; their number is paid by the bound.
    """

    shapes: tuple[tuple[int, int, int, int], ...] = (
        (16, 40, 2, 1), (32, 88, 2, 2), (56, 152, 2, 4), (64, 168, 3, 4), (72, 192, 4, 6), (96, 256, 4, 6),
        (128, 344, 4, 8),
    )  # fmt: skip
    smoothings: tuple[float, ...] = tuple(2.0**-power for power in range(3, 19, 2))
    windows: tuple[int, ...] = (32, 64, 128, 256, 512)
    averages: tuple[str, ...] = ("probability", "logit")
    member_counts: tuple[int, ...] = tuple(range(1, 17))
    ranks: tuple[int, ...] = (0, 1, 2, 4, 8)
    step_exponents: tuple[int, ...] = tuple(range(32))
    rates: tuple[float, ...] = tuple(2.0 ** (-step / 4) for step in range(4, 36))

    def as_json(self) -> dict[str, Any]:
        """Return the grid as it stands in a certificate."""
        return json.loads(json.dumps(asdict(self)))

    @property
    def sha256(self) -> str:
        """Digest to publish before the text is seen."""
        return decoder_verifier.grid_sha256(self.as_json())

    def place(self, name: str, value: object) -> int:
        """Return where a value stands in one of the lists.

        Raises:
            ConfigError: It is not there.
        """
        options = getattr(self, name)
        if value not in options:
            raise ConfigError(f"{name}: {value} is not among the grid's {options}; certify another model")
        return options.index(value)

    def nearest_exponent(self, step: float) -> int:
        """Return the exponent whose step is nearest, by ratio."""
        wanted = -_STEP_EXPONENT_UNIT * np.log2(step)
        return min(self.step_exponents, key=lambda exponent: abs(exponent - wanted))


DECODER_GRID: Final = DecoderGrid()
"""Of ``forerun certify --model``: the shapes that ``forerun pretrain train --size`` knows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSteps:
    """A tensor, or a factor of an adapter's change.

    Attributes:
        exponent: Of its step.
        steps: Whole steps away from the start.
    """

    exponent: int
    steps: Int64[np.ndarray, "..."]


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderMember:
    """One decoder.

    Attributes:
        shape: Of the grid's.
        tensors: By the verifier's names: one entry for a tensor, two for the factors of an adapter, none for what an
            adapter leaves as it is.
    """

    shape: tuple[int, int, int, int]
    tensors: Mapping[str, tuple[TensorSteps, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderMessage:
    """What is sent.

    Attributes:
        smoothing: Share of the uniform law.
        window: Tokens predicted in one window.
        average: How members' laws are averaged.
        rank: Of an adapter, or 0.
        vocab_size: Ids lie below it.
        members: One for a single model.
    """

    smoothing: float
    window: int
    average: str
    rank: int
    vocab_size: int
    members: tuple[DecoderMember, ...]


def encode_decoder_message(message: DecoderMessage, grid: DecoderGrid) -> bytes:
    """Return the code of a message; the verifier's docstring has the format.

    Raises:
        ConfigError: A choice is not in the grid.
    """
    encoder = ArithmeticEncoder()

    def choose(name: str, value: object) -> None:
        encoder.encode(grid.place(name, value), 1, len(getattr(grid, name)))

    choose("smoothings", message.smoothing)
    choose("windows", message.window)
    choose("averages", message.average)
    choose("member_counts", len(message.members))
    choose("ranks", message.rank)
    encoder.encode(message.vocab_size - 1, 1, 1 << 16)
    for member in message.members:
        choose("shapes", member.shape)
        for name in decoder_verifier.tensor_shapes(member.shape, message.vocab_size):
            for part in member.tensors[name]:
                choose("step_exponents", part.exponent)
                encode_steps(encoder, map(int, part.steps.ravel()))
    return encoder.finish()
