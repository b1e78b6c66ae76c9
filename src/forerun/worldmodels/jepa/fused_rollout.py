"""Roll-outs of many candidates without autograd: the same numbers as the modules give, in fewer passes over memory.

What is done once instead of at every step: actions are embedded and modulate all blocks before the first step, whatever
window they will stand in; maps without anything between them are multiplied out (the first two of the action embedder,
batch norm and the map before it). Steps share their buffers; between matrix products one kernel goes over each row.
Tokens lie apart, [T, M, ...], so that the steps of a window are one block of memory.

Shape legend: M candidates, T tokens of a window, S steps, D latent dimension, C width, A numbers of an action.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import layer_norm, silu

from forerun.nn.modulated_kernels import gated_norm, gated_sum, modulated_norm, window_attention
from forerun.worldmodels.jepa.predictor import AdaLnBlock, Predictor

_MOST_ROWS, _LEAST_ROWS = 1024, 64
_MODULATION_BYTES = 32 << 20
"""What all steps of some candidates modulate by may take: so many candidates are rolled out at a time."""
_SHIFT, _GATE, _MLP_SHIFT, _MLP_GATE = 0, 2, 3, 5
"""Places among the six parts of a block's modulation; a scale follows each shift."""


def can_fuse(predictor: Predictor) -> bool:
    """Return whether :class:`FusedRollout` may stand in for the modules: on a CPU in float32, and no gradient asked."""
    weight = predictor.positions
    return (
        not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
    )


