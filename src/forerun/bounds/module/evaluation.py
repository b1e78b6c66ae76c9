"""What a coded module says of examples: rebuilt from its factory, checked against the grid, in float64."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import nn

from forerun.bounds.module.factory import FOREIGN_ERRORS, build_module, load_factory, source_digests, start_sha256
from forerun.bounds.verifier import lost_rows, random_words, require
from forerun.nn.projections.build import build_projection
from forerun.nn.subspace_module import ModuleSubspace, count_trained

_STREAMS: Final = 10_000
_ORDER_STREAM: Final = 99
_PART_SIZE: Final = 512
_SMALLER_PART_SIZE: Final = 301
_SAME: Final = 1e-9


def build_subspace(module: nn.Module, *, projection: str, dim: int, seed: int) -> ModuleSubspace:
    """Return a module in its subspace, as one choice of the grid unfolds.

    Args:
        module: At its start; taken over.
        projection: By name.
        dim: Coefficients.
        seed: Of start and projection.

    Raises:
        ConfigError: The choice is unusable.
    """

    def words(stream: int, count: int) -> np.ndarray:
        return random_words(seed, _STREAMS + stream, count)

    return ModuleSubspace(module, build_projection(projection, num_values=count_trained(module), dim=dim, words=words))


def module_errors(
    choices: dict[str, Any],
    coefficients: Float[np.ndarray, " dim"],
    inputs: Float[np.ndarray, "n features"],
    labels: Int[np.ndarray, " n"],
    grid: Mapping[str, Any],
    *,
    factory: str,
    base: Path | None,
) -> Bool[np.ndarray, " n"]:
    """Return which examples a decoded module gets wrong.

    Args:
        choices: Of the message.
        coefficients: Of the message.
        inputs: Examples.
        labels: Their classes.
        grid: Of the manifest.
        factory: Whose code the reader of the certificate agrees to run.
        base: The file of tensors for the start, if the grid has one.

    Raises:
        ValueError: Why nothing can be certified: other code, another start, scores that depend on batch-mates.
    """
    require(factory == grid["factory"], f"the certificate is of {grid['factory']}, not of {factory}")
    require((base is None) == (grid["base_is_independent"] is None), "the certificate needs its base, or has none")
    require(grid["base_is_independent"] is not False, "nobody says that the base was made without these data")
    seed = choices["seeds"]
    make = load_factory(factory)
    module = build_module(make, seed, base=base)
    found = source_digests(make, module)
    other = sorted(
        name for name in found | grid["sources_sha256"] if found.get(name) != grid["sources_sha256"].get(name)
    )
    require(not other, f"the source of {', '.join(other)} is not the one of the certificate")
    require(
        start_sha256(module) == grid["starts_sha256"][grid["seeds"].index(seed)],
        f"the factory's start for seed {seed} is not the one of the certificate, which PyTorch {torch.__version__} "
        "should give as the one that made it",
    )
    network = build_subspace(
        module, projection=choices["projections"], dim=choices["subspace_dims"], seed=seed
    ).double()
    require(len(network.get_buffer("start")) == grid["num_values"], "the module trains another number of values")
    scores = independent_scores(
        network, coefficients, inputs, input_shape=tuple(grid["input_shape"]), num_classes=grid["num_classes"]
    )
    return lost_rows(scores, labels)


@torch.no_grad()
def independent_scores(
    network: ModuleSubspace,
    coefficients: Float[np.ndarray, " dim"],
    inputs: Float[np.ndarray, "n features"],
    *,
    input_shape: tuple[int, ...],
    num_classes: int,
) -> Float[np.ndarray, "n classes"]:
    """Return the scores of examples, found twice with other batch-mates and the same both times.

    Args:
        network: In float64.
        coefficients: The point.
        inputs: Examples.
        input_shape: Of one, as the module reads it.
        num_classes: Scores that it must give.

    Raises:
        ValueError: The module fails, gives other shapes, NaN or infinity, changes its own state, or an example's scores
            depend on the others or on chance.
    """
    values = network.values(torch.from_numpy(coefficients))
    before = start_sha256(network)

    def scores_of(order: np.ndarray, part_size: int) -> np.ndarray:
        found = np.empty((len(order), num_classes))
        for part in np.array_split(order, -(-len(order) // part_size)):
            examples = torch.from_numpy(inputs[part].astype(np.float64)).view(-1, *input_shape)
            found[part] = _checked(network, examples, values, num_classes)
        return found

    num_examples = len(inputs)
    scores = scores_of(np.arange(num_examples), _PART_SIZE)
    smaller = min(_SMALLER_PART_SIZE, max(1, num_examples // 3))
    again = scores_of(np.argsort(random_words(1, _ORDER_STREAM, num_examples)), smaller)
    gap = np.abs(scores - again).max()
    require(
        gap <= _SAME * (1 + np.abs(scores).max()),
        f"scores differ by {gap:.3g} with other examples in the batch: batch statistics, or chance that evaluation "
        "mode leaves on",
    )
    require(start_sha256(network) == before, "the module changes its own parameters or buffers while it predicts")
    return scores


def _checked(network: ModuleSubspace, examples: torch.Tensor, values: torch.Tensor, num_classes: int) -> np.ndarray:
    try:
        scores = network.scores(examples, values)
    except FOREIGN_ERRORS as error:
        raise ValueError(
            f"the module fails on inputs {list(examples.shape)} in float64 ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no message'})"
        ) from error
    shape = [len(examples), num_classes]
    require(isinstance(scores, torch.Tensor), f"the module gives a {type(scores).__name__}; must give scores {shape}")
    require(list(scores.shape) == shape, f"the module gives scores {list(scores.shape)}; must be {shape}")
    require(bool(scores.isfinite().all()), "the module gives NaN or infinity")
    return scores.double().numpy()
