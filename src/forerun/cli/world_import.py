"""``forerun world import``: episodes of one's own, from an HDF5 file or from a folder of videos."""

import argparse
from pathlib import Path
from typing import Any

from forerun.cli.console import write_json, write_line
from forerun.cli.options import Commands, add_command, add_json_option, add_number, add_threads_option
from forerun.cli.progress import progress_bars
from forerun.core.errors import TrajectoryError


def add_import(actions: Commands) -> None:
    """Add the action."""
    imported = add_command(
        actions,
        "import",
        summary="take episodes out of an HDF5 file or a folder of videos",
        description="From a file: HDF5 with a row for each frame: frames (uint8, RGB), the action after each, rows of\n"
        "each episode. From a folder: a data set of LeRobot (version 2), a video and a Parquet file for each episode.\n"
        "Keeps every frame-skip-th frame, and the actions between two as one block.",
        epilog="examples:\n  forerun world import robot.h5 --out data --resolution 32 --state-keys proprio\n"
        "  forerun world import demo.h5 --out data --pixels-key obs --action-key act --length-key lengths\n"
        "  forerun world import aloha --out data --camera observation.images.top --resolution 64",
    )
    imported.add_argument("source", type=Path, help="the HDF5 file, or the folder with meta, data and videos")
    imported.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the data")
    for name, default in (("pixels", "pixels"), ("action", "action"), ("length", "ep_len")):
        imported.add_argument(
            f"--{name}-key", default=default, metavar="KEY", help="dataset or column (default: %(default)s)"
        )
    imported.add_argument("--camera", metavar="KEY", help="which videos, if there are several")
    imported.add_argument("--state-keys", nargs="+", default=[], metavar="KEY", help="known quantities, for probes")
    add_number(imported, "--frame-skip", 5, "every so-manieth frame is kept")
    imported.add_argument("--resolution", type=int, metavar="N", help="average frames down to N pixels of a side")
    add_threads_option(imported)
    add_json_option(imported)
    imported.set_defaults(action=_import)


def _import(args: argparse.Namespace) -> int:
    from forerun.data.pixel_hdf5 import Hdf5Config, import_hdf5
    from forerun.data.pixel_lerobot import LeRobotConfig, import_lerobot

    if not args.source.exists():
        raise TrajectoryError(f"{args.source}: is neither a file nor a folder; name one that is there")
    with progress_bars() as show:

        def report(done: int, total: int) -> None:
            show("episodes", done, total, "")

        shared: dict[str, Any] = {
            "action_key": args.action_key,
            "state_keys": tuple(args.state_keys),
            "frame_skip": args.frame_skip,
            "resolution": args.resolution,
        }
        if args.source.is_dir():
            videos = LeRobotConfig(camera=args.camera, **shared)
            found = import_lerobot(args.source, args.out, videos, report=report)
        else:
            file = Hdf5Config(pixels_key=args.pixels_key, length_key=args.length_key, **shared)
            found = import_hdf5(args.source, args.out, file, report=report)
    write_line(
        f"{args.out}: {found['num_episodes']} episodes, {found['num_frames']} frames; {found['num_dropped']} too short"
    )
    if args.json is not None:
        write_json(args.json, found)
    return 0
