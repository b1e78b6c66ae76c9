"""Surprise where the world breaks its rules: episodes with and without an event, the same up to there."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from forerun.core.errors import ConfigError
from forerun.data.pixel_episodes import PixelEpisodes
from forerun.envs.two_room import TwoRoom, free_position
from forerun.worldmodels.collection import TASK, CollectConfig, record_episodes
from forerun.worldmodels.jepa.model import Jepa
from forerun.worldmodels.jepa.surprise import (
    AlarmRate,
    alarm_rate,
    calibration_spread,
    conformal_threshold,
    episode_surprises,
)

EventName = Literal["teleport", "color", "dynamics"]
EVENTS: Final[tuple[EventName, ...]] = ("teleport", "color", "dynamics")
_WINDOW_FRAMES: Final = 5
"""Frames from the event on whose largest surprise scores an episode."""
_LEAST_JUMP: Final = 60.0
_EVENT_RGB: Final = (38, 139, 210)
_QUARTER_TURN: Final = np.array([[0.0, -1.0], [1.0, 0.0]])


@dataclass(frozen=True, kw_only=True, slots=True)
class SurpriseConfig:
    """Sizes of the benchmark.

    Attributes:
        num_calibration: Undisturbed episodes that set the threshold. A frame is like its neighbours, so it takes some
            thousand episodes until the rate of false alarms is within a tenth of the one asked for.
        num_undisturbed: Others, in which false alarms are counted.
        num_pairs: The first so many of these are played again with an event.
        false_alarm_rate: Share of undisturbed frames that may raise an alarm.
        seed: Root of the episodes' chance; must not be that of the training data.
    """

    num_calibration: int = 1000
    num_undisturbed: int = 1000
    num_pairs: int = 200
    false_alarm_rate: float = 0.05
    seed: int = 1_000_003

    def __post_init__(self) -> None:
        """Check before episodes are recorded what would be found out after.

        Raises:
            ConfigError: A number of episodes or the rate is out of range.
        """
        for name in ("num_calibration", "num_undisturbed", "num_pairs"):
            if getattr(self, name) < 2:
                raise ConfigError(f"{name}={getattr(self, name)}: must be >= 2 episodes")
        if self.num_pairs > self.num_undisturbed:
            raise ConfigError(
                f"num_pairs={self.num_pairs}: must be <= num_undisturbed={self.num_undisturbed}; pairs are some of them"
            )
        if not 0 < self.false_alarm_rate < 1:
            raise ConfigError(f"false_alarm_rate={self.false_alarm_rate}: must lie in (0, 1)")


@dataclass(frozen=True, kw_only=True, slots=True)
class SurpriseEpisodes:
    """What the benchmark plays; the same for every model.

    Attributes:
        calibration: Set the threshold.
        undisturbed: Serve to count false alarms.
        events: The first of them again, with an event each.
        event_frame: Number of the frame at which events happen.
    """

    calibration: PixelEpisodes
    undisturbed: PixelEpisodes
    events: Mapping[EventName, PixelEpisodes]
    event_frame: int


@dataclass(frozen=True, kw_only=True, slots=True)
class EventResult:
    """What surprise made of one kind of event.

    Attributes:
        auroc: Probability that an episode with the event scores above one without, by the largest surprise of the
            five frames from the event on; ties count half.
        auroc_first_frame: The same by the event's own frame alone.
        detection_rate: Share of events with an alarm within these five frames.
        paired_t: Mean over standard error of the differences between paired scores.
        num_pairs: Of them.
        ratio: Median score with the event over the median without.
        episodes: With the event.
        surprises: Of their frames but the first, one row for each episode.
    """

    auroc: float
    auroc_first_frame: float
    detection_rate: float
    paired_t: float
    num_pairs: int
    ratio: float
    episodes: PixelEpisodes
    surprises: Float[Tensor, "pairs frames_but_one"]

    def to_json(self) -> dict[str, Any]:
        """Return the numbers, without the episodes."""
        names = ("auroc", "auroc_first_frame", "detection_rate", "paired_t", "num_pairs", "ratio")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True, slots=True)
class SurpriseResult:
    """The benchmark.

    Attributes:
        threshold: Above it, a frame raises an alarm.
        false_alarms: Share of alarms among frames of undisturbed episodes that calibrated nothing; the interval
            includes what another draw of calibration episodes would change.
        wanted_rate: The share asked for.
        calibration_spread: Standard deviation of the true share over draws of the calibration episodes.
        event_frame: Number of the frame at which events happen.
        undisturbed: Surprises of the undisturbed episodes that have pairs, frame by frame.
        events: By name.
    """

    threshold: float
    false_alarms: AlarmRate
    wanted_rate: float
    calibration_spread: float
    event_frame: int
    undisturbed: Float[Tensor, "pairs frames_but_one"]
    events: Mapping[EventName, EventResult]

    def lines(self) -> list[str]:
        """Return the numbers as lines for people."""
        found = self.false_alarms
        rows = [
            f"false alarms: {found.rate:.2%} ({found.low:.2%} to {found.high:.2%}) of the frames of "
            f"{found.num_episodes} undisturbed episodes, {self.wanted_rate:.2%} asked for (threshold "
            f"{self.threshold:.3g})"
        ]
        rows += [
            f"{name:<9} AUROC {event.auroc:.3f} (first frame {event.auroc_first_frame:.3f})  detected "
            f"{event.detection_rate:.1%}  x {event.ratio:.3g}  paired t {event.paired_t:.1f}, {event.num_pairs} pairs"
            for name, event in self.events.items()
        ]
        return rows

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as JSON types."""
        return {
            "threshold": self.threshold,
            "false_alarms": asdict(self.false_alarms),
            "wanted_rate": self.wanted_rate,
            "calibration_spread": self.calibration_spread,
            "event_frame": self.event_frame,
            "events": {name: result.to_json() for name, result in self.events.items()},
        }


