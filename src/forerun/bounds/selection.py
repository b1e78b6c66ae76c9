"""The message with the least bound of several: each decoded and measured elsewhere, the best written and verified."""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from forerun.bounds.certificate import ask_verifier, new_manifest, write_certificate
from forerun.bounds.pac_bayes import affordable_bits, complexity_nats
from forerun.bounds.problem import Problem
from forerun.bounds.result import CertifyResult, bound_message
from forerun.core.errors import CertificateError, ConfigError

_LIKELY_RISK = 0.1


def require_affordable(*, needed_bits: float, num_classes: int, num_samples: int, delta: float) -> tuple[float, float]:
    """Find out before training whether any bound can come out below chance.

    Args:
        needed_bits: Of the shortest message that will be tried.
        num_classes: Classes.
        num_samples: n.
        delta: Failure probability.

    Returns:
        The bits with which a classifier just reaches chance: without training errors, and with 10%.

    Raises:
        ConfigError: delta is out of range, or the message is too long even without errors.
    """
    complexity_nats(code_length_bits=0.0, delta=delta)
    chance = 1 - 1 / num_classes
    without_errors, with_errors = (
        affordable_bits(target_risk=chance, empirical_risk=risk, num_samples=num_samples, delta=delta)
        for risk in (0.0, _LIKELY_RISK)
    )
    if without_errors < needed_bits:
        raise ConfigError(
            f"num_train={num_samples}: too few for a bound below chance ({chance:.3g}) at delta={delta:g}: with no "
            f"errors a classifier may take {max(without_errors, 0):.0f} bits, and the smallest that would be tried "
            f"takes over {needed_bits:.0f}; give more data"
        )
    return without_errors, with_errors


def affordable_line(bits: tuple[float, float]) -> str:
    """Return the advice given before training, from what :func:`require_affordable` found."""
    return (
        f"affordable for a bound below chance: {bits[0]:.0f} bits without errors, {bits[1]:.0f} with "
        f"{_LIKELY_RISK:.0%} errors"
    )


def certify_best(
    problem: Problem,
    messages: Iterable[tuple[str, bytes]],
    path: Path,
    *,
    delta: float,
    report: Callable[[str], None] = lambda line: None,
) -> CertifyResult:
    """Write the certificate of the message with the least bound.

    Choosing is free: every message has its share of one prior, and the bound holds for all of them at once.

    Args:
        problem: What they are about.
        messages: Coded, each with a few words that describe it; at least one.
        path: The certificate to write.
        delta: Failure probability.
        report: Told a line about each message.

    Returns:
        The numbers, all measured by the verifier in a process of its own.

    Raises:
        CertificateError: The verifier does not confirm what was written.
    """
    best: tuple[CertifyResult, bytes] | None = None
    for description, code in messages:
        result = _measure(problem, code, delta=delta)
        report(
            f"{description}: {result.empirical_risk:.1%} training error, {result.code_length_bits:.0f} bits, "
            f"bound {result.risk_bound:.1%}"
        )
        if best is None or result.risk_bound < best[0].risk_bound:
            best = result, code
    assert best is not None, "there is at least one message"
    result, code = best
    manifest = new_manifest(problem, delta=delta, message=code)
    manifest["claims"] = result.claims()
    manifest["beside"] = {"bounds": asdict(result.bounds), "holdout": result.holdout}
    write_certificate(path, manifest, code)
    options = ["--json", f"--grid-sha256={problem.grid.sha256}", *problem.options]
    answer = ask_verifier(problem.program, path, problem.train, options)
    if not answer["accepted"]:
        raise CertificateError(f"{path}: the verifier rejects it: {answer['reason']}; this is a fault of Forerun")
    return result


def _measure(problem: Problem, code: bytes, *, delta: float) -> CertifyResult:
    """Have the message decoded in a fresh process, and bound what it finds."""
    manifest = new_manifest(problem, delta=delta, message=code)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "draft.zip"
        write_certificate(draft, manifest, code)
        found = ask_verifier(problem.program, draft, problem.train, ["--json", "--measure", *problem.options])
    if not found["accepted"]:
        raise CertificateError(f"the verifier can't measure the message: {found['reason']}")
    return bound_message(problem, code, found, delta=delta)
