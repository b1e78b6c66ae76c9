"""A number from a sequence: a residual MLP, or a transformer that reads it off a token of its own."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from forerun.models.denoiser import DenoiserConfig, TransformerBlock, fourier_features


class Regressor(nn.Module):
    """Reads a context and F steps of C numbers, and says one number.

    Args:
        config: Shape, of either kind.
        context_dim: Numbers of the context.
        horizon: F; 0 for a context alone.
        channels: C.
    """

    places: Tensor

    def __init__(self, config: DenoiserConfig, *, context_dim: int, horizon: int = 0, channels: int = 0) -> None:
        super().__init__()
        width = config.width
        self._is_mlp = config.kind == "mlp"
        if self._is_mlp:
            self.inside = nn.Linear(context_dim + horizon * channels, width)
            inner = config.inner_width or 2 * width
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.LayerNorm(width), nn.Linear(width, inner), nn.SiLU(), nn.Linear(inner, width))
                for _ in range(config.depth)
            )
        else:
            self.inside = nn.Linear(context_dim, width)
            self.steps = nn.Linear(max(1, channels), width)
            self.answer = nn.Parameter(torch.zeros(1, 1, width))
            self.place = nn.Linear(2 * config.num_frequencies, width)
            self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.depth))
            self.register_buffer("places", fourier_features(horizon + 2, config.num_frequencies), persistent=False)
        self.norm, self.outside = nn.LayerNorm(width), nn.Linear(width, 1)

    def forward(
        self, context: Float[Tensor, "rows context"], steps: Float[Tensor, "rows horizon channels"] | None = None
    ) -> Float[Tensor, " rows"]:
        """Return a number for each row.

        Args:
            context: Of each row.
            steps: Its sequence; ``None`` where the horizon is 0.
        """
        if self._is_mlp:
            hidden = self.inside(context if steps is None else torch.cat([context, steps.flatten(1)], dim=-1))
            for block in self.blocks:
                hidden = hidden + block(hidden)
            return self.outside(self.norm(hidden))[:, 0]
        tokens = [self.answer.expand(len(context), -1, -1), self.inside(context)[:, None]]
        if steps is not None:
            tokens.append(self.steps(steps))
        hidden = torch.cat(tokens, dim=1) + self.place(self.places)
        for block in self.blocks:
            hidden = block(hidden)
        return self.outside(self.norm(hidden[:, 0]))[:, 0]
