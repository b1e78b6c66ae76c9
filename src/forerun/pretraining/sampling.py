"""Text sampled from an ensemble: many chains side by side, with the likeliest tokens of the law at each place."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor
from torch.nn.functional import log_softmax

from forerun.core.errors import ConfigError
from forerun.core.rng import gumbel_argmax
from forerun.models.decoder import Decoder
from forerun.models.stacked_decoder import stack_decoders
from forerun.nn.law_average import Average, average_rows

Source = Literal["ensemble", "members"]
"""Who writes: ``ensemble``, its averaged law; ``members``, each member alone, in turn."""

CHAIN_ROWS: Final = 4
"""Rows of a chain; every one but the first goes on where the one before it ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledRows:
    """Rows of sampled text and what the ensemble expected at each place.

    Attributes:
        ids: Rows of one token more than a sequence has: each but the last is an input, each but the first a target.
        kept_ids: The likeliest next tokens at each input, best first.
        kept_probs: Their probabilities; what is missing to 1 is the other tokens'.
    """

    ids: Int[Tensor, "rows ids"]
    kept_ids: Int[Tensor, "rows tokens kept"]
    kept_probs: Float[Tensor, "rows tokens kept"]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.ids)

    def take(self, rows: Int64[Tensor, " taken"] | slice) -> "SampledRows":
        """Return some of the rows."""
        return SampledRows(ids=self.ids[rows], kept_ids=self.kept_ids[rows], kept_probs=self.kept_probs[rows])

    @classmethod
    def concatenate(cls, parts: "Sequence[SampledRows]") -> "SampledRows":
        """Return all rows of some parts, at least one."""
        return cls(
            ids=torch.cat([part.ids for part in parts]),
            kept_ids=torch.cat([part.kept_ids for part in parts]),
            kept_probs=torch.cat([part.kept_probs for part in parts]),
        )


