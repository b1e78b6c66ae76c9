"""Tiny models and a drafter in this process, with which the engine's real code runs in microseconds and repeatably."""