class FusedRollout:
    """A model's weights as roll-outs use them; made for one call, so that it never outlives a change of the weights.

    Args:
        predictor: In evaluation mode whatever its flag says, like the rest: nothing is dropped.
        action_embedder: From actions to conditions: two maps without anything between them, and a third.
        projector: From what the predictor says to embeddings; batch norm takes its running moments.
    """

    def __init__(self, predictor: Predictor, *, action_embedder: nn.Sequential, projector: nn.Sequential) -> None:
        self._history = predictor.history
        self._blocks = [_Block.of(cast(AdaLnBlock, block)) for block in predictor.blocks]
        self._width = predictor.positions.shape[2]
        self._positions = predictor.positions[0]
        self._to_tokens = _affine(predictor.to_tokens)
        self._to_latent = _affine(predictor.to_latent)
        self._norm = predictor.norm
        first, second, _, third = (cast(nn.Linear, layer) for layer in action_embedder)
        self._num_in = first.in_features
        self._embed_hidden = _Affine(
            weight=second.weight @ first.weight, bias=torch.addmv(second.bias, second.weight, first.bias)
        )
        self._embed = _Affine(weight=third.weight, bias=third.bias)
        self._project_hidden = _normed(cast(nn.Linear, projector[0]), projector[1])
        last = cast(nn.Linear, projector[3])
        self._project = _Affine(weight=last.weight, bias=last.bias)
        self._rooms: dict[str, Tensor] = {}

    def run(
        self,
        latents_MHD: Float[Tensor, "M H D"],
        past_actions_MHA: Float[Tensor, "M H_less_one A"],
        actions_MFA: Float[Tensor, "M F A"],
    ) -> Float[Tensor, "M F D"]:
        """Return the embeddings after each action.

        Args:
            latents_MHD: What was seen, at most ``history`` embeddings.
            past_actions_MHA: Actions between them, in the model's units.
            actions_MFA: Actions to come, likewise.
        """
        actions = torch.cat([past_actions_MHA, actions_MFA], dim=1)
        row_bytes = 4 * 6 * self._width * len(self._blocks) * actions.shape[1]
        num_rows = min(_MOST_ROWS, max(_LEAST_ROWS, _MODULATION_BYTES // row_bytes))
        parts = zip(latents_MHD.split(num_rows), actions.split(num_rows), strict=True)
        return torch.cat([self._run_some(*part) for part in parts])

    def _run_some(self, latents_MHD: Tensor, actions_MSA: Tensor) -> Tensor:
        num_rows, num_seen, _ = latents_MHD.shape
        num_steps = actions_MSA.shape[1]
        modulations = self._modulations(actions_MSA)
        tokens = [self._token(latent) for latent in latents_MHD.unbind(1)]
        states: list[Tensor] = []
        windows = [
            self._room(f"qkv {place}", self._history, num_rows, block.num_qkv)
            for place, block in enumerate(self._blocks)
        ]
        for step in range(num_steps):
            if step < self._history:
                last = self._extended(tokens[step], modulations, windows, step)
            else:
                last = self._slid(tokens[step - self._history + 1 : step + 1], modulations, windows, step)
            if step >= num_seen - 1:
                states.append(self._latent(last))
                if step + 1 < num_steps:
                    tokens.append(self._token(states[-1]))
        return torch.stack(states, dim=1)

    def _modulations(self, actions_MSA: Tensor) -> list[np.ndarray]:
        """Return for each block the shifts, scales and gates of every step, [S, M, 6, C]."""
        rows = actions_MSA.transpose(0, 1).reshape(-1, self._num_in)
        condition = silu(self._embed.of(silu(self._embed_hidden.of(rows), inplace=True)), inplace=True)
        num_rows, num_steps, _ = actions_MSA.shape
        found: list[np.ndarray] = []
        for place, block in enumerate(self._blocks):
            room = self._room(f"modulation {place}", num_steps * num_rows, 6 * self._width)
            found.append(block.modulation.of(condition, out=room).view(num_steps, num_rows, 6, -1).numpy())
        return found

    def _token(self, latent_MD: Tensor) -> Tensor:
        return latent_MD if self._to_tokens is None else self._to_tokens.of(latent_MD)

    def _latent(self, token_MC: Tensor) -> Tensor:
        norm = self._norm
        normed = layer_norm(token_MC, (self._width,), norm.weight, norm.bias, norm.eps)
        predicted = normed if self._to_latent is None else self._to_latent.of(normed)
        return self._project.of(torch.ops.aten.gelu_(self._project_hidden.of(predicted)))

    def _extended(self, token_MC: Tensor, modulations: list[np.ndarray], windows: list[Tensor], step: int) -> Tensor:
        """Return the token of a step after all blocks, keys and values of the steps before it kept in the windows."""
        tokens = token_MC + self._positions[step]
        return self._through(tokens, [part[step] for part in modulations], windows, num_tokens=step + 1, num_new=1)

    def _slid(self, tokens: list[Tensor], modulations: list[np.ndarray], windows: list[Tensor], step: int) -> Tensor:
        """Return the last token of a window that has slid, after all blocks; positions count from its start."""
        num_tokens, num_rows = self._history, len(tokens[0])
        room = self._room("window", num_tokens, num_rows, self._width)
        for place, token in enumerate(tokens):
            torch.add(token, self._positions[place], out=room[place])
        seen = slice(step - num_tokens + 1, step + 1)
        rows = [part[seen].reshape(num_tokens * num_rows, 6, -1) for part in modulations]
        return self._through(room.flatten(0, 1), rows, windows, num_tokens=num_tokens, num_new=num_tokens)

    def _through(
        self, tokens: Tensor, modulations: list[np.ndarray], windows: list[Tensor], *, num_tokens: int, num_new: int
    ) -> Tensor:
        """Take the last tokens of windows through all blocks; return the last one, [M, C].

        Args:
            tokens: The new ones, [new * M, C], changed.
            modulations: Of each block, a row for each row of tokens.
            windows: For each block the queries, keys and values of its windows; those of the new tokens are written.
            num_tokens: Of a window by now.
            num_new: How many of them are new.
        """
        width, num_rows = self._width, len(tokens) // num_new
        normed = self._room("normed", len(tokens), width)
        first = self._blocks[0]
        modulated_norm(tokens.numpy(), modulations[0], _SHIFT, *first.attention_norm, normed.numpy())
        for place, block in enumerate(self._blocks):
            is_last, rows = place + 1 == len(self._blocks), modulations[place]
            window = windows[place][:num_tokens]
            new = window[num_tokens - num_new :].flatten(0, 1)
            if is_last and num_new > 1:
                # Of this block only the last token is wanted: the others are needed as keys and values alone.
                begin = (num_new - 1) * num_rows
                block.key_value.of(normed[:begin], out=new[:begin, block.num_inner :])
                block.qkv.of(normed[begin:], out=new[begin:])
                tokens, rows, num_new = tokens[begin:], rows[begin:], 1
            else:
                block.qkv.of(normed, out=new)
            normed = normed[: len(tokens)]
            attended = self._room("attended", num_new, num_rows, block.num_heads, block.head_dim)
            window_attention(
                window.view(num_tokens, num_rows, 3, block.num_heads, block.head_dim).numpy(), attended.numpy()
            )
            block.out.of(attended.view(len(tokens), -1), out=normed)
            added = normed.numpy()
            gated_norm(tokens.numpy(), added, rows, _GATE, rows, _MLP_SHIFT, *block.mlp_norm, added)
            hidden = block.widen.of(normed, out=self._room("hidden", len(tokens), block.num_hidden))
            block.narrow.of(torch.ops.aten.gelu_(hidden), out=normed)
            if is_last:
                gated_sum(tokens.numpy(), added, rows, _MLP_GATE)
            else:
                following = self._blocks[place + 1].attention_norm
                gated_norm(tokens.numpy(), added, rows, _MLP_GATE, modulations[place + 1], _SHIFT, *following, added)
        return tokens

    def _room(self, name: str, *shape: int) -> Tensor:
        """Return a buffer of that name with this shape, whatever it holds."""
        count = int(np.prod(shape))
        room = self._rooms.get(name)
        if room is None or room.numel() < count:
            room = self._rooms[name] = torch.empty(count)
        return room[:count].view(shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Affine:
    """A linear map with its bias, if it has one."""

    weight: Tensor
    bias: Tensor | None

    def of(self, rows: Tensor, *, out: Tensor | None = None) -> Tensor:
        if self.bias is None:
            return torch.mm(rows, self.weight.T, out=out)
        return torch.addmm(self.bias, rows, self.weight.T, out=out)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Block:
    """The weights of one AdaLN block; norms as (weight, bias)."""

    num_heads: int
    head_dim: int
    modulation: _Affine
    attention_norm: tuple[np.ndarray, np.ndarray]
    mlp_norm: tuple[np.ndarray, np.ndarray]
    qkv: _Affine
    key_value: _Affine
    out: _Affine
    widen: _Affine
    narrow: _Affine

    @classmethod
    def of(cls, block: AdaLnBlock) -> "_Block":
        attention = block.attention
        num_inner = attention.to_qkv.out_features // 3
        widen, narrow = cast(nn.Linear, block.mlp[0]), cast(nn.Linear, block.mlp[3])
        out, modulation = cast(nn.Linear, attention.to_out[0]), cast(nn.Linear, block.to_modulation[1])
        return cls(
            num_heads=attention.num_heads,
            head_dim=num_inner // attention.num_heads,
            modulation=_Affine(weight=modulation.weight, bias=modulation.bias),
            attention_norm=_vectors(block.attention_norm),
            mlp_norm=_vectors(block.mlp_norm),
            qkv=_Affine(weight=attention.to_qkv.weight, bias=None),
            key_value=_Affine(weight=attention.to_qkv.weight[num_inner:], bias=None),
            out=_Affine(weight=out.weight, bias=out.bias),
            widen=_Affine(weight=widen.weight, bias=widen.bias),
            narrow=_Affine(weight=narrow.weight, bias=narrow.bias),
        )

    @property
    def num_inner(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def num_qkv(self) -> int:
        return 3 * self.num_inner

    @property
    def num_hidden(self) -> int:
        return self.widen.weight.shape[0]


def _affine(layer: nn.Module) -> _Affine | None:
    """Return a linear map, or ``None`` for the identity."""
    return _Affine(weight=layer.weight, bias=layer.bias) if isinstance(layer, nn.Linear) else None


def _normed(linear: nn.Linear, norm: nn.Module) -> _Affine:
    """Return a linear map and the batch norm after it as one map, by the running moments."""
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    return _Affine(weight=linear.weight * factor[:, None], bias=(linear.bias - norm.running_mean) * factor + norm.bias)


def _vectors(norm: nn.LayerNorm) -> tuple[np.ndarray, np.ndarray]:
    return norm.weight.detach().numpy(), norm.bias.detach().numpy()
