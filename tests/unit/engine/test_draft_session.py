"""One draft session against a dense oracle: whatever has happened, a row sees exactly the text it stands for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated.models import SimulatedModel, history_law

from forerun.engine.config import SpeculativeConfig
from forerun.engine.sampling import SamplingParams
from forerun.engine.speculative.choice import DraftChoice
from forerun.engine.speculative.drafting import run_pass
from forerun.engine.speculative.fan_out import uniform_fan_out
from forerun.engine.speculative.session import DraftSession

VOCAB_SIZE = 12
LAW = history_law(VOCAB_SIZE, seed=1)
SMALL = (0, 2, 3, 5, 11)


def new_session(
    prompt, *, capacity=64, temperature=0.0, draft_ids=None, verification="coupled", sequence=0, is_joint=False
):
    vocab_ids = None if draft_ids is None else np.array(draft_ids)
    model = SimulatedModel(LAW, vocab_size=VOCAB_SIZE, num_sequences=2, capacity=capacity, vocab_ids=vocab_ids)
    choice = DraftChoice(
        SamplingParams(temperature=temperature, seed=3),
        SpeculativeConfig(verification=verification, copy_from_context=False),
        prompt,
        frozenset(),
        vocab_size=VOCAB_SIZE,
        vocab_ids=vocab_ids,
        request_number=0,
    )
    session = DraftSession(
        sequence=sequence,
        prompt_ids=prompt,
        choice=choice,
        capacity=capacity,
        fan_out=lambda budget, num_tokens: uniform_fan_out(budget=budget, num_speculative_tokens=num_tokens),
        is_joint=is_joint,
    )
    return model, session


def expected_texts(session, rows):
    """What the rows should see, from the session's tokens alone."""
    if session._num_cached < len(session.chain):
        start = session._num_cached
        return [tuple(session.chain[: start + i + 1]) for i in range(len(rows))]
    return [
        (*session.chain[: session.num_committed + branch.num_accepted], branch.token, *branch.tokens)
        for branch in session.branches[: len(rows)]
    ]


def advance(model, session):
    """Run one pass, comparing what each row sees; return whether there was one."""
    rows = session.rows()
    if rows is None:
        return False
    expected = expected_texts(session, rows)
    assert run_pass(model, [session]) == [session]
    assert model.texts == expected
    return True


def run(model, session, passes=100):
    for _ in range(passes):
        if not advance(model, session):
            return


@st.composite
def events(draw):
    return draw(
        st.lists(
            st.tuples(
                st.integers(0, 8),  # passes before the outcome comes
                st.integers(0, 10),  # which outcome, as far as there are so many
                st.sampled_from(["hit", "hit", "miss", "propose"]),
                st.integers(0, 5),  # tokens of the next draft
                st.integers(0, 10),  # branch budget
                st.integers(0, 4),  # depth
            ),
            max_size=8,
        )
    )


@settings(max_examples=150, deadline=None)
@given(
    events(),
    st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=6),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from([None, SMALL]),
    st.sampled_from([10, 24, 64]),
    st.booleans(),
)
def test_rows_see_their_text_after_any_course_of_events(course, prompt, temperature, draft_ids, capacity, is_joint):
    model, session = new_session(
        prompt, capacity=capacity, temperature=temperature, draft_ids=draft_ids, sequence=1, is_joint=is_joint
    )
    session.prepare(branch_budget=6, max_depth=3)
    committed = list(prompt)
    for passes, pick, kind, num_tokens, budget, depth in course:
        run(model, session, passes)
        speculation = session.speculation
        branches = [branch for branch in session.branches if branch.tokens]
        if len(committed) + len(speculation) + 1 >= capacity:
            return
        if kind == "hit" and branches:
            chosen = branches[pick % len(branches)]
            index = session.find(chosen.num_accepted, chosen.token)
            room = capacity - len(committed) - chosen.num_accepted - 2
            num_used = min(1 + pick % len(chosen.tokens), room)
            if num_used < 1:
                return
            used = chosen.tokens[:num_used]
            moves = session.commit(chosen.num_accepted, chosen.token, branch=index, num_used=num_used)
            model.move_slots(1, [source for source, _ in moves], [target for _, target in moves])
            committed += [*speculation[: chosen.num_accepted], chosen.token]
            assert session.speculation == used
        else:
            num_accepted = pick % (len(speculation) + 1)
            session.commit(num_accepted, pick % VOCAB_SIZE)
            committed += [*speculation[:num_accepted], pick % VOCAB_SIZE]
            if kind == "propose":
                session.propose([1, 2, 3][: max(0, capacity - len(committed) - 1)])
            else:
                session.draft(num_tokens)
        assert session.chain[: session.num_committed] == committed
        session.prepare(branch_budget=budget, max_depth=depth)
    run(model, session)
    assert not session.is_drafting
    continued = session.branches[:3] if is_joint else session.branches
    assert all(len(branch.tokens) == session.depth for branch in continued)


