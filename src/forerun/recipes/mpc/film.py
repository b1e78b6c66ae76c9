"""A runner as a GIF: it runs for the task's reward, then for a reward that it gets while it runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from forerun.core.control import Plan
from forerun.core.dependencies import import_optional
from forerun.core.errors import ConfigError
from forerun.envs import control_halfcheetah, control_walker2d
from forerun.envs.control_planar_body import PlanarBody
from forerun.recipes.mpc.collect import episode_seeds
from forerun.recipes.mpc.contenders import Setting, contender
from forerun.recipes.mpc.gif import GifFigure
from forerun.recipes.mpc.novelty import language

_MAKES = {"halfcheetah": control_halfcheetah.make_one, "walker2d": control_walker2d.make_one}
_SPEED = "x_velocity"
_UNITS = {"x_velocity": "m/s", "height": "m"}
_WINDOW = 20
_NUM_GHOSTS = 12
_EVERY = 3
_LEAST_FRAME_MS = 50
_VIEW_RATIO = 8 / 3
"""Width of the view over its height."""
_SEEN, _CHOSEN, _OTHER = "#0072b2", "#d55e00", "0.75"


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What is asked for, for a while.

    Attributes:
        objective: As :class:`~forerun.planning.expression.ObjectiveLanguage` reads it.
        num_steps: For how long.
        constraint: A hard limit beside it; ``None``: none.
        value: What it names for the number that is shown, to be drawn; ``None``: it names none.
    """

    objective: str
    num_steps: int
    constraint: str | None = None
    value: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Moment:
    state: Float[np.ndarray, " state"]
    x: float
    plan: Plan
    wish: Wish


