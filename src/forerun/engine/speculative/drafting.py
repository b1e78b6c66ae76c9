"""What moves drafts on: one pass of a draft model over every session that has work, and states of the target."""

from collections.abc import Iterable

import numpy as np

from forerun.core.features import FeatureReader
from forerun.core.protocols import LanguageModel
from forerun.core.rows import Rows
from forerun.engine.speculative.session import DraftSession


def run_pass(model: LanguageModel, sessions: Iterable[DraftSession]) -> list[DraftSession]:
    """Run the next rows of all sessions together.

    Args:
        model: The draft model; its cache is written.
        sessions: Of distinct sequences.

    Returns:
        The sessions that advanced; empty when none had work.
    """
    work = [(session, rows) for session in sessions if (rows := session.rows()) is not None]
    if not work:
        return []
    work.sort(key=lambda item: item[0].sequence)
    wanted = [session.logit_rows(rows) for session, rows in work]
    firsts = np.cumsum([0] + [len(rows) for _, rows in work[:-1]])
    indices = np.concatenate([first + some for first, some in zip(firsts, wanted, strict=True)])
    logits = model.forward(Rows.concatenate([rows for _, rows in work]), logit_rows=indices)
    place = 0
    for (session, _), some in zip(work, wanted, strict=True):
        session.absorb(logits[place : place + len(some)])
        place += len(some)
    return [session for session, _ in work]


def hand_over(model: LanguageModel, session: DraftSession, start: int, states: np.ndarray) -> None:
    """Give a draft what the target has computed for accepted tokens.

    Args:
        model: The draft model; its cache is written.
        session: Of the request.
        start: Position of the first of the tokens.
        states: Hidden states where the draft reads those, else keys and values; one entry per token.
    """
    stop = start + len(states)
    if isinstance(model, FeatureReader):
        model.take_features(session.sequence, start, states)
        session.read_again(start, stop)
    else:
        model.write_states(session.sequence, start, states)
        session.share(stop)