def record_surprise_episodes(
    recording: CollectConfig,
    config: SurpriseConfig,
    *,
    report: Callable[[int, int, str], None] = lambda done, total, detail: None,
) -> SurpriseEpisodes:
    """Record fresh episodes, some to calibrate on, some to count false alarms in, and some of these with events.

    Args:
        recording: How the training data were made; the benchmark's episodes differ by their seed alone.
        config: Sizes.
        report: Told (parts done, parts, what comes next).

    Raises:
        ConfigError: The data are of a task without these events.
    """
    if recording.task != TASK:
        raise ConfigError(
            f"data of task {recording.task!r}: teleports, colours and turned actions are those of {TASK!r}"
        )
    recording = replace(recording, seed=config.seed)
    first = config.num_calibration
    pairs = range(first, first + config.num_pairs)
    event_frame = recording.env_steps // recording.frame_skip // 2
    num_parts = 2 + len(EVENTS)
    report(0, num_parts, "record calibration")
    calibration = record_episodes(recording, range(first))
    report(1, num_parts, "record undisturbed episodes")
    undisturbed = record_episodes(recording, range(first, first + config.num_undisturbed))
    events: dict[EventName, PixelEpisodes] = {}
    for place, name in enumerate(EVENTS):
        report(2 + place, num_parts, f"record {name}")
        events[name] = record_episodes(recording, pairs, before_frame=_event(name, event_frame, config.seed))
    return SurpriseEpisodes(calibration=calibration, undisturbed=undisturbed, events=events, event_frame=event_frame)


def measure_surprise(model: Jepa, episodes: SurpriseEpisodes, config: SurpriseConfig) -> SurpriseResult:
    """Calibrate, count false alarms, and look at events.

    Args:
        model: Predicts.
        episodes: What is played.
        config: As they were recorded with.
    """
    calibration = episode_surprises(model, episodes.calibration)
    threshold = conformal_threshold(torch.cat(calibration), false_alarm_rate=config.false_alarm_rate)
    spread = calibration_spread(calibration, threshold=threshold)
    undisturbed = episode_surprises(model, episodes.undisturbed)
    controls = torch.stack(undisturbed[: config.num_pairs])
    return SurpriseResult(
        threshold=threshold,
        false_alarms=alarm_rate(undisturbed, threshold=threshold, spread=spread),
        wanted_rate=config.false_alarm_rate,
        calibration_spread=spread,
        event_frame=episodes.event_frame,
        undisturbed=controls,
        events={
            name: _event_result(
                controls,
                torch.stack(episode_surprises(model, played)),
                played,
                event_frame=episodes.event_frame,
                threshold=threshold,
            )
            for name, played in episodes.events.items()
        },
    )


def auroc(with_event: Float[Tensor, " positives"], without: Float[Tensor, " negatives"]) -> float:
    """Return the probability that one with the event scores above one without; ties count half."""
    difference = with_event.double()[:, None] - without.double()[None, :]
    return float((difference > 0).double().mean() + 0.5 * (difference == 0).double().mean())


def _event(name: EventName, event_frame: int, seed: int) -> Callable[[TwoRoom, int], None]:
    """Return what breaks the rules just before a frame is looked at (for ``dynamics``, the one before)."""

    def happen(world: TwoRoom, frame: int) -> None:
        if name == "dynamics" and frame == event_frame - 1:
            world.action_map = np.tile(_QUARTER_TURN, (len(world.looks), 1, 1))
        elif name == "color" and frame == event_frame:
            world.looks = [replace(look, agent_rgb=_EVENT_RGB) for look in world.looks]
        elif name == "teleport" and frame == event_frame:
            rng = np.random.default_rng((seed, 0x7E1E))
            world.positions = np.stack([_far_position(world, number, rng) for number in range(len(world.looks))])

    return happen


def _far_position(world: TwoRoom, number: int, rng: np.random.Generator) -> np.ndarray:
    while True:
        position = free_position(world.looks[number], rng)
        if np.hypot(*(position - world.positions[number])) >= _LEAST_JUMP:
            return position


def _event_result(
    undisturbed: Tensor, surprises: Tensor, episodes: PixelEpisodes, *, event_frame: int, threshold: float
) -> EventResult:
    first = event_frame - 1  # a row of surprises begins with the second frame
    window = slice(first, first + _WINDOW_FRAMES)
    scores, controls = surprises[:, window].amax(dim=1), undisturbed[:, window].amax(dim=1)
    differences = (scores - controls).double()
    error = float(differences.std()) / math.sqrt(len(differences))
    return EventResult(
        auroc=auroc(scores, controls),
        auroc_first_frame=auroc(surprises[:, first], undisturbed[:, first]),
        detection_rate=float((scores > threshold).double().mean()),
        paired_t=float(differences.mean()) / max(error, 1e-30),
        num_pairs=len(differences),
        ratio=float(scores.median()) / max(float(controls.median()), 1e-30),
        episodes=episodes,
        surprises=surprises,
    )
