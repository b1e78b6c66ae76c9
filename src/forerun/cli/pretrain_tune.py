"""``forerun pretrain tune``: settings of one size, until no neighbour is better."""

import argparse
from collections.abc import Callable

from forerun.cli.console import write_json, write_line
from forerun.cli.options import Commands, add_command, add_json_option, add_number
from forerun.cli.pretrain_options import (
    add_executor_options,
    add_recipe_options,
    add_run_options,
    open_executor,
    run_config,
)
from forerun.cli.progress import progress_bars

_DESCRIPTION = """\
Tunes learning rate, weight decay and epochs on the tune split: from where --learning-rate, --weight-decay and --epochs
say, one ladder at a time, until no neighbour of the best settings is better. The standard recipe keeps the weight decay
at 0.1. Then the winner is trained with other seeds, to see how much of its lead is noise.

--search tau puts the decay's timescale on the ladder in place of the decay: the epochs in which weights forget, which
carry over better between learning rates, sizes and amounts of text.

Every point is a run in RUNS. The same command after an interruption uses the finished ones.
"""
_EPILOG = """\
examples:
  forerun pretrain tune --data data --out runs --size 25k --unique-tokens 50000
  forerun pretrain tune --data data --out runs --size 25k --unique-tokens 50000 --recipe standard
  forerun pretrain tune --data data --out runs --size 75k --learning-rates 3e-3,6e-3 --ladder-epochs 8,16,32
  forerun pretrain tune --data data --out runs --size 75k --unique-tokens 50000 --search tau --timescales 0.5,1,2,4
"""


def add_tune(actions: Commands) -> None:
    """Add the action."""
    tune = add_command(
        actions, "tune", summary="find the best settings of one size", description=_DESCRIPTION, epilog=_EPILOG
    )
    add_run_options(tune)
    add_recipe_options(tune)
    tune.add_argument(
        "--learning-rates", type=_rungs(float), metavar="X,X,...", help="ladder (default: 7.5e-4 to 2.4e-2, by two)"
    )
    tune.add_argument(
        "--weight-decays", type=_rungs(float), metavar="X,X,...", help="ladder (default: 0.1 to 6.4, by two)"
    )
    tune.add_argument(
        "--search",
        choices=("decay", "tau"),
        default="decay",
        help="ladder beside rate and epochs: the decay, or its timescale in epochs (default: %(default)s)",
    )
    tune.add_argument(
        "--timescales",
        type=_rungs(float),
        metavar="X,X,...",
        help="ladder of --search tau (default: 0.25 to 32, by two)",
    )
    tune.add_argument("--ladder-epochs", type=_rungs(int), metavar="N,N,...", help="ladder (default: 1 to 64, by two)")
    add_number(tune, "--num-seeds", 3, "seeds of the winner, in all")
    add_executor_options(tune)
    add_json_option(tune)
    tune.set_defaults(action=_tune)


def _rungs(kind: type[float] | type[int]) -> Callable[[str], tuple[float, ...]]:
    def read(text: str) -> tuple[float, ...]:
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: give numbers parted by commas") from error

    return read


def _tune(args: argparse.Namespace) -> int:
    from forerun.pretraining.tune import EPOCHS, LEARNING_RATES, TIMESCALES, WEIGHT_DECAYS, TuneConfig, tune, tune_json

    config = TuneConfig(
        recipe=args.recipe,
        base=run_config(args),
        learning_rates=args.learning_rates or LEARNING_RATES,
        weight_decays=args.weight_decays or WEIGHT_DECAYS,
        timescales=args.timescales or TIMESCALES,
        epochs=tuple(int(rung) for rung in args.ladder_epochs or EPOCHS),
        num_seeds=args.num_seeds,
        search=args.search,
    )
    with progress_bars() as show, open_executor(args) as executor:
        num_rounds = 0

        def report(done: int, total: int, detail: str) -> None:
            nonlocal num_rounds
            show(f"round {num_rounds + 1}", done, total, detail)
            num_rounds += done == total

        result = tune(args.data, args.out, config, executor, report=report)
    certificate = result.certificate
    write_line("  ".join(f"{name.replace('_', ' '):>22}" for name in certificate.best) + f"  {'tune loss':>9}")
    for settings, loss, note in (
        (certificate.best, certificate.loss_nats, "best"),
        *((neighbour.settings, neighbour.loss_nats, "") for neighbour in certificate.neighbours),
    ):
        write_line(f"{'  '.join(f'{value:>22g}' for value in settings.values())}  {loss:>9.4f}  {note}".rstrip())
    deviation = result.seed_deviation_nats
    write_line(
        f"{result.standing}{': ' + ', '.join(certificate.open_ends) if certificate.open_ends else ''}; "
        f"{certificate.num_evaluated} settings tried; "
        + (f"{deviation:.4f} between seeds" if deviation is not None else "one seed: the noise is not known")
    )
    for folder, loss in zip(result.folders, result.seed_losses, strict=True):
        write_line(f"{loss:.4f}  {folder}")
    if args.json is not None:
        write_json(args.json, tune_json(result))
    return 0
