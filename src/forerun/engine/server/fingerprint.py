"""A word that changes where a seed may give another text: another model, another arithmetic, another release."""

import hashlib

import forerun
from forerun.engine.config import EngineConfig


def fingerprint(config: EngineConfig) -> str:
    """Return OpenAI's ``system_fingerprint`` of an engine.

    Args:
        config: The engine's. Its method does not count: the text is the same by all.
    """
    parts = (forerun.__version__, config.target, config.dtype, config.device, config.speculative.verification)
    return f"fp_{hashlib.blake2b(repr(parts).encode(), digest_size=5).hexdigest()}"
