"""The draft as a model in training: a few of the target's layers, the target's own embedding and a part of its head."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from forerun.models.checkpoint import Checkpoint
from forerun.models.decoder import Decoder
from forerun.nn.fake_quant import fake_quantize_linears


class Student(nn.Module):
    """A decoder made of chosen layers of the target, with frozen embedding and output head.

    The head keeps the rows of ``vocab_ids`` only: the draft can propose no other token, but reads all of them.

    Args:
        checkpoint: The target; its weights initialise the student's.
        layer_ids: Which of the target's layers, in order.
        vocab_ids: Target ids the draft can propose, ascending.
    """

    def __init__(self, checkpoint: Checkpoint, *, layer_ids: Sequence[int], vocab_ids: np.ndarray) -> None:
        super().__init__()
        self.layer_ids, self.vocab_ids = tuple(layer_ids), vocab_ids
        with torch.device("meta"):
            self.decoder = Decoder(replace(checkpoint.config, num_layers=len(layer_ids), tie_embeddings=False))
        for name in self.trained_names():
            source = name
            if name.startswith("layers."):
                _, index, rest = name.split(".", 2)
                source = f"layers.{layer_ids[int(index)]}.{rest}"
            self._set(name, checkpoint.tensors.tensor(source), trained=True)
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

    def forward(self, token_ids_BT: Tensor, where: tuple[Tensor, Tensor]) -> Tensor:
        """Return logits over ``vocab_ids`` at the (row, column) places ``where``: ``[N, len(vocab_ids)]``."""
        return self.decoder.lm_head(self.decoder.hidden_states(token_ids_BT)[where])
