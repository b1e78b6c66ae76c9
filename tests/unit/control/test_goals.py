"""Tasks with a goal in their state: arriving, a goal that moves, ways through a maze."""

import pytest
import torch

from forerun.core.control import ActionBounds
from forerun.core.errors import ConfigError
from forerun.envs.control_env import ClosedFormEnv
from forerun.envs.control_goals import Arrival, MovedGoal
from forerun.envs.control_maze import Maze

ARRIVAL = Arrival(moving=(0,), goal=(1,), radius=0.5)
ROWS = [
    [1, 1, 1, 1, 1],
    [1, 0, 0, 0, 1],
    [1, 1, 1, 0, 1],
    [1, 0, 0, 0, 1],
    [1, 1, 1, 1, 1],
]


def line(num_envs):
    """Points on a line that move by their action; their goals are 1, 2, ..."""
    return ClosedFormEnv(
        num_envs,
        bounds=ActionBounds.symmetric(1),
        num_steps=6,
        start=lambda generator: torch.tensor([0.0, float(generator.initial_seed())]),
        transition=lambda states, actions: states + torch.cat([actions, torch.zeros_like(actions)], dim=-1),
        reward=ARRIVAL.reward,
    )


def test_being_within_the_radius_pays_one():
    after = torch.tensor([[0.0, 0.5], [0.0, 0.51], [-1.0, -1.0]])
    assert ARRIVAL.reward(after + 7, torch.zeros(3, 1), after).tolist() == [1, 0, 1]


def test_goals_change_places_at_the_step_and_rewards_follow():
    env = MovedGoal(line(2), goal=(1,), reward=ARRIVAL.reward, num_steps_before=2)
    for _ in range(2):  # a second episode is as the first
        assert env.reset([1, 2]).tolist() == [[0, 1], [0, 2]]
        made = [env.step(torch.ones(2, 1)) for _ in range(3)]
        assert [step.states[:, 1].tolist() for step in made] == [[1, 2], [2, 1], [2, 1]]
        assert [step.rewards.tolist() for step in made] == [[1, 0], [1, 0], [0, 0]]


def test_one_goal_has_no_other_to_change_with():
    with pytest.raises(ConfigError, match="need at least 2"):
        MovedGoal(line(1), goal=(1,), reward=ARRIVAL.reward, num_steps_before=2)


def test_the_shortest_way_through_a_maze():
    maze = Maze(ROWS)
    first, last = maze.cells(torch.tensor([[-1.0, 1.0], [-1.0, -1.0]])).tolist()
    assert maze.steps[first, last] == 6
    assert torch.equal(maze.steps, maze.steps.T)
    path = [first]
    while path[-1] != last:
        path.append(int(maze.next_cells[path[-1], last]))
    assert [maze.free[cell] for cell in path] == [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)]


def test_waypoints_are_the_next_middle_and_then_the_goal():
    maze = Maze(ROWS)
    positions = torch.tensor([[-1.2, 1.1], [0.9, -1.4]])
    goals = torch.tensor([[-0.7, -1.0], [1.2, -0.8]])
    assert maze.waypoints(positions, goals).tolist() == [[0.0, 1.0], [pytest.approx(1.2), pytest.approx(-0.8)]]
