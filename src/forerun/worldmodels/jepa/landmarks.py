"""A map of embeddings seen in training: for goals that are too far for the distance between embeddings to show the way.

Some embeddings, far from each other, become landmarks; every frame belongs to the nearest one. Landmarks are neighbours
where an episode went from one's frames to the other's in one block of actions: walls are respected, as nobody went
through them. The way from a state to a goal is the shortest path over the map, in blocks.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from forerun.core.control import History
from forerun.core.errors import TrajectoryError
from forerun.data.pixel_episodes import PixelEpisodes
from forerun.worldmodels.latent_model import LatentModel

_UNREACHED_BLOCKS = 1e3
_NEAREST = 3
_BESIDE = 0.5


class LandmarkMap:
    """Landmarks and the lengths of the shortest paths between them.

    Args:
        latents: Embeddings of all frames of some episodes.
        next_rows: Row of the frame after each frame; -1 after an episode's last one.
        num_landmarks: At most.

    Raises:
        TrajectoryError: There are fewer than two frames.
    """

    def __init__(
        self, latents: Float[Tensor, "frames D"], next_rows: Int64[Tensor, " frames"], *, num_landmarks: int = 256
    ) -> None:
        if len(latents) < 2:
            raise TrajectoryError(f"a map of {len(latents)} frames: needs two or more")
        self.landmarks = farthest_points(latents, num_landmarks)
        """Embeddings of the landmarks, [L, D]."""
        owner = torch.cdist(latents, self.landmarks).argmin(dim=1)
        has_next = next_rows >= 0
        edges = torch.stack([owner[has_next], owner[next_rows[has_next]]])
        self.path_blocks = _path_lengths(edges, len(self.landmarks))
        """Blocks on the shortest path from each landmark to each, [L, L]; a thousand where there is none."""
        gaps = torch.cdist(self.landmarks, self.landmarks) + torch.eye(len(self.landmarks)) * 1e9
        self.spacing = float(gaps.min(dim=1).values.median())
        """Distance of a landmark from its nearest neighbour, the median of all."""

    @classmethod
    def of_episodes(cls, model: LatentModel, episodes: PixelEpisodes, *, num_landmarks: int = 256) -> "LandmarkMap":
        """Return the map of some episodes under a model."""
        next_rows = torch.arange(1, len(episodes.pixels) + 1)
        next_rows[torch.from_numpy(episodes.last_rows)] = -1
        return cls(model.encode_all(torch.from_numpy(episodes.pixels)), next_rows, num_landmarks=num_landmarks)

    def objective(self, goals: Float[Tensor, "envs D"]) -> "LandmarkObjective":
        """Return an objective that wants the way to the goals short."""
        return LandmarkObjective(self, goals)

    def ways(self, goals: Float[Tensor, "envs D"]) -> Float[Tensor, "envs L"]:
        """Return the length of the way from each landmark to each goal, in units of the spacing.

        The last stretch, from the goal's own landmarks, is as long as the distance between the embeddings.
        """
        distance = torch.cdist(goals, self.landmarks)
        near = distance.topk(min(_NEAREST, len(self.landmarks)), dim=1, largest=False)
        last = near.values / self.spacing
        return (self.path_blocks[:, near.indices] + last[None]).min(dim=2).values.T


class LandmarkObjective:
    """Minus the length of the way from the last predicted state to a goal.

    Far from the goal the way leads over the map: to a landmark near by, then along the shortest path. Near it (where
    the embeddings are closer than the landmarks lie) the distance itself decides.

    Args:
        landmarks: The map.
        goals: One for each environment.
    """

    def __init__(self, landmarks: LandmarkMap, goals: Float[Tensor, "envs D"]) -> None:
        self._map, self._goals, self._ways = landmarks, goals, landmarks.ways(goals)

    def score(
        self,
        history: History,
        states: Float[Tensor, "envs samples horizon D"],
        actions: Float[Tensor, "envs samples horizon action"],
    ) -> Float[Tensor, "envs samples"]:
        """As :meth:`forerun.core.protocols.Objective.score`."""
        last = states[:, :, -1]
        spacing = self._map.spacing
        near = torch.cdist(last, self._map.landmarks).topk(
            min(_NEAREST, len(self._map.landmarks)), dim=2, largest=False
        )
        ways = torch.take_along_dim(self._ways[:, None].expand(-1, last.shape[1], -1), near.indices, dim=2)
        # A landmark not much farther than the nearest one may lie on the shorter way; one behind a wall lies beyond.
        is_beside = near.values <= near.values[:, :, :1] + _BESIDE * spacing
        over_map = (near.values / spacing + ways).masked_fill(~is_beside, torch.inf).min(dim=2).values
        straight = (last - self._goals[:, None]).norm(dim=2) / spacing
        is_near = straight <= 1.0
        return -torch.where(is_near, straight, torch.maximum(over_map, torch.ones_like(over_map)))


def farthest_points(points: Float[Tensor, "samples D"], count: int) -> Float[Tensor, "chosen D"]:
    """Return points that cover all others: each is the one farthest from those before it, from the first one on."""
    chosen = [0]
    distance = (points - points[0]).norm(dim=1)
    while len(chosen) < min(count, len(points)) and float(distance.max()) > 0:
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (points - points[chosen[-1]]).norm(dim=1))
    return points[chosen]


def _path_lengths(edges: Int64[Tensor, "2 edges"], num_landmarks: int) -> Float[Tensor, "L L"]:
    """Return shortest paths, each edge one block in either direction, by breadth-first search from every landmark."""
    neighbours = torch.zeros(num_landmarks, num_landmarks)
    neighbours[edges[0], edges[1]] = neighbours[edges[1], edges[0]] = 1
    neighbours.fill_diagonal_(1)
    lengths = torch.full((num_landmarks, num_landmarks), _UNREACHED_BLOCKS)
    reached = torch.eye(num_landmarks)
    lengths.fill_diagonal_(0)
    for blocks in range(1, num_landmarks):
        grown = ((reached @ neighbours) > 0).float()
        is_new = (grown > 0) & (reached == 0)
        if not bool(is_new.any()):
            break
        lengths[is_new] = blocks
        reached = grown
    return lengths
