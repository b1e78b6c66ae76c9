"""Which tokens a draft can propose."""

from collections.abc import Iterable

import numpy as np

from forerun.training.distillation.sampling import SampledText


def choose_vocab(texts: Iterable[SampledText], *, size: int, vocab_size: int, always: Iterable[int] = ()) -> np.ndarray:
    """Return the tokens to which the target gives the most probability over some texts.

    Ties (tokens that never came up) go to the lowest ids, which byte-pair encodings give to the commonest pieces.

    Args:
        texts: Sampled from the target.
        size: How many tokens.
        vocab_size: Size of the target's vocabulary.
        always: Tokens to include in any case, such as end-of-sequence.

    Returns:
        int64 ids, ascending.
    """
    mass = np.zeros(vocab_size)
    for text in texts:
        np.add.at(mass, text.top_ids.ravel(), np.exp(text.top_logprobs.astype(np.float64)).ravel())
    mass[list(always)] = np.inf
    chosen = np.argsort(-mass, kind="stable")[:size]
    return np.sort(chosen).astype(np.int64)
