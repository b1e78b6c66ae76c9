"""A language model as steps away from its start, and the message that says so."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from forerun.bounds.coding import ArithmeticEncoder
from forerun.bounds.language.grid import LanguageGrid
from forerun.bounds.language.verifier import CONTEXTS, MAX_COINS, MAX_STEPS, NUM_STATES, SELECTORS
from forerun.core.errors import ConfigError

NUM_SETS = 1 + sum(SELECTORS)
"""Weights of a context: its own, and one for each value of each selector."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageMessage:
    """What is sent.

    Attributes:
        smoothing: Place in the grid's list.
        weight_step: Place in the grid's list.
        vote_step: Place in the grid's list.
        bias_step: Place in the grid's list.
        weights: Steps away from the start.
        votes: Steps of each state that has been seen.
        biases: Steps of each partial byte.
    """

    smoothing: int
    weight_step: int
    vote_step: int
    bias_step: int
    weights: Int64[np.ndarray, "sets contexts"]
    votes: Int64[np.ndarray, "contexts states"]
    biases: Int64[np.ndarray, " nodes"]

    def __post_init__(self) -> None:
        shapes = {
            "weights": (NUM_SETS, len(CONTEXTS)),
            "votes": (len(CONTEXTS), NUM_STATES - 1),
            "biases": (255,),
        }
        for name, shape in shapes.items():
            values = getattr(self, name)
            if values.shape != shape or np.abs(values).max() > MAX_STEPS:
                raise ConfigError(f"{name}: must have the shape {shape} and at most {MAX_STEPS} steps each")


def encode_language_message(message: LanguageMessage, grid: LanguageGrid) -> bytes:
    """Return the code of a message; the verifier's docstring has the format."""
    encoder = ArithmeticEncoder()
    for name, options in (
        ("smoothing", grid.smoothings),
        ("weight_step", grid.weight_steps),
        ("vote_step", grid.vote_steps),
        ("bias_step", grid.bias_steps),
    ):
        encoder.encode(getattr(message, name), 1, len(options))
    for steps in (message.weights, message.votes, message.biases):
        encode_steps(encoder, map(int, steps.ravel()))
    return encoder.finish()


def encode_steps(encoder: ArithmeticEncoder, steps: Iterable[int]) -> None:
    """Code whole numbers of steps, at most ``MAX_STEPS`` either way, as the verifiers read them."""
    zero_coins, more_coins = [[0, 0], [0, 0]], [[0, 0] for _ in range(MAX_COINS)]
    before = 0
    for value in steps:
        _encode_coin(encoder, zero_coins[before], int(value != 0))
        before = int(value != 0)
        if before:
            encoder.encode(int(value > 0), 1, 2)
            for size in range(1, min(abs(value) + 1, MAX_STEPS)):
                _encode_coin(encoder, more_coins[min(size, MAX_COINS) - 1], int(abs(value) > size))


def _encode_coin(encoder: ArithmeticEncoder, counts: list[int], bit: int) -> None:
    frequencies = [2 * counts[0] + 1, 2 * counts[1] + 1]
    encoder.encode(frequencies[0] * bit, frequencies[bit], sum(frequencies))
    counts[bit] += 1
