"""The target's own text as training data: shards on disk, each a pure function of (target, seed, shard index)."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from forerun.data.prompts import PROMPT_KINDS, PromptKind, template_prompt
from forerun.data.topics import OPENINGS
from forerun.models.checkpoint import Checkpoint
from forerun.models.int8_runner import Int8Runner
from forerun.training.distillation.sampling import Kept, SampledText, SampleRequest, sample_texts

TEMPERATURES = (0.0, 0.0, 0.0, 0.0, 0.5, 0.7, 0.7, 0.7, 1.0, 1.0)
"""Drawn from uniformly: four texts in ten are greedy, the rest spread over what people use."""


_OPENED_SHARE = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusConfig:
    """What to sample.

    Attributes:
        seed: Root of every choice.
        texts_per_shard: Texts in one file.
        max_tokens: Sampled tokens per text.
        max_prompt_tokens: Longer prompts are left out.
        self_prompt_share: Fraction of the prompts that the target writes itself, as the user.
        batch_size: Texts sampled side by side.
    """

    seed: int = 0
    texts_per_shard: int = 160
    max_tokens: int = 160
    max_prompt_tokens: int = 192
    self_prompt_share: float = 0.8
    batch_size: int = 40


def chat_prompt(checkpoint: Checkpoint, content: str) -> list[int]:
    """Return the token ids of a user message in the target's chat template (as plain text where it has none)."""
    tokenizer = checkpoint.tokenizer
    if tokenizer.chat_template is None:
        return tokenizer.encode(content)
    return tokenizer.apply_chat_template([{"role": "user", "content": content}])


def _user_turn(checkpoint: Checkpoint) -> list[int]:
    """Return the ids up to where a user message begins: what the rendered messages "A" and "7" have in common.

    A target without a chat template begins a text of its own, after an end-of-sequence token.
    """
    first, second = chat_prompt(checkpoint, "A"), chat_prompt(checkpoint, "7")
    same = next(index for index, (one, other) in enumerate(zip(first, second, strict=False)) if one != other)
    return first[:same] or [min(checkpoint.eos_ids)]


def make_runner(checkpoint: Checkpoint, config: CorpusConfig) -> Int8Runner:
    """Build the runner that samples shards."""
    return Int8Runner(
        checkpoint.config,
        checkpoint.tensors.tensor,
        num_sequences=config.batch_size,
        capacity=config.max_prompt_tokens + config.max_tokens + 1,
    )


def sample_shard(
    checkpoint: Checkpoint,
    runner: Int8Runner,
    config: CorpusConfig,
    index: int,
    *,
    layer_ids: Sequence[int],
    keeps: Kept = "keys and values",
) -> list[SampledText]:
    """Sample one shard.

    First the target writes prompts and passages to summarise, then it answers. It writes prompts as the user, half of
    them from a given opening, so that all kinds come up; passages and answers are kept.

    Args:
        checkpoint: The target.
        runner: From :func:`make_runner`.
        config: What to sample.
        index: Which shard.
        layer_ids: Layers of the target of which something is kept.
        keeps: What is.
    """
    rng = random.Random(f"{config.seed}/{index}")
    generator = torch.Generator().manual_seed(rng.getrandbits(63))
    num_self = round(config.texts_per_shard * config.self_prompt_share)
    num_template = config.texts_per_shard - num_self
    kinds: list[PromptKind] = [PROMPT_KINDS[place % len(PROMPT_KINDS)] for place in range(num_template)]
    num_passages = kinds.count("summarising")
    user_turn = _user_turn(checkpoint)
    openings = [rng.choice(OPENINGS) if rng.random() < _OPENED_SHARE else "" for _ in range(num_self)]
    seeds = [
        SampleRequest(
            prompt=[*user_turn, *checkpoint.tokenizer.encode(opening)] if opening else user_turn,
            temperature=1.0,
            max_tokens=96,
        )
        for opening in openings
    ]
    kinds_of_passages: tuple[PromptKind, ...] = ("chat", "writing")
    seeds += [
        SampleRequest(
            prompt=chat_prompt(checkpoint, template_prompt(rng, kind=rng.choice(kinds_of_passages))),
            temperature=0.8,
            max_tokens=rng.randint(60, 120),
        )
        for _ in range(num_passages)
    ]
    sample = partial(
        sample_texts, runner, eos_ids=checkpoint.eos_ids, layer_ids=layer_ids, generator=generator, keeps=keeps
    )
    drafts = sample(seeds)
    written = [checkpoint.tokenizer.decode(text.tokens) for text in drafts]
    prompts = [opening + rest for opening, rest in zip(openings, written[:num_self], strict=True)]
    passages = written[num_self:]
    prompts += [
        template_prompt(rng, kind=kind, passage=passages.pop() if kind == "summarising" else "") for kind in kinds
    ]
    rng.shuffle(prompts)
    encoded = [chat_prompt(checkpoint, prompt) for prompt in prompts if prompt.strip()]
    requests = [
        SampleRequest(prompt=prompt, temperature=rng.choice(TEMPERATURES), max_tokens=config.max_tokens)
        for prompt in encoded
        if len(prompt) <= config.max_prompt_tokens
    ]
    return drafts[num_self:] + sample(requests)


def shard_path(directory: Path, index: int) -> Path:
    """Return where a shard lies."""
    return directory / f"shard-{index:05d}.npz"


def write_shard(path: Path, texts: list[SampledText]) -> None:
    """Write a shard whole or not at all."""
    unfinished = path.with_suffix(".partial")
    with unfinished.open("wb") as file:
        np.savez(
            file,
            tokens=np.concatenate([np.asarray(text.prompt + text.tokens, np.int32) for text in texts]),
            num_prompt=np.asarray([len(text.prompt) for text in texts], np.int32),
            num_sampled=np.asarray([len(text.tokens) for text in texts], np.int32),
            top_ids=np.concatenate([text.top_ids for text in texts]),
            top_logprobs=np.concatenate([text.top_logprobs for text in texts]),
            states=np.concatenate([text.states for text in texts]),
        )
    unfinished.rename(path)


def read_shard(path: Path) -> Iterator[SampledText]:
    """Yield the texts of a shard."""
    with np.load(path, allow_pickle=False) as arrays:
        tokens, top_ids, top_logprobs = arrays["tokens"], arrays["top_ids"], arrays["top_logprobs"]
        states = arrays["states"]
        token, sampled, state = 0, 0, 0
        for num_prompt, num_sampled in zip(arrays["num_prompt"].tolist(), arrays["num_sampled"].tolist(), strict=True):
            middle, stop = token + num_prompt, token + num_prompt + num_sampled
            yield SampledText(
                prompt=tuple(tokens[token:middle].tolist()),
                tokens=tuple(tokens[middle:stop].tolist()),
                top_ids=top_ids[sampled : sampled + num_sampled],
                top_logprobs=top_logprobs[sampled : sampled + num_sampled],
                states=states[state : state + num_prompt + num_sampled - 1],
            )
            token, sampled, state = stop, sampled + num_sampled, state + num_prompt + num_sampled - 1


def corpus_digest(directory: Path, indices: range) -> str:
    """Return the SHA-256 over the shards' bytes, in order."""
    digest = hashlib.sha256()
    for index in indices:
        digest.update(shard_path(directory, index).read_bytes())
    return digest.hexdigest()
