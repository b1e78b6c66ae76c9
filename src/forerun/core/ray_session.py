"""Ray, where something runs on it: started on this machine or joined, with errors that say what to do."""

import os
from typing import Any

from forerun.core.dependencies import import_optional
from forerun.core.errors import ConfigError, ForerunError


def connect_ray(
    *,
    address: str | None,
    num_cpus: int | None,
    purpose: str,
    option: str,
    failure: type[ForerunError],
    otherwise: str,
) -> Any:
    """Start Ray on this machine, or join a cluster. Its processes get this one's ``FORERUN_*`` variables.

    Args:
        address: Of a cluster, such as ``auto`` or ``ray://HOST:10001``; ``None`` starts Ray here.
        num_cpus: Cores that Ray may give away here; ``None``: all. Not with an address.
        purpose: What needs Ray, as the subject of a sentence.
        option: What the user calls the address, for messages.
        failure: Raised where Ray does not start.
        otherwise: What to do without Ray, for that message.

    Returns:
        The package, connected.

    Raises:
        ConfigError: No cluster answers at the address.
        ForerunError: ``failure``.
        MissingDependencyError: Ray is not installed.
    """
    ray: Any = import_optional("ray", extra="ray", purpose=purpose)
    settings = {name: value for name, value in os.environ.items() if name.startswith("FORERUN_")}
    is_ours = address is None
    for is_last in (False, True):  # its daemons give up after 30 s; what they were loading is in memory then
        try:
            ray.init(
                address=address,
                num_cpus=num_cpus if is_ours else None,
                include_dashboard=False if is_ours else None,
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env={"env_vars": settings} if settings else None,
            )
            break
        except ConnectionError as error:
            raise ConfigError(f"{option}={address!r}: no Ray cluster answers there ({error})") from error
        except Exception as error:  # a daemon that does not come up is a bare Exception of Ray's
            ray.shutdown()
            if is_last:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise failure(
                    f"Ray did not start ({reason}); try again when the machine is less busy, join a running cluster "
                    f"with {option}, or {otherwise}"
                ) from error
    return ray
