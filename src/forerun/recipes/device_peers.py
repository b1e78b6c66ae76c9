"""`transformers` on the same device and the same weights: plain, with look-up in the prompt, and assisted by the draft.

The models are made in this process, one weight at a time, from the same checkpoints as ours. All decode greedily, to
the same number of tokens, whatever ends the text. The time of the first token is measured apart and taken off.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from forerun.core.dependencies import import_optional
from forerun.core.errors import ConfigError
from forerun.models.checkpoint import Checkpoint
from forerun.models.export import config_to_json
from forerun.models.graph_pool import is_out_of_memory
from forerun.models.layout import parameter_shapes

LOOK_UP_TOKENS: Final = 10
"""What the documentation of `transformers` shows for look-up in the prompt."""
PEER_MODES: Final = ("plain", "look-up", "assisted")


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerCase:
    """What a peer measured.

    Attributes:
        mode: One of :data:`PEER_MODES`.
        token_ids: Of the first prompt.
        first_s: Time to the first token of every prompt.
        total_s: Time to the last.
        num_decoded: Tokens after the first ones.
    """

    mode: str
    token_ids: tuple[int, ...]
    first_s: float
    total_s: float
    num_decoded: int

    @property
    def tokens_per_s(self) -> float:
        """Tokens after the first of each prompt, by the time they took."""
        return self.num_decoded / max(self.total_s - self.first_s, 1e-9)


class TransformersPeer:
    """`transformers` with a target, and a draft where one is given.

    Args:
        target: The checkpoint.
        draft: A model with the whole vocabulary; ``None``: it can't assist.
        dtype: Of the weights.
        device: Where it runs.

    Raises:
        MissingDependencyError: The package is not installed.
        ConfigError: It has no such model.
    """

    def __init__(
        self, target: Checkpoint, draft: Checkpoint | None, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._device = device
        self._model = transformers_model(target, dtype=dtype, device=device)
        self._assistant = None if draft is None else transformers_model(draft, dtype=dtype, device=device)
        self.version: str = _transformers().__version__

    def modes(self, *, num_prompts: int) -> tuple[str, ...]:
        """Return what it can do with so many prompts: drafts of any kind are for one."""
        if num_prompts > 1:
            return PEER_MODES[:1]
        return PEER_MODES if self._assistant is not None else PEER_MODES[:2]

    def decode(self, prompts: Sequence[Sequence[int]], *, mode: str, max_tokens: int) -> PeerCase:
        """Decode prompts of one length together, after a first time that is not measured.

        Args:
            prompts: Token ids.
            mode: One of :meth:`modes`.
            max_tokens: Of each prompt.
        """
        options: dict[str, Any] = {}
        if mode == "look-up":
            options["prompt_lookup_num_tokens"] = LOOK_UP_TOKENS
        elif mode == "assisted":
            options["assistant_model"] = self._assistant
        inputs = torch.tensor([list(prompt) for prompt in prompts], device=self._device)

        def run(count: int) -> tuple[float, torch.Tensor]:
            _wait_for(self._device)
            started = time.perf_counter()
            with torch.inference_mode():
                output = self._model.generate(
                    inputs,
                    attention_mask=torch.ones_like(inputs),
                    max_new_tokens=count,
                    min_new_tokens=count,
                    do_sample=False,
                    pad_token_id=0,
                    **options,
                )
            _wait_for(self._device)
            return time.perf_counter() - started, output[0, inputs.shape[1] :]

        run(min(max_tokens, 8))
        first_s, _ = run(1)
        total_s, tokens = run(max_tokens)
        return PeerCase(
            mode=mode,
            token_ids=tuple(tokens.tolist()),
            first_s=first_s,
            total_s=total_s,
            num_decoded=len(prompts) * (len(tokens) - 1),
        )


def transformers_model(checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device) -> Any:
    """Return a checkpoint as a model of `transformers`.

    Args:
        checkpoint: Its weights are read one at a time, so that no second copy is held.
        dtype: Of the weights.
        device: Where they go.

    Raises:
        MissingDependencyError: The package is not installed.
        ConfigError: It has no such model.
    """
    transformers = _transformers()
    values = config_to_json(checkpoint.config)
    values |= {"eos_token_id": None, "bos_token_id": None}
    architectures = values.pop("architectures")
    assert isinstance(architectures, list)
    kind = getattr(transformers, str(architectures[0]))
    config = kind.config_class(**values)
    with torch.device("meta"):
        model = kind(config)
    for name in parameter_shapes(checkpoint.config):
        module_name, _, parameter = (name if name == "lm_head.weight" else f"model.{name}").rpartition(".")
        weight = torch.from_numpy(checkpoint.tensors.tensor(name)).to(device=device, dtype=dtype)
        setattr(model.get_submodule(module_name), parameter, nn.Parameter(weight, requires_grad=False))
    model.tie_weights()
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config=config).to(device)
    if any(weight.is_meta for weight in [*model.parameters(), *model.buffers()]):
        raise ConfigError(f"{checkpoint.source}: transformers wants weights that this checkpoint does not have")
    return model.eval()


def peer_cases(
    peer: TransformersPeer,
    sizes: Sequence[tuple[int, int]],
    prompts: Callable[[int, int], list[list[int]]],
    *,
    max_tokens: int,
    has_time: Callable[[str, int], bool],
    leave_out: Callable[[str, str], None],
    report: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """Measure every mode by batch and context.

    Args:
        peer: Decodes.
        sizes: Pairs of batch and context.
        prompts: Makes the prompts of a pair.
        max_tokens: Of each prompt.
        has_time: Asked before each case, by its name and the tokens of its prompts.
        leave_out: Told of a case that does not fit into memory, by its name and why.
        report: Takes a line of news at a time.

    Yields:
        Cases as :func:`forerun.recipes.device_benchmark.device_benchmark` has them, as far as a peer knows.
    """
    for batch, context in sizes:
        for mode in peer.modes(num_prompts=batch):
            name = f"transformers {mode}, batch {batch}, context {context}"
            if not has_time(name, batch * context):
                continue
            try:
                found = peer.decode(prompts(batch, context), mode=mode, max_tokens=max_tokens)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                leave_out(name, "out of memory")
                continue
            report(f"{name}: {found.tokens_per_s:.1f} tokens/s")
            yield {
                "method": f"transformers-{mode}",
                "batch": batch,
                "context": context,
                "tokens_per_s": found.tokens_per_s,
                "prefill_s": found.first_s,
                "token_ids": list(found.token_ids),
            }


def _transformers() -> Any:
    return import_optional("transformers", extra="bench", purpose="the comparison with transformers")


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