def test_branches_are_what_the_draft_itself_would_go_on_with():
    model, session = new_session([1, 2, 3])
    session.draft(2)
    session.prepare(branch_budget=9, max_depth=3)
    run(model, session)
    assert len(session.branches) == 9
    for branch in session.branches:
        text = [*session.chain[: 3 + branch.num_accepted], branch.token]
        assert branch.num_accepted == 2 or branch.token != session.speculation[branch.num_accepted]
        for token in branch.tokens:
            assert token == int(LAW(tuple(text)).argmax())
            text.append(token)
        assert len(branch.tokens) == 3
    assert len({(branch.num_accepted, branch.token) for branch in session.branches}) == 9


def test_a_hit_is_not_computed_again():
    model, session = new_session([1, 2, 3])
    session.draft(2)
    session.prepare(branch_budget=6, max_depth=3)
    run(model, session)
    branch = session.branches[4]
    moves = session.commit(branch.num_accepted, branch.token, branch=4, num_used=2)
    assert len(moves) == 3  # the outcome, and both tokens: the third level has cached the second token
    model.move_slots(0, [source for source, _ in moves], [target for _, target in moves])
    session.prepare(branch_budget=6, max_depth=1)
    assert len(session.rows()) == 6  # straight to the next outcomes


def test_logits_of_the_past_are_let_go():
    model, session = new_session([1, 2, 3], capacity=256)
    for _ in range(40):
        session.draft(3)
        session.prepare(branch_budget=8, max_depth=3)
        run(model, session)
        branch = next(branch for branch in session.branches if branch.num_accepted == 3)
        index = session.find(branch.num_accepted, branch.token)
        moves = session.commit(branch.num_accepted, branch.token, branch=index, num_used=3)
        model.move_slots(0, [source for source, _ in moves], [target for _, target in moves])
        assert len(session._logits) <= 4
        assert all(row.base is None for row in session._logits.values()), "a view keeps a whole pass in memory"


def test_a_long_prompt_is_read_in_parts():
    prompt = [token % VOCAB_SIZE for token in range(600)]
    model, session = new_session(prompt, capacity=700)
    session.draft(1)
    run(model, session, 2)
    assert session.speculation == []
    session.commit(0, 4)  # the outcome comes while the prompt is being read
    session.draft(2)
    run(model, session)
    assert session.speculation[0] == int(LAW((*prompt, 4)).argmax())
    assert model.num_passes >= 4


@pytest.mark.parametrize("num_left", [1, 2, 3, 4])
def test_nothing_is_written_beyond_a_full_context(num_left):
    """The model refuses slots outside its cache."""
    model, session = new_session(list(range(VOCAB_SIZE)), capacity=VOCAB_SIZE + num_left)
    session.draft(5)
    session.prepare(branch_budget=8, max_depth=4)
    run(model, session)
    assert len(session.speculation) == num_left - 1
    while session.num_committed < session._capacity:
        session.commit(0, 1)
        session.draft(5)
        if session.num_committed < session._capacity:
            run(model, session)


def test_a_prompt_of_one_token():
    model, session = new_session([5])
    session.prepare(branch_budget=4, max_depth=2)
    run(model, session)
    best = np.argsort(-LAW((5,)), kind="stable")[:4].tolist()
    assert [branch.token for branch in session.branches] == best


def test_a_commit_that_contradicts_the_draft_is_refused():
    model, session = new_session([5])
    session.prepare(branch_budget=4, max_depth=2)
    run(model, session)
    with pytest.raises(AssertionError, match="accepted of"):
        session.commit(1, 2)
    model, session = new_session([5])
    session.prepare(branch_budget=4, max_depth=2)
    run(model, session)
    other = session.branches[1].token
    with pytest.raises(AssertionError, match="another outcome"):
        session.commit(0, other, branch=0, num_used=1)


def test_the_likeliest_outcomes_have_the_longest_continuations():
    model, session = new_session([1, 2, 3], is_joint=True)
    session.prepare(branch_budget=10, max_depth=5)
    run(model, session)
    lengths = [len(branch.tokens) for branch in session.branches]
    assert lengths == [5, 5, 5, 3, 2, 2, 1, 1, 1, 1]
    chances = dict(session.choice.ranked(session._logits[2], [], count=10))
    likeliest = sorted(chances, key=lambda token: -chances[token])
    assert [branch.token for branch in session.branches] == likeliest


def test_outcomes_that_are_not_ranked_are_all_continued_alike():
    model, session = new_session([1, 2, 3])
    session.prepare(branch_budget=10, max_depth=3)
    run(model, session)
    assert {len(branch.tokens) for branch in session.branches} == {3}
