"""Options that actions of ``forerun world`` share, and what they open."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forerun.cli.options import add_json_option, add_threads_option

if TYPE_CHECKING:
    from forerun.data.pixel_shards import PixelDataset
    from forerun.worldmodels.jepa.model import Jepa


def add_model_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--model DIR``."""
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="folder 'model' of 'world train'")


def add_data_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--data DIR``."""
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of 'world collect'")


def add_model_and_data(parser: argparse.ArgumentParser) -> None:
    """Add ``--model``, ``--data``, ``--threads`` and ``--json``; :func:`opened` takes them up."""
    add_model_option(parser)
    add_data_option(parser)
    add_threads_option(parser)
    add_json_option(parser)


def opened(args: argparse.Namespace) -> "tuple[Jepa, dict[str, Any], PixelDataset]":
    """Return model, manifest and data that ``--model`` and ``--data`` name, which must fit each other."""
    from forerun.data.pixel_shards import read_dataset
    from forerun.worldmodels.jepa.checkpoint import check_fits, load_model

    model, manifest = load_model(args.model)
    dataset = read_dataset(args.data)
    check_fits(model, dataset.episodes)
    return model, manifest, dataset