def film(
    setting: Setting,
    wishes: Sequence[Wish],
    path: Path,
    *,
    way: str = "ssr",
    shown: str = _SPEED,
    seed: int = 0,
) -> list[float]:
    """Run an episode whose reward changes, and draw it with its imagined futures.

    Args:
        setting: HalfCheetah or Walker2d, and its models.
        wishes: What is asked for, one after the other; the episode's length is the longest they may take together.
        path: File to write, ``.gif``.
        way: Name of the planner.
        shown: Number of the state whose course is drawn below.
        seed: Of the start and of planning.

    Returns:
        For each wish that was begun the mean of the shown number over the second half of its time.

    Raises:
        ConfigError: The models are of another task.
        MissingDependencyError: matplotlib, pillow, Gymnasium or MuJoCo is not installed.
    """
    name = setting.task.name
    if name not in _MAKES:
        raise ConfigError(f"a film of {name}: only {' and '.join(_MAKES)} have a body to draw")
    body = PlanarBody(_MAKES[name])
    moments = _acted(setting, wishes, way, seed, body.step_s)
    number = setting.task.state_names.index(shown)
    _draw(moments, path, body=body, number=number, unit=_UNITS.get(shown, shown), speed=_speed(setting))
    reached, begin = [], 0
    for wish in wishes:
        end = begin + wish.num_steps
        late = moments[begin + wish.num_steps // 2 : end]
        if late:
            reached.append(float(np.mean([moment.state[number] for moment in late])))
        begin = end
    return reached


def _speed(setting: Setting) -> int:
    return setting.task.state_names.index(_SPEED)


def _acted(setting: Setting, wishes: Sequence[Wish], way: str, seed: int, step_s: float) -> list[_Moment]:
    env, words, speed = setting.task.make_env(1), language(setting), _speed(setting)
    states, x, moments = env.reset(episode_seeds(seed, "film", 1)), 0.0, []
    has_fallen = False
    for wish in wishes:
        objective = words.objective(wish.objective)
        wanted = objective if wish.constraint is None else objective.subject_to(words.constraint(wish.constraint))
        controller = contender(way).controller(replace(setting, objective=wanted))
        for _ in range(wish.num_steps):
            if has_fallen:
                break
            actions = controller.act(states)
            assert controller.last_plan is not None
            moments.append(_Moment(state=states[0].numpy().copy(), x=x, plan=controller.last_plan, wish=wish))
            made = env.step(actions)
            states, has_fallen = made.states, bool(made.terminated.any())
            x += step_s * 0.5 * float(moments[-1].state[speed] + states[0, speed])
    return moments


def _draw(moments: Sequence[_Moment], path: Path, *, body: PlanarBody, number: int, unit: str, speed: int) -> None:
    collections = import_optional("matplotlib.collections", extra="plot", purpose="a GIF")
    gif = GifFigure((7.0, 4.2), dpi=72)
    view, curve = gif.figure.subplots(2, 1, height_ratios=(2.2, 1))
    gif.figure.subplots_adjust(left=0.08, right=0.98, top=0.9, bottom=0.12, hspace=0.35)
    top = max(1.4, 0.4 + max(float(moment.state[0]) for moment in moments))
    # A limb is as wide on paper as in the world.
    view_m = _VIEW_RATIO * (top + 0.1)
    widths = body.widths * 72 * 7.0 * 0.9 / view_m
    view.set(xlim=(-0.4 * view_m, 0.6 * view_m), ylim=(-0.1, top), yticks=[])
    view.set_aspect("equal", adjustable="box")
    view.axhline(0.0, color="0.4", linewidth=1)
    trails = view.add_collection(collections.LineCollection([], colors=_OTHER, linewidths=0.7))
    ghost = view.add_collection(collections.LineCollection([], colors=_CHOSEN, alpha=0.25, capstyle="round"))
    limbs = view.add_collection(collections.LineCollection([], colors=_SEEN, capstyle="round"))
    values = np.array([moment.state[number] for moment in moments])
    means = np.array([values[max(0, place - _WINDOW + 1) : place + 1].mean() for place in range(len(values))])
    seconds = body.step_s * np.arange(len(values))
    curve.set(xlim=(0, seconds[-1]), ylim=_limits(means), ylabel=unit, xlabel="s")
    asked = np.array([np.nan if moment.wish.value is None else moment.wish.value for moment in moments])
    curve.plot(seconds, asked, color=_CHOSEN, linewidth=1, linestyle="--")
    (line,) = curve.plot([], [], color=_SEEN)
    # The height of HalfCheetah's torso counts from where it lies when it begins.
    lift = float(body.limbs(moments[0].state, x=0.0)[0, :, 1].mean() - moments[0].state[0])
    for place in range(0, len(moments), _EVERY):
        moment = moments[place]
        order = moment.plan.future_scores[0].argsort(descending=True)[:_NUM_GHOSTS]
        futures = moment.plan.futures[0, order].numpy()
        ahead = moment.x + body.step_s * np.cumsum(futures[:, :, speed], axis=1)
        trails.set_segments(np.stack([ahead, lift + futures[:, :, 0]], axis=-1))
        chosen = moment.plan.states[0].numpy()
        last_x = moment.x + body.step_s * float(chosen[:, speed].sum())
        for drawn, state, x in ((limbs, moment.state, moment.x), (ghost, chosen[-1], last_x)):
            drawn.set_segments(body.limbs(state, x=x))
            drawn.set_linewidths(widths)
        view.set_xlim(moment.x - 0.4 * view_m, moment.x + 0.6 * view_m)
        view.set_title(f"{moment.wish.objective}    {means[place]:.2f} {unit}", fontsize=9)
        line.set_data(seconds[: place + 1], means[: place + 1])
        gif.take()
    gif.save(path, frame_ms=max(_LEAST_FRAME_MS, int(1000 * _EVERY * body.step_s)))


def _limits(values: Float[np.ndarray, " steps"]) -> tuple[float, float]:
    margin = max(0.1, 0.15 * float(np.ptp(values)))
    return float(values.min()) - margin, float(values.max()) + margin
