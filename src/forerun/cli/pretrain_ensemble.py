"""``forerun pretrain ensemble``: average runs and measure them; and how an ensemble is printed and written."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from forerun.cli.console import write_json, write_line
from forerun.cli.options import Commands, add_json_option, add_threads_option
from forerun.cli.pretrain_options import add_data_option
from forerun.cli.progress import progress_bars

if TYPE_CHECKING:
    from forerun.nn.law_average import Average
    from forerun.pretraining.ensemble import EnsembleResult
    from forerun.pretraining.prepared_corpus import PreparedCorpus


def add_ensemble(actions: Commands) -> None:
    """Add the action."""
    ensemble = actions.add_parser(
        "ensemble",
        help="average runs and measure them on the tune split",
        description="Measures every run alone, and the ensembles of the first 1, 2, ... runs by both averages.",
    )
    ensemble.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders that training printed")
    add_data_option(ensemble)
    add_ensemble_options(ensemble, folder_option="--out")
    add_threads_option(ensemble)
    add_json_option(ensemble)
    ensemble.set_defaults(action=_ensemble)


def add_ensemble_options(parser: argparse.ArgumentParser, *, folder_option: str) -> None:
    """Add where the ensemble checkpoint goes, and ``--average``."""
    parser.add_argument(folder_option, type=Path, metavar="DIR", help="write the ensemble checkpoint there")
    parser.add_argument(
        "--average", choices=("probability", "logit"), help="average of the checkpoint (default: the better one)"
    )


def write_ensemble_result(
    result: "EnsembleResult",
    folder: Path | None,
    *,
    average: "Average | None",
    corpus: "PreparedCorpus",
    json_file: Path | None,
) -> None:
    """Print what an ensemble reached, and write its checkpoint and its JSON where they are asked for.

    Raises:
        ConfigError: A file can't be written.
    """
    from forerun.pretraining.ensemble import ensemble_json, write_ensemble

    write_line("tune loss, nats a token")
    write_line(f"{'members':>7}  {'alone':>8}  {'probability':>11}  {'logit':>8}  run")
    rows = zip(
        result.members, result.member_losses, result.by_count["probability"], result.by_count["logit"], strict=True
    )
    for count, (member, alone, probability, logit) in enumerate(rows, start=1):
        write_line(
            f"{count:>7}  {alone.loss_nats:>8.4f}  {probability.loss_nats:>11.4f}  {logit.loss_nats:>8.4f}  {member}"
        )
    average = average or result.best_average
    if folder is not None:
        write_ensemble(folder, result, average=average, data_sha256=corpus.manifest.data_sha256)
        write_line(f"wrote {folder} ({average} average of {len(result.members)} runs)")
    if json_file is not None:
        write_json(json_file, {"average": average, **ensemble_json(result)})


def _ensemble(args: argparse.Namespace) -> int:
    import torch

    from forerun.pretraining.ensemble import evaluate_ensemble
    from forerun.pretraining.prepared_corpus import open_corpus

    torch.set_num_threads(args.threads)
    corpus = open_corpus(args.data)
    with progress_bars() as show:
        result = evaluate_ensemble(args.runs, corpus, report=lambda done, total: show("measure", done, total, ""))
    write_ensemble_result(result, args.out, average=args.average, corpus=corpus, json_file=args.json)
    return 0
