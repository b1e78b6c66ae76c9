r"""A model made larger that computes the same: a target with the cost of a large one and the law of a small one.

For measurements where no large model is at hand: the acceptance of a draft is real, for the law is the small model's;
only the cost is made up. Every new number is either multiplied by zero or multiplies zero:

- *wider residual stream*: new dimensions stay 0, for nothing writes to them. RMSNorm divides by the root of a mean over
  more numbers, so with widths E and E' its weight gets :math:`\sqrt{E / E'}` and its epsilon :math:`E / E'`:

  .. math:: \frac{w \sqrt{E/E'} \, x}{\sqrt{S/E' + \epsilon E/E'}} = \frac{w \, x}{\sqrt{S/E + \epsilon}}, \quad
      S = \sum_i x_i^2

- *more heads*, *wider MLP*: what they compute is multiplied by columns of zeros on its way back;
- *more layers*: both of their outputs are.

Weights that are multiplied by zeros are noise and not zeros: multiplying zeros takes a GPU less power than real
numbers, and less power may mean a higher clock.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from forerun.core.errors import ConfigError
from forerun.models.checkpoint import Checkpoint
from forerun.models.config import DecoderConfig
from forerun.models.layout import parameter_shapes

_NOISE_NUMBERS = 1 << 20
_PREFIX = "inflated:"
_WRITES_RESIDUAL = ("o_proj.weight", "down_proj.weight")


@dataclass(frozen=True, kw_only=True, slots=True)
class Inflation:
    """Sizes to inflate a model to; ``None`` keeps the model's.

    Attributes:
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the MLP.
        num_layers: Layers.
        num_kv_heads: Key/value heads; query heads grow in proportion.
    """

    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_layers: int | None = None
    num_kv_heads: int | None = None

    def apply(self, config: DecoderConfig) -> DecoderConfig:
        """Return the shape of the inflated model.

        Raises:
            ConfigError: A size is below the model's, or the stream of a model with QK-norm is to be wider.
        """
        sizes: dict[str, int] = {}
        for name in ("hidden_size", "intermediate_size", "num_layers", "num_kv_heads"):
            wanted, own = getattr(self, name), getattr(config, name)
            if wanted is not None and wanted < own:
                raise ConfigError(f"{name}={wanted}: must be at least the model's {own}; a model can only be inflated")
            sizes[name] = own if wanted is None else wanted
        if config.qk_norm and sizes["hidden_size"] != config.hidden_size:
            raise ConfigError(
                f"hidden_size={self.hidden_size}: the norms of this model's heads share an epsilon with those of the "
                "stream, which a wider stream changes; leave hidden_size out"
            )
        return replace(
            config,
            **sizes,
            num_heads=config.num_heads // config.num_kv_heads * sizes["num_kv_heads"],
            norm_eps=config.norm_eps * config.hidden_size / sizes["hidden_size"],
        )


class InflatedTensors:
    """The parameters of an inflated model, each made when it is asked for.

    Args:
        tensor: Gives a parameter of the small model.
        config: Its shape.
        inflated: The large one's, by :meth:`Inflation.apply`.
        seed: Of the noise.
    """

    def __init__(
        self,
        tensor: Callable[[str], np.ndarray],
        config: DecoderConfig,
        inflated: DecoderConfig,
        *,
        seed: int = 0,
    ) -> None:
        self._own, self._config, self._inflated = tensor, config, inflated
        self._shapes = parameter_shapes(inflated)
        self._noise = (0.02 * np.random.default_rng(seed).standard_normal(_NOISE_NUMBERS)).astype(np.float32)

    def names(self) -> tuple[str, ...]:
        """Return the parameter names."""
        return tuple(self._shapes)

    def tensor(self, name: str) -> np.ndarray:
        """Return one parameter, float32."""
        shape = self._shapes[name]
        kind = name.split(".", 2)[-1] if name.startswith("layers.") else name
        writes = kind.endswith(_WRITES_RESIDUAL)
        is_new_layer = name.startswith("layers.") and int(name.split(".")[1]) >= self._config.num_layers
        if is_new_layer:
            return np.zeros(shape, np.float32) if writes else np.resize(self._noise, shape)
        own = self._own(name)
        if shape == own.shape:
            return self._rescaled(kind, own)
        # What is new in a weight that writes to the stream, or in the embedding, is 0; the rest reads zeros or is lost.
        is_zero = writes or kind == "embed_tokens.weight" or own.ndim == 1
        out = np.zeros(shape, np.float32) if is_zero else np.resize(self._noise, shape)
        own = self._rescaled(kind, own)
        out[tuple(slice(size) for size in own.shape)] = own
        return out

    def _rescaled(self, kind: str, values: np.ndarray) -> np.ndarray:
        """Return a norm of the residual stream with its weight for the new width; anything else as it is."""
        is_of_stream = kind in {"norm.weight", "input_layernorm.weight", "post_attention_layernorm.weight"}
        if not is_of_stream:
            return values
        return values * np.float32((self._config.hidden_size / self._inflated.hidden_size) ** 0.5)


def inflate(checkpoint: Checkpoint, inflation: Inflation) -> Checkpoint:
    """Return a model with the law of a small one and the cost of a large one.

    Args:
        checkpoint: The small model; a single one.
        inflation: The sizes.

    Raises:
        ConfigError: A size is below the model's, or the model is an ensemble.
    """
    if checkpoint.ensemble is not None:
        raise ConfigError(f"{checkpoint.source} is an ensemble: inflate one of its members")
    config = inflation.apply(checkpoint.config)
    return replace(
        checkpoint,
        config=config,
        tensors=InflatedTensors(checkpoint.tensors.tensor, checkpoint.config, config),
        source=f"{checkpoint.source} inflated to {num_weights(config) / 1e9:.2f}e9 weights",
        quantised=False,
        base=checkpoint,
    )


def inflated_name(name: str) -> tuple[float, str] | None:
    """Return the number of weights and the model in a name such as ``inflated:8e9:default``; ``None`` for other names.

    Raises:
        ConfigError: It begins so and does not go on so.
    """
    if not name.startswith(_PREFIX):
        return None
    size, _, base = name.removeprefix(_PREFIX).partition(":")
    try:
        num_params = float(size)
    except ValueError:
        num_params = 0.0
    if num_params <= 0 or not base:
        raise ConfigError(f"{name!r}: must be inflated:SIZE:MODEL, such as inflated:8e9:default")
    return num_params, base


def num_weights(config: DecoderConfig) -> int:
    """Return the number of weights, embedding included once."""
    return sum(int(np.prod(shape)) for shape in parameter_shapes(config).values())


def inflation_to(config: DecoderConfig, *, num_params: float) -> Inflation:
    """Return sizes that come near a number of weights.

    The stream grows by factors of four, for whose root the norms' weights are rescaled without rounding, as long as an
    MLP of 3.5 times its width leaves room; heads fill the stream; a wider MLP makes up the rest. The number of layers
    stays.

    Args:
        config: Of the small model.
        num_params: Weights to come near.

    Raises:
        ConfigError: The model is larger.
    """
    if num_params < num_weights(config):
        raise ConfigError(f"num_params={num_params:g}: the model has {num_weights(config):g} already; ask for more")
    best = Inflation()
    hidden = config.hidden_size
    while not config.qk_norm and num_weights((wider := _wider(config, hidden=4 * hidden)).apply(config)) <= num_params:
        best, hidden = wider, 4 * hidden
    sized = best.apply(config)
    missing = num_params - num_weights(sized)
    return replace(best, intermediate_size=sized.intermediate_size + round(missing / (3 * hidden * config.num_layers)))


def _wider(config: DecoderConfig, *, hidden: int) -> Inflation:
    group_width = config.num_heads // config.num_kv_heads * config.head_dim
    return Inflation(
        hidden_size=hidden,
        intermediate_size=max(config.intermediate_size, 7 * hidden // 2),
        num_kv_heads=max(config.num_kv_heads, hidden // group_width),
    )
