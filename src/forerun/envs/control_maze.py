"""A maze of square cells: which of them are next to each other, and the next cell on a shortest way."""

from collections import deque
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Maze:
    """Cells of one metre around the origin, as the mazes of gymnasium-robotics lie.

    Args:
        rows: 1 is a wall, anything else is free; the first row is the one with the greatest y.
    """

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self._num_rows, self._num_columns = len(rows), len(rows[0])
        self.free = [
            (row, column)
            for row in range(self._num_rows)
            for column in range(self._num_columns)
            if rows[row][column] != 1
        ]
        """Row and column of every free cell."""
        self.middles: Float[Tensor, "cells 2"] = torch.tensor(
            [[column + 0.5 - self._num_columns / 2, self._num_rows / 2 - row - 0.5] for row, column in self.free]
        )
        """x and y of their middles, in metres."""
        self.steps, self.next_cells = self._ways()
        """Cells on the shortest way from one to another, and the first of them; a cell is its own next one."""

    def cells(self, positions: Float[Tensor, "*batch 2"]) -> Int[Tensor, "*batch"]:
        """Return the free cell whose middle is nearest to each position."""
        return torch.cdist(positions, self.middles).argmin(dim=-1)

    def waypoints(self, positions: Float[Tensor, "envs 2"], goals: Float[Tensor, "envs 2"]) -> Float[Tensor, "envs 2"]:
        """Return where to head for: the middle of the next cell on a shortest way, or the goal itself in its cell."""
        here, there = self.cells(positions), self.cells(goals)
        return torch.where((here == there)[:, None], goals, self.middles[self.next_cells[here, there]])

    def _ways(self) -> tuple[Int[Tensor, "cells cells"], Int[Tensor, "cells cells"]]:
        """Search from every goal, breadth first."""
        numbers = {cell: number for number, cell in enumerate(self.free)}
        count = len(self.free)
        steps = torch.full((count, count), count)
        following = torch.arange(count).repeat(count, 1).T.clone()
        for goal in range(count):
            steps[goal, goal] = 0
            queue = deque([goal])
            while queue:
                reached = queue.popleft()
                row, column = self.free[reached]
                for neighbour in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
                    cell = numbers.get(neighbour)
                    if cell is not None and steps[cell, goal] == count:
                        steps[cell, goal] = steps[reached, goal] + 1
                        following[cell, goal] = reached
                        queue.append(cell)
        return steps, following
