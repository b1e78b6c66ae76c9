"""``forerun world probe``, ``surprise`` and ``reproduce``: what a trained model knows, and the whole study."""

import argparse
from pathlib import Path

from forerun.cli.console import write_json, write_line
from forerun.cli.options import Commands, add_command, add_json_option, add_number, output_file
from forerun.cli.progress import progress_bars
from forerun.cli.world_options import add_model_and_data, opened
from forerun.core.errors import ConfigError


def add_probe(actions: Commands) -> None:
    """Add the action."""
    probe = add_command(
        actions,
        "probe",
        summary="health of a trained model",
        description="Measures a model on episodes that it did not learn from.",
        epilog="examples:\n  forerun world probe --model run/model --data rooms --map latents.png",
    )
    add_model_and_data(probe)
    probe.add_argument("--map", type=output_file, metavar="FILE", help="draw embeddings, coloured by what is known")
    probe.set_defaults(action=_probe)


def _probe(args: argparse.Namespace) -> int:
    from forerun.recipes.world.evaluation import held_out_of, mlp_probe_r2
    from forerun.recipes.world.pictures import check_picture_packages, draw_latent_map
    from forerun.worldmodels.jepa.health import HealthMonitor

    if args.map is not None:
        check_picture_packages()
    model, manifest, dataset = opened(args)
    seen, held_out = held_out_of(dataset, manifest)
    health = HealthMonitor(seen, held_out, history=model.predictor.history).look(model)
    by_network = mlp_probe_r2(model, seen, held_out)
    write_line(health.line())
    for name, value in health.probe_r2.items():
        write_line(f"R² of {name}: {value:.4f} by a linear probe, {by_network[name]:.4f} by a small network")
    if args.map is not None:
        draw_latent_map(args.map, model, held_out)
    reason = health.collapse()
    write_line("healthy" if reason is None else f"collapsed: {reason}")
    if args.json is not None:
        write_json(args.json, health.to_json() | {"mlp_probe_r2": by_network, "why_collapsed": reason})
    return 0 if reason is None else 1


def add_surprise(actions: Commands) -> None:
    """Add the action."""
    surprise = add_command(
        actions,
        "surprise",
        summary="prediction error as an alarm",
        description="Sets a threshold on fresh undisturbed episodes so that a share of frames raises a false alarm,\n"
        "counts false alarms on others, then teleports the disc, changes its colour, or turns its actions by 90\n"
        "degrees halfway through, and says how well surprise tells these episodes from the same ones undisturbed.",
        epilog="examples:\n  forerun world surprise --model run/model --data rooms --rate 0.01 --plot surprise.png",
    )
    add_model_and_data(surprise)
    add_number(surprise, "--rate", 0.05, "share of undisturbed frames that may raise an alarm")
    add_number(surprise, "--calibration", 1000, "episodes to calibrate on, and as many to count false alarms in")
    add_number(surprise, "--episodes", 200, "pairs of episodes with and without an event")
    surprise.add_argument("--plot", type=output_file, metavar="FILE", help="draw surprise over time")
    surprise.set_defaults(action=_surprise)


def _surprise(args: argparse.Namespace) -> int:
    from forerun.recipes.world.pictures import check_picture_packages, draw_surprise
    from forerun.recipes.world.surprise_benchmark import SurpriseConfig, measure_surprise, record_surprise_episodes
    from forerun.worldmodels.collection import recorded_with

    if args.plot is not None:
        check_picture_packages()
    model, _, dataset = opened(args)
    config = SurpriseConfig(
        num_calibration=args.calibration,
        num_undisturbed=max(args.calibration, args.episodes),
        num_pairs=args.episodes,
        false_alarm_rate=args.rate,
    )
    with progress_bars() as show:
        episodes = record_surprise_episodes(
            recorded_with(dataset.recipe),
            config,
            report=lambda done, total, detail: show("surprise", done, total, detail),
        )
    result = measure_surprise(model, episodes, config)
    for line in result.lines():
        write_line(line)
    if args.plot is not None:
        draw_surprise(args.plot, result)
    if args.json is not None:
        write_json(args.json, result.to_json())
    return 0


def add_reproduce(actions: Commands) -> None:
    """Add the action."""
    reproduce = add_command(
        actions,
        "reproduce",
        summary="collect, train, plan and be surprised, in one command",
        description="Collects episodes, trains world models and collapsed controls, and writes OUT/report.md with the\n"
        "table, a GIF of a plan, the plot of surprise and the health of every run. The same command goes on where it\n"
        "was cut.\n\n  smoke  107 CPU seconds, two minutes on idle cores: shows that everything works\n"
        "  cpu    three seeds, about an hour on two idle cores\n\n"
        "push-t and stable-two-room (extra 'stable-worlds') have no surprise: models, controls, on Push-T cloned\n"
        "policies, and their success; stable-two-room is scored by stable-worldmodel's own evaluation.",
        epilog="examples:\n  forerun world reproduce --task two-room --scale smoke --out world\n"
        "  forerun world reproduce --task two-room --scale cpu --out study --seeds 1\n"
        "  forerun world reproduce --task push-t --out pushes",
    )
    reproduce.add_argument(
        "--task", choices=("two-room", "push-t", "stable-two-room"), default="two-room", help="default: %(default)s"
    )
    reproduce.add_argument(
        "--scale", choices=("smoke", "cpu"), help="default: smoke for two-room; the others have cpu alone"
    )
    reproduce.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the study")
    reproduce.add_argument("--seeds", type=int, metavar="N", help="models, each with a control (default: by scale)")
    add_number(reproduce, "--threads", 2, "CPU threads")
    add_json_option(reproduce)
    reproduce.set_defaults(action=_reproduce)


def _reproduce(args: argparse.Namespace) -> int:
    from forerun.recipes.world.reproduce import SCALES, reproduce
    from forerun.recipes.world.task_studies import STUDIES
    from forerun.recipes.world.task_study import study_task

    if args.task != "two-room" and args.scale == "smoke":
        raise ConfigError(f"--scale smoke: task {args.task!r} has scale 'cpu' alone; leave --scale out")
    with progress_bars() as show:
        if args.task == "two-room":
            found = reproduce(args.out, SCALES[args.scale or "smoke"].with_seeds(args.seeds), report=show)
        else:
            found = study_task(args.out, STUDIES[args.task].with_seeds(args.seeds), report=show)
    for line in found.lines:
        write_line(line)
    write_line(f"report: {args.out / 'report.md'}")
    if args.json is not None:
        write_json(args.json, found.numbers)
    return 0
