"""Rounds the weights of trained decoders to few bits, and trains on with the rounding in place."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import nll_loss

from forerun.bounds.language import decoder_verifier
from forerun.bounds.language.decoder_message import DecoderGrid, DecoderMember, TensorSteps
from forerun.core.errors import ConfigError
from forerun.models.decoder import Decoder

_ADAPTER_STEP: Final = 2.0**-5
_LEAST_SCALE: Final = 0.02
"""Of a tensor that is at its start, such as a norm's gains before training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderFitConfig:
    """How to round and train on.

    Attributes:
        step_share: Step of a tensor over the root mean square of what is rounded: more is fewer bits.
        num_steps: Optimiser steps with the rounding in place; 0 only rounds.
        batch_windows: Windows of a step.
        learning_rate: Of Adam, falling linearly to 0.
        bit_price: Nats per token that a bit of the message is held to cost.
        seed: Of the order of windows.
    """

    step_share: float = 1.2
    num_steps: int = 400
    batch_windows: int = 8
    learning_rate: float = 2e-3
    bit_price: float = 3e-6
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.step_share > 0 or self.num_steps < 0 or self.batch_windows < 1 or not self.learning_rate > 0:
            raise ConfigError(
                f"step_share={self.step_share}, num_steps={self.num_steps}, batch_windows={self.batch_windows}, "
                f"learning_rate={self.learning_rate}: all must be positive, num_steps at least 0"
            )


def verifier_name(name: str) -> str:
    """Return a decoder's parameter name as the verifier has it."""
    return name.removesuffix(".weight")


def decoder_shape(decoder: Decoder) -> tuple[int, int, int, int]:
    """Return a decoder's shape as the grid lists it."""
    config = decoder.config
    return config.hidden_size, config.intermediate_size, config.num_layers, config.num_heads


class RoundedDecoder(nn.Module):
    """A decoder whose weights are whole steps away from their start, trained through the rounding.

    Args:
        decoder: As trained; or the frozen base of an adapter.
        grid: For the sizes of steps.
        step_share: See :class:`DecoderFitConfig`.
        rank: Of the adapter, or 0.
        generator: Draws the first factors of an adapter.
    """

    def __init__(
        self, decoder: Decoder, grid: DecoderGrid, *, step_share: float, rank: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self._frame, self._grid, self._rank = [decoder.requires_grad_(False)], grid, rank
        self.parts = nn.ParameterDict()
        self.exponents: dict[str, int] = {}
        for name, weight in decoder.named_parameters():
            key = verifier_name(name)
            if rank == 0:
                away = weight.detach() - self._start(weight)
                scale = max(float(away.square().mean().sqrt()), _LEAST_SCALE)
                self._add(f"{key}/0", away.clone(), grid.nearest_exponent(step_share * scale))
            elif "self_attn" in key:
                exponent = grid.nearest_exponent(_ADAPTER_STEP)
                first = torch.randint(-2, 3, (rank, weight.shape[1]), generator=generator) * _ADAPTER_STEP
                self._add(f"{key}/0", torch.zeros(weight.shape[0], rank), exponent)
                self._add(f"{key}/1", first, exponent)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Return logits ``[B, T, V]``."""
        weights = {}
        for name, weight in self._frame[0].named_parameters():
            key = verifier_name(name)
            if self._rank == 0:
                weights[name] = self._start(weight) + self._rounded(f"{key}/0")
            elif f"{key}/0" in self.exponents:
                weights[name] = weight + self._rounded(f"{key}/0") @ self._rounded(f"{key}/1")
        return functional_call(self._frame[0], weights, (ids_BT,))

    def soft_bits(self) -> Tensor:
        """Return a smooth stand-in for the length of the message."""
        sizes = [(values / self._step(key)).abs() for key, values in self._items()]
        return torch.stack([(1.5 * torch.log2(1 + size)).sum() for size in sizes]).sum()

    def message(self) -> DecoderMember:
        """Return what is sent."""
        tensors: dict[str, tuple[TensorSteps, ...]] = {
            verifier_name(name): () for name, _ in self._frame[0].named_parameters()
        }
        for key, values in self._items():
            steps = self._steps(key, values.detach()).numpy().astype(np.int64)
            tensors[key.partition("/")[0]] += (TensorSteps(exponent=self.exponents[key], steps=steps),)
        return DecoderMember(shape=decoder_shape(self._frame[0]), tensors=tensors)

    def _items(self) -> list[tuple[str, Tensor]]:
        return [(key, self.parts[key.replace(".", ":")]) for key in self.exponents]

    def _add(self, key: str, values: Tensor, exponent: int) -> None:
        self.parts[key.replace(".", ":")] = nn.Parameter(values)
        self.exponents[key] = exponent

    def _step(self, key: str) -> float:
        return 2.0 ** (-self.exponents[key] / 2)

    def _rounded(self, key: str) -> Tensor:
        values, step = self.parts[key.replace(".", ":")], self._step(key)
        return values + (step * self._steps(key, values) - values).detach()

    def _steps(self, key: str, values: Tensor) -> Tensor:
        return (values / self._step(key)).round().clamp(-decoder_verifier.MAX_STEPS, decoder_verifier.MAX_STEPS)

    @staticmethod
    def _start(weight: Tensor) -> float:
        return 1.0 if weight.ndim == 1 else 0.0


def round_decoders(
    decoders: list[Decoder],
    ids: Int64[np.ndarray, " tokens"],
    grid: DecoderGrid,
    config: DecoderFitConfig,
    *,
    window: int,
    rank: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[DecoderMember, ...]:
    """Round members and train each on with the rounding in place; or train adapters upon frozen bases.

    Members are trained apart, as they were; their average is what is certified.

    Args:
        decoders: The members, or one base.
        ids: Training tokens.
        grid: The options.
        config: How.
        window: Tokens predicted in one window.
        rank: Of adapters, or 0.
        report: Told a line about each member.
    """
    num_windows = (len(ids) - 1) // window
    if num_windows < 1:
        raise ConfigError(f"the text has {len(ids)} tokens: must be more than window={window}")
    members = []
    for number, decoder in enumerate(decoders, start=1):
        generator = torch.Generator().manual_seed(config.seed + number)
        rounded = RoundedDecoder(decoder, grid, step_share=config.step_share, rank=rank, generator=generator)
        optimizer = torch.optim.Adam(rounded.parameters(), lr=config.learning_rate)
        loss = torch.zeros(())
        for place in range(config.num_steps):
            optimizer.param_groups[0]["lr"] = config.learning_rate * (1 - place / config.num_steps)
            starts = torch.randint(0, num_windows, (config.batch_windows,), generator=generator).numpy() * window
            rows = torch.from_numpy(np.stack([ids[start : start + window + 1] for start in starts]).astype(np.int64))
            log_probs = rounded(rows[:, :-1]).log_softmax(dim=-1)
            loss = nll_loss(log_probs.flatten(0, 1), rows[:, 1:].flatten())
            optimizer.zero_grad()
            (loss + config.bit_price * rounded.soft_bits()).backward()
            optimizer.step()
        report(f"member {number} of {len(decoders)}: last batch {float(loss.detach()):.3f} nats per token")
        members.append(rounded.message())
    return tuple(members)


def base_tensors(decoder: Decoder) -> Mapping[str, np.ndarray]:
    """Return the tensors of a frozen base, by the verifier's names."""
    return {verifier_name(name): weight.detach().numpy() for name, weight in decoder.named_parameters()}
