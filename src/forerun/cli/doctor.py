"""``forerun doctor``: what this machine offers, what Forerun would do with it and why, and what is missing."""

import argparse
import os
import platform
import sys
from pathlib import Path
from typing import Any, Final

import forerun
from forerun.cli.console import write_json, write_line
from forerun.cli.options import Commands, add_json_option
from forerun.core.dtype_choice import choose_dtype
from forerun.core.env import CpuInfo, available_cores, cpu_info, cpu_quota_cores, package_versions
from forerun.core.errors import ForerunError

_PACKAGES: Final = ("torch", "numba", "numpy", "gguf", "safetensors", "tokenizers", "jinja2", "rich", "psutil")
_RECOMMENDED_FREE_BYTES: Final = 2 * 2**30
"""Target and drafter each hold about 1.5 times their files plus 600 MB."""


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command to the command line."""
    parser = commands.add_parser("doctor", help="say what this machine offers, and what is missing")
    add_json_option(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the findings; the status is 1 where something that decoding needs is missing."""
    findings = examine()
    for section, facts in findings.items():
        if section == "problems":
            continue
        write_line(section)
        for name, value in facts.items():
            write_line(f"  {name:<24} {_shown(value)}")
    for problem in findings["problems"]:
        write_line(f"problem: {problem}")
    if not findings["problems"]:
        write_line("no problem found")
    if args.json is not None:
        write_json(args.json, findings)
    return 1 if findings["problems"] else 0


def examine() -> dict[str, Any]:
    """Look at the machine and the installation.

    Returns:
        ``versions``, ``cpu``, ``memory``, ``threads``, ``devices``, ``dtype``, ``models``: a dictionary of facts each;
        ``problems``: what keeps decoding from working well, with what to do, as sentences.
    """
    cpu, cores, quota = cpu_info(), available_cores(), cpu_quota_cores()
    versions = {"forerun": forerun.__version__, "python": platform.python_version()} | package_versions(_PACKAGES)
    problems = [
        f"the package {name} is not installed; run: pip install forerun"
        for name, found in versions.items()
        if not found
    ]
    usable_cores = min(len(cores), quota or len(cores))
    if usable_cores < 2:
        problems.append(
            f"{usable_cores:g} core to run on: speculative-speculative decoding needs 2 (target and drafter); "
            "give the process another core, or use the method sequential"
        )
    return {
        "versions": versions,
        "cpu": _cpu_facts(cpu, cores=cores, quota=quota),
        "memory": _memory_facts(problems) if versions["psutil"] else {},
        "threads": _thread_facts() if versions["torch"] and versions["numba"] else {},
        "devices": _device_facts() if versions["torch"] else {},
        "dtype": _dtype_facts(cpu),
        "models": _model_facts(problems) if versions["torch"] else {},
        "problems": problems,
    }


def _cpu_facts(cpu: CpuInfo, *, cores: tuple[int, ...], quota: float | None) -> dict[str, Any]:
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "model": cpu.model_name,
        "available_cores": list(cores),
        "num_physical_cores": cpu.num_physical_cores or None,
        "quota_cores": quota,
        "can_pin": hasattr(os, "sched_setaffinity"),
    } | cpu.isa


def _memory_facts(problems: list[str]) -> dict[str, Any]:
    import psutil

    memory = psutil.virtual_memory()
    if memory.available < _RECOMMENDED_FREE_BYTES:
        problems.append(
            f"{_shown_bytes(memory.available)} of memory is free; the default models need about "
            f"{_shown_bytes(_RECOMMENDED_FREE_BYTES)}: close something first"
        )
    return {"total_bytes": memory.total, "available_bytes": memory.available}


def _thread_facts() -> dict[str, Any]:
    import numba
    import torch

    return {"torch": torch.get_num_threads(), "numba": numba.get_num_threads()}


def _device_facts() -> dict[str, Any]:
    from forerun.models.device_report import device_report, present_gpus

    return device_report(present_gpus())


def _dtype_facts(cpu: CpuInfo) -> dict[str, Any]:
    quantized = choose_dtype("auto", cpu=cpu, weights_are_quantized=True)
    other = choose_dtype("auto", cpu=cpu, weights_are_quantized=False)
    return {
        "quantised_file": quantized.dtype,
        "quantised_file_why": quantized.reason,
        "other_file": other.dtype,
        "other_file_why": other.reason,
    }


def _model_facts(problems: list[str]) -> dict[str, Any]:
    from forerun.models.load import default_model_path

    facts: dict[str, Any] = {"target_path": None, "target_bytes": None, "draft_path": None, "draft_bytes": None}
    try:
        target = default_model_path()
        facts |= {"target_path": str(target), "target_bytes": target.stat().st_size}
    except ForerunError as error:
        problems.append(str(error))
    folder = Path(sys.modules["forerun.models"].__path__[0]) / "default_draft"
    weights = sorted(folder.glob("*.safetensors"))
    if weights:
        facts |= {"draft_path": str(folder), "draft_bytes": sum(file.stat().st_size for file in weights)}
    else:
        problems.append(
            "the shipped draft is not in this installation; reinstall Forerun, or train one: forerun train-draft"
        )
    return facts


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _shown_bytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
