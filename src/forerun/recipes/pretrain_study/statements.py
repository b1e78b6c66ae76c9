"""The paper's statements, each held against a study's evidence."""

import math
from typing import Final

import numpy as np

from forerun.recipes.pretrain_study.claims import (
    Claim,
    Side,
    above,
    below,
    claim_about,
    claim_of,
    more_than,
    not_identified,
)
from forerun.recipes.pretrain_study.evidence import Evidence
from forerun.recipes.pretrain_study.study_file import Student

_STUDENT_SHARE: Final = 1 / 8
"""Of the ensemble's parameters: the paper's student."""


def claims_of(evidence: Evidence) -> list[Claim]:
    """Return every claim, in the order of the paper."""
    claims = [*_size_claims(evidence), *_method_claims(evidence), *_efficiency_claims(evidence)]
    nearest = evidence.student_nearest(_STUDENT_SHARE)
    if nearest is not None:
        claims.append(_student_claim(evidence, nearest))
    claims.extend(_self_claim(evidence, item) for item in evidence.study.students if item.kind == "self")
    return claims


def _size_claims(evidence: Evidence) -> list[Claim]:
    standard, regularised = list(evidence.standard.values()), list(evidence.regularised.values())
    if len(standard) < 2:
        return []
    rise = standard[-1] - np.min(standard[:-1], axis=0)
    steps = np.max(np.diff(np.stack(regularised), axis=0), axis=0)
    return [
        claim_of("Standard: the largest model is no better than a smaller one", "+0.015", rise, "nats", above(0)),
        claim_of("Regularised: the loss falls with every step up in size", "falls at each", steps, "nats", below(0)),
    ]


def _method_claims(evidence: Evidence) -> list[Claim]:
    gain = evidence.regularised[evidence.best_single.size] - evidence.standard[evidence.best_standard.size]
    ensemble = evidence.curves[evidence.best_ensemble.size]
    return [
        claim_of(
            "Regularised beats standard, the best size of each", "3.43 (limit) against 3.75", gain, "nats", below(0)
        ),
        claim_of(
            f"An ensemble of {ensemble.shape[1]} beats the best single model of any size",
            "3.27 against 3.43 (limits)",
            ensemble[:, -1] - evidence.single,
            "nats",
            below(0),
        ),
    ]


def _efficiency_claims(evidence: Evidence) -> list[Claim]:
    aims: dict[str, tuple[str, str, Side]] = {
        "regularised": ("Regularised is worth more text", "2.29x", more_than(1)),
        "ensemble": ("The ensemble is worth at least 2.5 times the text", "3.75x seen", above(2.5)),
        "joint limit": ("The joint limit is worth at least 4 times the text", "5.17x", above(4)),
    }
    multipliers = evidence.multipliers()
    claims: list[Claim] = []
    for name, (statement, paper, aim) in aims.items():
        found = multipliers.get(name)
        interval = None if found is None else found.observed or found.extrapolated
        if found is None or interval is None:
            problems = evidence.joint["without_embeddings"].problems if found is None else found.problems
            claims.append(not_identified(statement, paper, problems, "x"))
            continue
        note = "extrapolated by a law in the text"
        if found.observed is not None:
            note = "seen: between losses the standard recipe reached"
            if not math.isfinite(interval.high):
                note = f"the standard recipe was given {found.most_seen:g} times the text and may not reach this loss"
        claims.append(claim_about(statement, paper, interval, "x", aim, note=note))
    return claims


def _student_claim(evidence: Evidence, student: Student) -> Claim:
    share = evidence.share_of_teacher(student)
    return claim_of(
        f"A student of an eighth of the ensemble (here {student.size}) keeps at least 80 % of its gain",
        "83 %",
        100 * evidence.kept(student),
        "%",
        above(80),
        note=f"the student nearest to 1/8 has {share['total']:.3f} of the ensemble's parameters, "
        f"{share['without_embeddings']:.3f} without embeddings; one run, its seed is not in the interval",
    )


def _self_claim(evidence: Evidence, student: Student) -> Claim:
    return claim_of(
        "The self-distilled student beats its teacher",
        "3.43 against 3.71",
        evidence.run_loss(student.run) - evidence.run_loss(student.teacher[0]),
        "nats",
        below(0),
        note="one run of each, their seeds are not in the interval",
    )
