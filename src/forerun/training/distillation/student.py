"""The draft as a model in training: a few of the target's layers, the target's own embedding and a part of its head.

It reads the target's keys and values in the layers that it was made of, where there are any: they cost no pass of the
draft, and carry what all layers of the target know of the text. (Du et al. 2024, arXiv 2402.02082, attend to them in
a module beside; here they take the place of the draft's own, in the same attention.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from forerun.models.checkpoint import Checkpoint
from forerun.models.decoder import Decoder
from forerun.nn.fake_quant import fake_quantize_linears
from forerun.training.distillation.batches import DistillBatch


class Student(nn.Module):
    """A decoder made of chosen layers of the target, with frozen embedding and output head.

    The head keeps the rows of ``vocab_ids`` only: the draft can propose no other token, but reads all of them.

    Args:
        checkpoint: The target; its weights initialise the student's.
        layer_ids: Which of the target's layers, in order.
        vocab_ids: Target ids the draft can propose, ascending.
        initial: Gives the weights to start from by the draft's own names; ``None``: the target's layers.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        layer_ids: Sequence[int],
        vocab_ids: np.ndarray,
        initial: Callable[[str], np.ndarray] | None = None,
    ) -> None:
        super().__init__()
        self.layer_ids, self.vocab_ids = tuple(layer_ids), vocab_ids
        with torch.device("meta"):
            self.decoder = Decoder(replace(checkpoint.config, num_layers=len(layer_ids), tie_embeddings=False))
        for name in self.trained_names():
            if initial is not None:
                values = initial(name)
            elif name.startswith("layers."):
                _, index, rest = name.split(".", 2)
                values = checkpoint.tensors.tensor(f"layers.{layer_ids[int(index)]}.{rest}")
            else:
                values = checkpoint.tensors.tensor(name)
            self._set(name, values, trained=True)
        embedding = checkpoint.tensors.tensor("embed_tokens.weight")
        head = embedding if checkpoint.config.tie_embeddings else checkpoint.tensors.tensor("lm_head.weight")
        self._set("embed_tokens.weight", embedding, trained=False)
        self._set("lm_head.weight", head[vocab_ids], trained=False)
        self.decoder.refresh_derived()
        fake_quantize_linears(self.decoder)

    def _set(self, name: str, values: np.ndarray, *, trained: bool) -> None:
        module_name, _, parameter_name = name.rpartition(".")
        parameter = nn.Parameter(torch.from_numpy(np.ascontiguousarray(values)), requires_grad=trained)
        setattr(self.decoder.get_submodule(module_name), parameter_name, parameter)

    def trained_names(self) -> list[str]:
        """Return the parameters that are trained (and saved): all but embedding and head."""
        names = [name for name, _ in self.decoder.named_parameters()]
        return [name for name in names if name not in ("embed_tokens.weight", "lm_head.weight")]

    def forward(self, batch: DistillBatch) -> Tensor:
        """Return logits over ``vocab_ids`` at the places that count: ``[N, len(vocab_ids)]``."""
        hidden_BTE = self.decoder.hidden_states(
            batch.token_ids,
            positions_BT=batch.positions,
            mask=batch.mask,
            caches=[_StatesBefore(*layer_BSGD) for layer_BSGD in batch.states.permute(2, 3, 0, 4, 1, 5)],
        )
        return self.decoder.lm_head(hidden_BTE[batch.where])


@dataclass(frozen=True, slots=True)
class _StatesBefore:
    """Puts the target's keys and values of one layer, ``[B, G, S, D]``, before the draft's own."""

    keys: Tensor
    values: Tensor

    def append(self, k_BGSD: Tensor, v_BGSD: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat((self.keys, k_BGSD), dim=2), torch.cat((self.values, v_BGSD), dim=2)
