"""Metrics of several processes as those of one server, told apart by a label."""

import re
from collections.abc import Mapping

_SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")


def merged_metrics(texts: Mapping[str, str]) -> bytes:
    """Return metrics in Prometheus's text format, each sample with the label ``replica``.

    Args:
        texts: The same format, by name of the process.
    """
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for replica, text in texts.items():
        family = ""
        for line in text.splitlines():
            if line.startswith("#"):
                _, _, family, *_ = line.split(" ", 3)
                head = heads.setdefault(family, [])
                if line not in head:
                    head.append(line)
            elif (match := _SAMPLE.fullmatch(line)) is not None:
                name, labels, value = match.groups()
                rest = f",{labels}" if labels else ""
                samples.setdefault(family, []).append(f'{name}{{replica="{replica}"{rest}}} {value}')
    lines = [line for family, head in heads.items() for line in (*head, *samples.get(family, ()))]
    return "".join(f"{line}\n" for line in lines).encode()
