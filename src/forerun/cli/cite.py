"""``forerun cite``: BibTeX of the work a part of Forerun stands on."""

import argparse
from typing import Final

from forerun.cli.console import write_line
from forerun.cli.options import Commands
from forerun.core.config import unknown_name

_ENTRIES: Final = {
    "kumar2026speculative": (
        "Speculative Speculative Decoding",
        "Kumar, Tanishq and Dao, Tri and May, Avner",
        2026,
        "2603.03251",
    ),
    "leviathan2022fast": (
        "Fast Inference from Transformers via Speculative Decoding",
        "Leviathan, Yaniv and Kalman, Matan and Matias, Yossi",
        2022,
        "2211.17192",
    ),
    "chen2023accelerating": (
        "Accelerating Large Language Model Decoding with Speculative Sampling",
        "Chen, Charlie and Borgeaud, Sebastian and Irving, Geoffrey and Lespiau, Jean-Baptiste and Sifre, Laurent "
        "and Jumper, John",
        2023,
        "2302.01318",
    ),
    "daliri2024coupling": (
        "Coupling without Communication and Drafter-Invariant Speculative Decoding",
        "Daliri, Majid and Musco, Christopher and Suresh, Ananda Theertha",
        2024,
        "2408.07978",
    ),
    "allal2025smollm2": (
        "{SmolLM2}: When Smol Goes Big -- Data-Centric Training of a Small Language Model",
        "Ben Allal, Loubna and Lozhkov, Anton and Bakouch, Elie and Mart{\\'i}n Bl{\\'a}zquez, Gabriel "
        "and Penedo, Guilherme and Tunstall, Lewis and Marafioti, Andr{\\'e}s and others",
        2025,
        "2502.02737",
    ),
    "kim2025pretraining": (
        "Pre-training under Infinite Compute",
        "Kim, Konwoo and Kotha, Suhas and Liang, Percy and Hashimoto, Tatsunori",
        2025,
        "2509.14786",
    ),
    "zhou2024diffusion": (
        "Diffusion Model Predictive Control",
        "Zhou, Guangyao and Swaminathan, Sivaramakrishnan and Raju, Rajkumar Vasudeva and Guntupalli, J. Swaroop "
        "and Lehrach, Wolfgang and Ortiz, Joseph and Dedieu, Antoine and L{\\'a}zaro-Gredilla, Miguel "
        "and Murphy, Kevin",
        2024,
        "2410.05364",
    ),
    "maes2026leworldmodel": (
        "{LeWorldModel}: Stable End-to-End Joint-Embedding Predictive Architecture from Pixels",
        "Maes and Le Lidec and Scieur and LeCun and Balestriero",
        2026,
        "2603.19312",
    ),
    "balestriero2025lejepa": ("{LeJEPA}", "Balestriero and LeCun", 2025, "2511.08544"),
    "wilson2025mysterious": (
        "Deep Learning is Not So Mysterious or Different",
        "Wilson, Andrew Gordon",
        2025,
        "2503.02113",
    ),
}
"""Key: title, authors, year of the preprint, arXiv number."""

_PARTS: Final = {
    "ssd": ("method ssd: drafting for predicted outcomes", ("kumar2026speculative",)),
    "sequential": ("method sequential, and the rejection rule", ("leviathan2022fast", "chen2023accelerating")),
    "coupled": ('verification="coupled": shared Gumbel noise', ("daliri2024coupling",)),
    "default-model": ("the embedded target, SmolLM2-135M-Instruct", ("allal2025smollm2",)),
    "pretraining": ("forerun pretrain: regularised runs and their ensembles", ("kim2025pretraining",)),
    "bounds": ("forerun certify: bounds by compression", ("wilson2025mysterious",)),
    "world": (
        "forerun world: the world model, and SIGReg, which keeps it from collapsing",
        ("maes2026leworldmodel", "balestriero2025lejepa"),
    ),
    "mpc": ("forerun mpc: diffusion proposals, multi-step diffusion dynamics", ("zhou2024diffusion",)),
}
"""Part: what it is in Forerun, and the keys of its papers."""


def bibtex(parts: tuple[str, ...]) -> str:
    """Return the BibTeX entries of some parts, each entry once, under a comment that says what it is for.

    Args:
        parts: Names of :data:`_PARTS`.
    """
    blocks: list[str] = []
    for part in parts:
        description, keys = _PARTS[part]
        blocks.append(f"% {part}: {description}")
        for key in keys:
            title, authors, year, number = _ENTRIES[key]
            blocks.append(
                f"@misc{{{key},\n"
                f"  title         = {{{title}}},\n"
                f"  author        = {{{authors}}},\n"
                f"  year          = {{{year}}},\n"
                f"  eprint        = {{{number}}},\n"
                "  archivePrefix = {arXiv},\n"
                f"  url           = {{https://arxiv.org/abs/{number}}},\n"
                "}"
            )
    return "\n\n".join(blocks)


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command to the command line."""
    parser = commands.add_parser("cite", help="print BibTeX of the parts used")
    parser.add_argument("parts", nargs="*", type=_part, metavar="PART", help=f"{', '.join(_PARTS)}; without one: all")
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the entries."""
    write_line(bibtex(tuple(dict.fromkeys(args.parts)) or tuple(_PARTS)))
    return 0


def _part(text: str) -> str:
    if text not in _PARTS:
        raise argparse.ArgumentTypeError(str(unknown_name("part", text, _PARTS)))
    return text
