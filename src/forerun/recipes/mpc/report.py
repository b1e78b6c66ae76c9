"""A study as a page: what was done, the table, what was new, the bars."""

from collections.abc import Mapping, Sequence
from typing import Any

from forerun.recipes.mpc.table import bar_value, extra_lines, table_cells


def report_page(results: Mapping[str, Any]) -> str:
    """Return the page as Markdown.

    Args:
        results: As :func:`~forerun.recipes.mpc.reproduce.reproduce` returns them.
    """
    plan = results["study"]
    lines = [
        f"# D-MPC: {plan['task']}",
        "",
        f"`forerun mpc reproduce`: scale `{plan['scale']}`, {plan['num_train_steps']} steps of {plan['batch_size']} "
        f"windows for each model, {plan['num_seeds']} training seed(s) x {plan['num_episodes']} episodes. Returns are "
        'interquartile means with 95% bootstrap intervals; "ahead" is by how much SSR\'s return is greater, start by '
        "start. CPU ms are those of a step of one environment, all environments planned for at once.",
        "",
    ]
    lines += [
        f"Data: {data['num_episodes']} episodes, {data['num_steps']} steps; return {data['mean_return']:.3f} in the "
        f"mean, {data['p90_return']:.3f} at the 90th percentile, {data['best_return']:.3f} at best."
        for data in results["data"]
    ]
    lines += ["", *_table(results["rows"]), ""]
    lines += [f"- {line}" for line in extra_lines(results["extras"])]
    lines += ["", "| bar | required | value | |", "|---|---|---|---|"]
    for bar in results["bars"]:
        verdict = "met" if bar["is_met"] else "**missed**"
        lines.append(f"| {bar['name']} | {bar['required']} | {bar_value(bar)} | {verdict} |")
    machine = results["machine"]
    lines += ["", f"Machine: {machine['cpu_model']}; revision {machine['git_revision']}."]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    header, cells = table_cells(rows)
    return [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *cells)]
