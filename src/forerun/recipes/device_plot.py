"""The picture of a device benchmark: tokens per second by batch, and the parts of a step."""

from pathlib import Path
from typing import Any

from forerun.core.dependencies import import_optional
from forerun.recipes.device_benchmark import LABELS


def save_device_plot(result: dict[str, Any], path: Path) -> None:
    """Draw a result of :func:`forerun.recipes.device_benchmark.device_benchmark`.

    Args:
        result: With at least one case.
        path: Image to write.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    pyplot = import_optional("matplotlib.pyplot", extra="plot", purpose="the plot of a benchmark")
    context = result["cases"][0]["context"]
    cases = [case for case in result["cases"] if case["context"] == context]
    figure, (rates, parts) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for method in dict.fromkeys(case["method"] for case in cases):
        own = [case for case in cases if case["method"] == method]
        rates.plot(
            [case["batch"] for case in own],
            [case["tokens_per_s"] for case in own],
            "o-",
            label=LABELS.get(method, method),
        )
    rates.set(xlabel="requests side by side", ylabel="tokens per second, all requests", xscale="log", yscale="log")
    sizes = sorted({case["batch"] for case in cases})
    rates.set_xticks(sizes, labels=map(str, sizes))
    rates.minorticks_off()
    lowest, highest = rates.get_ylim()
    steps = [step * 10**power for power in range(6) for step in (1, 2, 5) if lowest <= step * 10**power <= highest]
    rates.set_yticks(steps, labels=map(str, steps))
    rates.legend()
    cases = [case for case in cases if case["method"] in LABELS]
    names = [f"{LABELS[case['method']]} {case['batch']}" for case in cases]
    verify = [case["verify_ms"] for case in cases]
    parts.bar(names, verify, label="verification")
    parts.bar(
        names, [case["step_ms"] - ms for case, ms in zip(cases, verify, strict=True)], bottom=verify, label="rest"
    )
    parts.axhline(result["floor"]["pass_ms"], color="black", linestyle="--", label="weights read once")
    parts.set(ylabel="milliseconds a step")
    parts.tick_params("x", rotation=60)
    parts.legend()
    figure.suptitle(f"{result['device']}: {result['about']}", wrap=True, fontsize=9)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
