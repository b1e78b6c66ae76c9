"""How many engines serve, and what each gets."""

from dataclasses import dataclass

from forerun.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaConfig:
    """How many engines, and what each gets.

    Attributes:
        replicas: Engines side by side; more than one, or an address, needs Ray Serve.
        max_replicas: Most of them as load grows; ``None``: always as many as ``replicas``.
        cores_per_replica: Cores of each; ``None``: this machine's in equal parts, or 2 on a cluster.
        ray_address: Of a cluster, such as ``auto`` or ``ray://HOST:10001``; ``None`` starts Ray on this machine.
    """

    replicas: int = 1
    max_replicas: int | None = None
    cores_per_replica: int | None = None
    ray_address: str | None = None

    def __post_init__(self) -> None:
        for name in ("replicas", "cores_per_replica"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be >= 1")
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ConfigError(f"max_replicas={self.max_replicas}: must be >= replicas={self.replicas}")

    @property
    def needs_ray(self) -> bool:
        """Whether one process is not what is asked for."""
        return self.most > 1 or self.ray_address is not None

    @property
    def most(self) -> int:
        """Replicas at the most."""
        return self.max_replicas or self.replicas

    def num_cores(self, here: int) -> int:
        """Return the cores of each replica.

        Args:
            here: Cores that this process may use.

        Raises:
            ConfigError: This machine has too few.
        """
        if self.ray_address is not None:
            return self.cores_per_replica or 2
        share = self.cores_per_replica or here // self.most
        if share < 1 or share * self.most > here:
            raise ConfigError(
                f"replicas={self.most} with {share or 1} cores each: this machine has {here}; ask for fewer replicas, "
                "or name a cluster with ray_address"
            )
        return share
