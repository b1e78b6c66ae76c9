"""Certified bounds of networks of several widths: what a message of given length is worth as the network grows."""

import math
from typing import Any

import torch

from forerun.bounds.codebook import count_magnitudes, symbol_nats, symbol_values
from forerun.bounds.pac_bayes import binomial_tail_bound, complexity_nats
from forerun.bounds.phenomena.noisy_digits import NUM_CLASSES
from forerun.bounds.prior import Layer, PriorGrid, build_network, prepare_inputs
from forerun.bounds.search import SearchConfig, search_messages
from forerun.bounds.verifier import MAGNITUDE_BITS
from forerun.data.labelled import LabelledData

_LEVELS, _DELTA = 5, 0.05


def bound_by_width(
    train: LabelledData, test: LabelledData, *, widths: tuple[int, ...], dims: tuple[int, ...], search: SearchConfig
) -> list[dict[str, Any]]:
    """Search a short message for each width and dimension, and bound its error.

    Args:
        train: Inputs scaled.
        test: Likewise.
        widths: Of the hidden layer; the grid is these and ``dims``, and its choice is paid.
        dims: Numbers of coefficients.
        search: How to search.

    Returns:
        By width and dimension: parameters of the network, errors, bits of the message, bound at delta 0.05.
    """
    architectures = tuple((Layer(kind="dense", width=width),) for width in widths)
    grid = PriorGrid(
        input_shape=(1, train.inputs.shape[1], 1), num_classes=NUM_CLASSES, input_scale=1.0,
        architectures=architectures, subspace_dims=dims, levels=(_LEVELS,),
    )  # fmt: skip
    header_bits = math.log2(len(widths) * len(dims)) + MAGNITUDE_BITS * (_LEVELS // 2)
    other_nats = complexity_nats(code_length_bits=header_bits, delta=_DELTA)
    labels = torch.from_numpy(train.labels)
    rows = []
    for width, architecture in zip(widths, architectures, strict=True):
        inputs = prepare_inputs(grid, architecture, train.inputs)
        test_inputs = prepare_inputs(grid, architecture, test.inputs)
        for dim in dims:
            network = build_network(grid, architecture=architecture, dim=dim, seed=0)
            message = search_messages(
                network, inputs, labels, architecture=architecture, levels=_LEVELS, seed=0,
                other_nats=other_nats, config=search,
            )[0]  # fmt: skip
            coefficients = symbol_values(torch.tensor(message.symbols), message.magnitude_steps)
            with torch.no_grad():
                num_errors = int((network(inputs, coefficients).argmax(dim=1) != labels).sum())
                wrong = network(test_inputs, coefficients).argmax(dim=1).numpy() != test.labels
            nats = other_nats + symbol_nats(count_magnitudes(message.symbols, len(message.magnitude_steps)))
            rows.append({
                "width": width,
                "num_parameters": len(network.get_buffer("start")),
                "dim": dim,
                "training_error": num_errors / len(labels),
                "test_error": float(wrong.mean()),
                "bits": (nats - math.log(1 / _DELTA)) / math.log(2),
                "bound": binomial_tail_bound(num_errors, len(labels), nats),
            })  # fmt: skip
    return rows
