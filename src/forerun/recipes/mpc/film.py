"""HalfCheetah as a GIF: it runs for the task's reward, then for a reward that it gets while it runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from forerun.core.control import Plan
from forerun.core.dependencies import import_optional
from forerun.core.errors import ConfigError
from forerun.envs.control_halfcheetah import STATE_NAMES, make_env
from forerun.envs.control_halfcheetah_body import STEP_S, HalfCheetahBody
from forerun.recipes.mpc.collect import episode_seeds
from forerun.recipes.mpc.contenders import Setting, contender
from forerun.recipes.mpc.gif import GifFigure
from forerun.recipes.mpc.novelty import language

_SPEED = STATE_NAMES.index("x_velocity")
_WINDOW = 20
_NUM_GHOSTS = 12
_EVERY = 3
_SEEN, _CHOSEN, _OTHER = "#0072b2", "#d55e00", "0.75"


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What is asked for, for a while.

    Attributes:
        objective: As :class:`~forerun.planning.expression.ObjectiveLanguage` reads it.
        num_steps: For how long.
        constraint: A hard limit beside it; ``None``: none.
        speed: The speed that it names, to be drawn; ``None``: it names none.
    """

    objective: str
    num_steps: int
    constraint: str | None = None
    speed: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Moment:
    state: Float[np.ndarray, " state"]
    x: float
    plan: Plan
    wish: Wish


def film(setting: Setting, wishes: Sequence[Wish], path: Path, *, way: str = "ssr", seed: int = 0) -> list[float]:
    """Run an episode whose reward changes, and draw it with its imagined futures.

    Args:
        setting: HalfCheetah and its models.
        wishes: What is asked for, one after the other; the episode's length is the longest they may take together.
        path: File to write, ``.gif``.
        way: Name of the planner.
        seed: Of the start and of planning.

    Returns:
        For each wish the mean speed over the second half of its time, in m/s.

    Raises:
        ConfigError: The models are of another task.
        MissingDependencyError: matplotlib, pillow, Gymnasium or MuJoCo is not installed.
    """
    if setting.task.name != "halfcheetah":
        raise ConfigError(f"a film of {setting.task.name}: only halfcheetah has a body to draw")
    moments = _acted(setting, wishes, way, seed)
    _draw(moments, path)
    reached, begin = [], 0
    for wish in wishes:
        end = begin + wish.num_steps
        late = moments[begin + wish.num_steps // 2 : end]
        reached.append(float(np.mean([moment.state[_SPEED] for moment in late])))
        begin = end
    return reached


def _acted(setting: Setting, wishes: Sequence[Wish], way: str, seed: int) -> list[_Moment]:
    env, words = make_env(1), language(setting)
    states, x, moments = env.reset(episode_seeds(seed, "film", 1)), 0.0, []
    for wish in wishes:
        objective = words.objective(wish.objective)
        wanted = objective if wish.constraint is None else objective.subject_to(words.constraint(wish.constraint))
        controller = contender(way).controller(replace(setting, objective=wanted))
        for _ in range(wish.num_steps):
            actions = controller.act(states)
            assert controller.last_plan is not None
            moments.append(_Moment(state=states[0].numpy().copy(), x=x, plan=controller.last_plan, wish=wish))
            states = env.step(actions).states
            x += STEP_S * 0.5 * float(moments[-1].state[_SPEED] + states[0, _SPEED])
    env.close()
    return moments


def _draw(moments: Sequence[_Moment], path: Path) -> None:
    collections = import_optional("matplotlib.collections", extra="plot", purpose="a GIF")
    gif, body = GifFigure((7.0, 4.2), dpi=72), HalfCheetahBody()
    view, curve = gif.figure.subplots(2, 1, height_ratios=(2.2, 1))
    gif.figure.subplots_adjust(left=0.08, right=0.98, top=0.9, bottom=0.12, hspace=0.35)
    # A limb is as wide on paper as in the world: the view is 4 m wide.
    widths = body.widths * 72 * 7.0 * 0.9 / 4.0
    view.set(xlim=(-1.5, 2.5), ylim=(-0.1, 1.4), yticks=[])
    view.set_aspect("equal", adjustable="box")
    view.axhline(0.0, color="0.4", linewidth=1)
    trails = view.add_collection(collections.LineCollection([], colors=_OTHER, linewidths=0.7))
    ghost = view.add_collection(collections.LineCollection([], colors=_CHOSEN, alpha=0.25, capstyle="round"))
    limbs = view.add_collection(collections.LineCollection([], colors=_SEEN, capstyle="round"))
    speeds = np.array([moment.state[_SPEED] for moment in moments])
    means = np.array([speeds[max(0, place - _WINDOW + 1) : place + 1].mean() for place in range(len(speeds))])
    seconds = STEP_S * np.arange(len(speeds))
    curve.set(xlim=(0, seconds[-1]), ylim=(min(0.0, means.min()) - 0.2, means.max() + 0.5), ylabel="m/s", xlabel="s")
    asked = np.array([np.nan if moment.wish.speed is None else moment.wish.speed for moment in moments])
    curve.plot(seconds, asked, color=_CHOSEN, linewidth=1, linestyle="--")
    (line,) = curve.plot([], [], color=_SEEN)
    for place in range(0, len(moments), _EVERY):
        moment = moments[place]
        order = moment.plan.future_scores[0].argsort(descending=True)[:_NUM_GHOSTS]
        futures = moment.plan.futures[0, order].numpy()
        ahead = moment.x + STEP_S * np.cumsum(futures[:, :, _SPEED], axis=1)
        trails.set_segments(np.stack([ahead, 0.7 + futures[:, :, 0]], axis=-1))
        chosen = moment.plan.states[0].numpy()
        last_x = moment.x + STEP_S * float(chosen[:, _SPEED].sum())
        for drawn, state, x in ((limbs, moment.state, moment.x), (ghost, chosen[-1], last_x)):
            drawn.set_segments(body.limbs(state, x=x))
            drawn.set_linewidths(widths)
        view.set_xlim(moment.x - 1.5, moment.x + 2.5)
        view.set_title(f"{moment.wish.objective}    {means[place]:.1f} m/s", fontsize=9)
        line.set_data(seconds[: place + 1], means[: place + 1])
        gif.take()
    gif.save(path, frame_ms=int(1000 * _EVERY * STEP_S))
