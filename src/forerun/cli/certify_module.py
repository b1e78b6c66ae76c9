"""What ``forerun certify --module`` and ``forerun verify`` of its certificate do."""

import argparse
import sys
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from forerun.cli.console import write_line
from forerun.cli.options import input_file

if TYPE_CHECKING:
    from forerun.bounds.result import Certified

MODULE_OPTION: Final = "--module"
_DIM: Final = 160
_OPTIONS: Final = ("input_shape", "projection", "dim", "levels", "seed", "base")


def add_module_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``--module``; the base's word is among those of ``--model``."""
    group = parser.add_argument_group("modules of your own (--module, with --data)")
    group.add_argument(
        MODULE_OPTION,
        metavar="PACKAGE.MODULE:FACTORY",
        help="function or class that makes a torch.nn.Module without arguments, found from this folder or installed; "
        "inputs [batch, ...] to scores [batch, classes]",
    )
    group.add_argument(
        "--input-shape", type=int, nargs="+", metavar="N", help="of an example, such as 1 8 8 (default: the data's)"
    )
    group.add_argument(
        "--projection",
        nargs="+",
        choices=("dense", "sparse", "fastfood", "kronecker"),
        help="from coefficients to parameters; of several, and of those below, the best bound is kept (default: dense)",
    )
    group.add_argument(
        "--dim",
        type=int,
        nargs="+",
        metavar="N",
        help="coefficients (default: 160, or as many as the module has values for)",
    )
    group.add_argument("--levels", type=int, nargs="+", metavar="N", help="3, 5, 7 or 9 (default: 5)")
    group.add_argument(
        "--seed",
        type=int,
        nargs="+",
        metavar="N",
        help="0 to 3, of start and projection (default: 0)",
    )
    group.add_argument(
        "--base",
        type=input_file,
        metavar="FILE",
        help="safetensors file of tensors that the start takes, such as frozen layers under an adapter; needs "
        "--base-is-independent",
    )


def check_no_module_options(args: argparse.Namespace) -> None:
    """Refuse options of ``--module`` without it.

    Raises:
        ConfigError: There is one.
    """
    from forerun.core.errors import ConfigError

    for name in _OPTIONS:
        if getattr(args, name) is not None:
            option = "--" + name.replace("_", "-")
            raise ConfigError(
                f"{option}: is an option of {MODULE_OPTION} PACKAGE.MODULE:FACTORY; name a module, or drop it"
            )


def certify_named_module(args: argparse.Namespace) -> "Certified":
    """Certify the module that the arguments name.

    Raises:
        ConfigError: The arguments, the data or the module are unusable.
    """
    from forerun.bounds.module.certify import TASK, ModuleCandidate, certify_module
    from forerun.bounds.module.task import module_task
    from forerun.bounds.module.verifier import module_kind
    from forerun.bounds.result import Certified
    from forerun.core.errors import ConfigError
    from forerun.nn.projections.build import PROJECTION_NAMES

    if args.data is None or args.task is not None or args.model is not None or args.input_scale != 1.0:
        raise ConfigError(
            f"{MODULE_OPTION}: needs --data PATH (or digits, or mnist1d) and takes none of --task, --model and "
            "--input-scale; scale inputs inside the module, by numbers that do not come from the data"
        )
    _look_in_this_folder()
    task = module_task(
        args.module,
        args.data,
        input_shape=None if args.input_shape is None else tuple(args.input_shape),
        num_train=args.num_train,
        base=args.base,
        base_is_independent=args.base_is_independent,
    )
    dims = args.dim or [max(dim for dim in task.grid.subspace_dims if dim <= _DIM)]
    choices = product(args.projection or PROJECTION_NAMES[:1], dims, args.levels or [5], args.seed or [0])
    candidates = tuple(
        ModuleCandidate(projection=projection, dim=dim, levels=levels, seed=seed)
        for projection, dim, levels, seed in choices
    )
    result = certify_module(task, args.out, delta=args.delta, candidates=candidates, report=write_line)
    base = "" if args.base is None else f" --base {args.base}"
    return Certified(
        name=TASK,
        result=result,
        train=task.train,
        errors_of=module_kind(task.grid.factory, task.base)[2],
        verify_options=f"--data {args.data} {MODULE_OPTION} {args.module}{base}",
    )


def is_module_certificate(manifest: dict[str, Any]) -> bool:
    """Return whether a manifest is that of a module's certificate."""
    return manifest.get("format") == "forerun-module-certificate"


def verifier_options(args: argparse.Namespace, options: list[str]) -> tuple[str, list[str]]:
    """Return the program that checks a module's certificate, and its options.

    Args:
        args: Of ``forerun verify``.
        options: Those that every verifier of classifiers takes.

    Raises:
        ConfigError: No module was named.
    """
    from forerun.core.errors import ConfigError

    if args.module is None:
        raise ConfigError(
            f"{args.certificate}: is the certificate of a module, whose code verifying it runs; read that code, then "
            f"name it with {MODULE_OPTION} PACKAGE.MODULE:FACTORY"
        )
    _look_in_this_folder()
    base = [] if args.base is None else [f"--base={args.base}"]
    return "forerun.bounds.module.verifier", [*options, f"--module={args.module}", *base]


def _look_in_this_folder() -> None:
    """Let imports find modules of the folder that the command was started in, as ``python -m`` does."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
