r"""A bound for a model of any size, by how often it agrees with a certified one on examples without labels.

If a model errs, it disagrees with the certified classifier or that one errs:

.. math:: R(\text{model}) \le R(\text{certified}) + P(\text{they disagree}).

The first summand has its certificate, the second the binomial bound of the disagreements on examples that neither was
trained on. Labels are not needed. Both statements may fail, so the sum holds with probability at least 1 minus the sum
of their failure probabilities.

Reference:
    "Bound to Disagree", arXiv 2602.23128: the idea; the bound here is Boole's inequality and two binomial tails.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forerun.bounds import verifier
from forerun.bounds.pac_bayes import holdout_bound
from forerun.bounds.problem import ErrorsOf
from forerun.core.errors import ConfigError
from forerun.data.labelled import LabelledData


@dataclass(frozen=True, kw_only=True, slots=True)
class AgreementBound:
    """What is known about a model that agrees with a certified one.

    Attributes:
        num_disagreements: With the certified classifier; where that has no clear favourite, it disagrees.
        num_unlabelled: Examples compared.
        certified_bound: On the error of the certified classifier.
        disagreement_bound: On the probability that the two disagree.
        risk_bound: Their sum, at most 1.
        failure_probability: Of the sum: the certificate's delta and that of the comparison.
    """

    num_disagreements: int
    num_unlabelled: int
    certified_bound: float
    disagreement_bound: float
    risk_bound: float
    failure_probability: float

    def as_json(self) -> dict[str, Any]:
        """Return every number."""
        return asdict(self)


def bound_by_agreement(
    certificate: Path,
    train: LabelledData,
    predicted: LabelledData,
    *,
    certified_bound: float,
    delta: float,
    errors_of: ErrorsOf = verifier.CLASSIFIER[2],
) -> AgreementBound:
    """Bound the error of the model that made some predictions.

    Args:
        certificate: Of the other classifier.
        train: What that was trained on; the model may have been, too.
        predicted: Examples that neither was trained on, the model's predictions in place of labels. That they are
            independent draws of the same kind is the user's statement.
        certified_bound: On the error of the certified classifier, as verified.
        delta: Failure probability of the certificate, and as much again of the comparison.
        errors_of: How the errors of the certified classifier are found.

    Raises:
        ConfigError: The examples are not of this problem, repeated, or among those trained on.
    """
    manifest, message = verifier.read_certificate(certificate)
    grid = manifest["grid"]
    num_classes = grid["num_classes"]
    if predicted.inputs.shape[1] != train.inputs.shape[1]:
        raise ConfigError(
            f"the predictions are for examples of {predicted.inputs.shape[1]} features, the certificate's have "
            f"{train.inputs.shape[1]}; predict examples of the same kind"
        )
    if not 0 <= predicted.labels.min() <= predicted.labels.max() < num_classes:
        raise ConfigError(
            f"predictions from {predicted.labels.min()} to {predicted.labels.max()}: must be classes 0 to "
            f"{num_classes - 1}"
        )
    rows = [row.tobytes() for row in predicted.inputs.astype(float) + 0.0]
    known = {row.tobytes() for row in train.inputs.astype(float) + 0.0}
    num_known, num_repeated = sum(row in known for row in rows), len(rows) - len(set(rows))
    if num_known or num_repeated:
        raise ConfigError(
            f"of {len(rows)} predicted examples {num_known} are training examples and {num_repeated} are repeated; "
            "give fresh ones, each once"
        )
    choices, coefficients, _ = verifier.decode(message, grid)
    num_disagreements = int(errors_of(choices, coefficients, predicted.inputs, predicted.labels, grid).sum())
    disagreement = holdout_bound(num_errors=num_disagreements, num_samples=len(predicted), delta=delta)
    return AgreementBound(
        num_disagreements=num_disagreements,
        num_unlabelled=len(predicted),
        certified_bound=certified_bound,
        disagreement_bound=disagreement,
        risk_bound=min(1.0, certified_bound + disagreement),
        failure_probability=min(1.0, 2 * delta),
    )