class EnsembleSampler:
    """Samples at temperature 1 from decoders that share a vocabulary.

    A chain begins with the end of a text, so with what the members take for the opening of a document, and goes on
    through the ends of documents that it draws. As the members see no more than a sequence, each later row of a chain
    begins with the last eighth of the row before it. No document is read.

    Args:
        decoders: The members; given away, as their weights are stacked.
        average: Of their laws.
        source: Who writes. What is kept is the law of the ensemble in both cases.
        end_of_text_id: Ends a document.
        sequence_tokens: Tokens predicted in a row; no more than the members' longest context.
        num_kept: Likeliest tokens kept at each place.

    Raises:
        ConfigError: A row is longer than the members' context.
    """

    def __init__(
        self,
        decoders: Sequence[Decoder],
        *,
        average: Average,
        source: Source,
        end_of_text_id: int,
        sequence_tokens: int,
        num_kept: int,
    ) -> None:
        longest = min(decoder.config.max_len for decoder in decoders)
        if sequence_tokens > longest:
            raise ConfigError(
                f"sequence_tokens={sequence_tokens}: the teacher's context is {longest}; take rows of that or fewer"
            )
        self._groups = [
            (len(group), stack_decoders(group)) for group in _by_shape(decoders)
        ]  # an average does not ask for the order
        self._num_members = len(decoders)
        self._average: Average = average
        self._source: Source = source
        self._end_of_text_id, self._sequence_tokens = end_of_text_id, sequence_tokens
        self._num_carried = max(1, sequence_tokens // 8)
        self._num_kept = min(num_kept, decoders[0].config.vocab_size)
        self._id_type = torch.int16 if decoders[0].config.vocab_size <= 1 << 15 else torch.int32

    @torch.inference_mode()
    def chains(self, first: int, count: int, *, seed: int) -> SampledRows:
        """Return the rows of chains ``first`` to ``first + count - 1``, those of one chain after the other.

        A token is a function of the seed, its chain and its place there, but for rounding, which may depend on how many
        chains are sampled side by side.
        """
        chains = range(first, first + count)
        start_BC = torch.full((count, 1), self._end_of_text_id)
        position = 1
        rows: list[SampledRows] = []
        for _ in range(CHAIN_ROWS):
            rows.append(self._row(start_BC, chains, seed=seed, position=position))
            position += self._sequence_tokens + 1 - start_BC.shape[1]
            start_BC = rows[-1].ids[:, -self._num_carried :].long()
        in_time = SampledRows.concatenate(rows)
        return in_time.take(torch.arange(len(in_time)).view(CHAIN_ROWS, count).T.flatten())

    def _row(self, start_BC: Int64[Tensor, "chains start"], chains: range, *, seed: int, position: int) -> SampledRows:
        """Continue a start, whose last token is at ``position - 1`` of its chain, to a whole row."""
        caches = [
            [_RowCache(self._sequence_tokens) for _ in range(decoder.config.num_layers)] for _, decoder in self._groups
        ]
        ids, inputs_BT = [start_BC], start_BC
        kept_ids: list[Tensor] = []
        kept_probs: list[Tensor] = []
        for place in range(start_BC.shape[1], self._sequence_tokens + 1):
            logits_KBTV = self._logits(inputs_BT, num_seen=place - inputs_BT.shape[1], caches=caches)
            law_BTV = self._law(logits_KBTV)
            log_probs_BTk, ids_BTk = law_BTV.topk(self._num_kept, dim=-1)
            kept_ids.append(ids_BTk.to(self._id_type))
            kept_probs.append(log_probs_BTk.exp().half())
            scores_BV = self._scores(law_BTV[:, -1], logits_KBTV[:, :, -1], chains).numpy()
            at = position + place - start_BC.shape[1]
            drawn = [
                gumbel_argmax(scores, ids=None, seed=seed, request=chain, position=at)
                for scores, chain in zip(scores_BV, chains, strict=True)
            ]
            inputs_BT = torch.tensor(drawn).unsqueeze(1)
            ids.append(inputs_BT)
        return SampledRows(
            ids=torch.cat(ids, dim=1).to(self._id_type),
            kept_ids=torch.cat(kept_ids, dim=1),
            kept_probs=torch.cat(kept_probs, dim=1),
        )

    def _logits(
        self, inputs_BT: Tensor, *, num_seen: int, caches: "Sequence[Sequence[_RowCache]]"
    ) -> Float[Tensor, "members chains tokens vocab"]:
        """Run new tokens through every member after ``num_seen`` others."""
        num_chains, num_new = inputs_BT.shape
        positions_T = torch.arange(num_seen, num_seen + num_new)
        mask = positions_T.unsqueeze(-1) >= torch.arange(num_seen + num_new)
        found: list[Tensor] = []
        for (num_members, decoder), own in zip(self._groups, caches, strict=True):
            hidden = decoder.hidden_states(
                inputs_BT.repeat(num_members, 1),
                positions_BT=positions_T.expand(num_members * num_chains, -1),
                mask=mask.view(1, 1, *mask.shape),
                caches=own,
            )
            found.append(decoder.lm_head(hidden).view(num_members, num_chains, num_new, -1))
        return torch.cat(found)

    def _law(self, logits_KBTV: Tensor) -> Tensor:
        """Return the log-probabilities of the average."""
        shape = logits_KBTV.shape
        averaged = average_rows(logits_KBTV.view(shape[0], -1, shape[-1]).numpy(), average=self._average)
        return log_softmax(torch.from_numpy(averaged).view(shape[1:]), dim=-1)

    def _scores(self, law_BV: Tensor, logits_KBV: Tensor, chains: range) -> Tensor:
        """Return what to draw from: the average, or for each chain the member whose turn it is."""
        if self._source == "ensemble":
            return law_BV
        turns = torch.tensor([chain % self._num_members for chain in chains])
        return logits_KBV[turns, torch.arange(len(turns))]


def check_source(source: str) -> None:
    """Refuse a source that there is not.

    Raises:
        ConfigError: It is none of :data:`Source`.
    """
    if source not in get_args(Source):
        raise ConfigError(f"source={source!r}: must be one of {', '.join(get_args(Source))}")


def _by_shape(decoders: Sequence[Decoder]) -> list[list[Decoder]]:
    groups: list[list[Decoder]] = []
    for decoder in decoders:
        group = next((group for group in groups if group[0].config == decoder.config), None)
        if group is None:
            groups.append([decoder])
        else:
            group.append(decoder)
    return groups


class _RowCache:
    """Keys and values of one layer, in room for a whole row that is made once."""

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens, self._length = num_tokens, 0
        self._k_BGSD = self._v_BGSD = torch.empty(0)

    def append(self, k_BGSD: Tensor, v_BGSD: Tensor) -> tuple[Tensor, Tensor]:
        """Take keys and values of new tokens; return all so far."""
        if self._length == 0:
            batch, heads, _, width = k_BGSD.shape
            self._k_BGSD, self._v_BGSD = (k_BGSD.new_empty(batch, heads, self._num_tokens, width) for _ in range(2))
        start, self._length = self._length, self._length + k_BGSD.shape[2]
        self._k_BGSD[:, :, start : self._length], self._v_BGSD[:, :, start : self._length] = k_BGSD, v_BGSD
        return self._k_BGSD[:, :, : self._length], self._v_BGSD[:, :, : self._length]
