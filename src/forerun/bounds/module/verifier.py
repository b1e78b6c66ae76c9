"""Check the certificate of a module: needs PyTorch, this package and the module's own code.

``python -m forerun.bounds.module.verifier CERTIFICATE.zip DATA.npz --module=PACKAGE.MODULE:FACTORY [--base=FILE]
[--grid-sha256=HEX] [--json] [--measure]``. Data, answer and exit status are those of
:mod:`forerun.bounds.verifier`, which does all but compute the scores. It runs the factory's code: read it first.
Without a digest the grid's options must be the standard ones.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Final

import torch

from forerun.bounds import verifier
from forerun.bounds.module.evaluation import module_errors
from forerun.bounds.module.grid import standard_choices
from forerun.bounds.problem import CertificateKind

FORMAT: Final = "forerun-module-certificate"
VERSION: Final = 1

_USAGE: Final = "use: verifier CERTIFICATE.zip DATA.npz --module=PACKAGE.MODULE:FACTORY [--base=FILE] [options]\n"


def module_kind(factory: str, base: Path | None) -> CertificateKind:
    """Return the kind of certificate whose scores a module computes.

    Args:
        factory: Its name.
        base: Tensors that its start takes from a file.
    """
    return FORMAT, VERSION, partial(module_errors, factory=factory, base=base)


def standard_grid_sha256(path: Path) -> str:
    """Return the digest that a certificate's grid has if its options are the standard ones.

    Raises:
        ValueError: The file is no certificate of a module.
    """
    manifest, _ = verifier.read_certificate(path)
    try:
        grid = manifest["grid"]
        return verifier.grid_sha256({**grid, **standard_choices(int(grid["num_values"]))})
    except (KeyError, TypeError) as error:
        raise ValueError(f"the manifest is malformed ({type(error).__name__}: {error})") from error


def main(arguments: list[str]) -> int:
    """Verify or measure, and write the answer; returns the exit status."""
    values = dict(item.split("=", 1) for item in arguments if item.startswith(("--module=", "--base=")))
    rest = [item for item in arguments if item.partition("=")[0] not in {"--module", "--base"}]
    if "--module" not in values:
        sys.stderr.write(_USAGE)
        return 2
    torch.set_num_threads(1)
    if not any(item.startswith("--grid-sha256=") for item in rest):
        try:
            certificate = next(Path(item) for item in rest if not item.startswith("--"))
            rest.append(f"--grid-sha256={standard_grid_sha256(certificate)}")
        except (StopIteration, ValueError):
            pass  # the next line says what is wrong
    base = values.get("--base")
    return verifier.main(rest, module_kind(values["--module"], None if base is None else Path(base)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
