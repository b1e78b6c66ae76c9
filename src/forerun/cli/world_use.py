"""``forerun world probe``, ``plan``, ``surprise`` and ``reproduce``: what a trained model is good for."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from forerun.cli.console import write_json, write_line
from forerun.cli.options import Commands, add_command, add_json_option, add_number, add_threads_option, output_file
from forerun.cli.progress import progress_bars

if TYPE_CHECKING:
    from forerun.data.pixel_shards import PixelDataset
    from forerun.worldmodels.jepa.model import Jepa

_SURPRISED: Final = "world model, replans on surprise"
_PROPOSED: Final = "world model, with proposals"


def add_probe(actions: Commands) -> None:
    """Add the action."""
    probe = add_command(
        actions,
        "probe",
        summary="health of a trained model",
        description="Measures a model on episodes that it did not learn from.",
        epilog="examples:\n  forerun world probe --model run/model --data rooms --map latents.png",
    )
    _add_model_options(probe)
    probe.add_argument("--map", type=output_file, metavar="FILE", help="draw embeddings, coloured by what is known")
    probe.set_defaults(action=_probe)


def _probe(args: argparse.Namespace) -> int:
    from forerun.recipes.world.evaluation import held_out_of, mlp_probe_r2
    from forerun.recipes.world.pictures import check_picture_packages, draw_latent_map
    from forerun.worldmodels.jepa.health import HealthMonitor

    if args.map is not None:
        check_picture_packages()
    model, manifest, dataset = _opened(args)
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


def add_plan(actions: Commands) -> None:
    """Add the action."""
    plan = add_command(
        actions,
        "plan",
        summary="success at held-out tasks",
        description="Plans in latent space by the cross-entropy method. near: the goal is 25 actions ahead in the\n"
        "same episode, 50 may be spent. opposite: the goal is in the other room, 100 may be spent. push (Push-T): as\n"
        "near, where the block must be moved. Starts and goals come from held-out episodes; starts at the goal\n"
        "already are left out.",
        epilog="examples:\n  forerun world plan --model run/model --data rooms --control control/model\n"
        "  forerun world plan --model run/model --data rooms --protocol opposite --goal landmarks --gif plan.gif\n"
        "  forerun world plan --model run/model --data rooms --teleport-after 2 --replan-on-surprise 0.01\n"
        "  forerun world plan --model run/model --data rooms --proposals 32 --proposal-iterations 2",
    )
    _add_model_options(plan)
    plan.add_argument("--control", type=Path, metavar="DIR", help="a model trained with --lambda 0 --keep-going")
    plan.add_argument("--clone", type=Path, metavar="DIR", help="a policy of 'world clone', as a baseline")
    plan.add_argument(
        "--protocol", choices=("near", "opposite", "push"), default="near", help="which tasks (default: %(default)s)"
    )
    add_number(plan, "--tasks", 100, "how many")
    plan.add_argument(
        "--goal", choices=("latent", "landmarks"), default="latent",
        help="distance to the goal's embedding, or the way over a map of training embeddings (default: %(default)s)",
    )  # fmt: skip
    add_number(plan, "--samples", 300, "candidates of an iteration")
    add_number(plan, "--elites", 30, "best candidates that the next iteration is fitted to")
    add_number(plan, "--iterations", 10, "iterations")
    add_number(plan, "--horizon", 5, "blocks of actions in a plan")
    add_number(plan, "--execute", 5, "blocks executed before the next plan")
    plan.add_argument("--bounded", action="store_true", help="keep candidates inside the box of actions")
    plan.add_argument("--warm-start", action="store_true", help="begin a search at what is left of the last plan")
    plan.add_argument("--deadline-ms", type=float, metavar="X", help="end a search then, with the best so far")
    plan.add_argument(
        "--teleport-after", type=int, metavar="N", help="put every disc elsewhere after N blocks of actions"
    )
    plan.add_argument(
        "--replan-on-surprise", type=float, metavar="RATE",
        help="show too what the model does if it plans anew at frames more surprising than this share of undisturbed "
        "ones",
    )  # fmt: skip
    add_number(
        plan,
        "--proposals",
        0,
        "show too what the model does with so many guesses of an inverse model among the candidates",
    )
    add_number(plan, "--proposal-iterations", 2, "iterations of that search")
    plan.add_argument(
        "--stable-worldmodel", action="store_true", help="let the evaluation of stable-worldmodel score the model too"
    )
    add_number(plan, "--seed", 0, "root of all chance")
    plan.add_argument("--gif", type=output_file, metavar="FILE", help="write a plan, as imagined and as it went")
    plan.set_defaults(action=_plan)


def _plan(args: argparse.Namespace) -> int:
    from dataclasses import asdict, replace

    from forerun.recipes.world.agents import CloningAgent, PlanConfig
    from forerun.recipes.world.evaluation import Contender, evaluate, held_out_of
    from forerun.recipes.world.goal_tasks import held_out_tasks
    from forerun.recipes.world.pictures import check_picture_packages, write_plan_gif
    from forerun.recipes.world.play import undisturbed
    from forerun.recipes.world.replanning import alarm_threshold, teleport
    from forerun.recipes.world.stable_scoring import check_scorable, score_by_stable_worldmodel
    from forerun.worldmodels.cloning import load_policy
    from forerun.worldmodels.collection import task_of
    from forerun.worldmodels.jepa.checkpoint import load_model
    from forerun.worldmodels.jepa.inverse import InverseConfig, InverseModel

    if args.gif is not None:
        check_picture_packages()
    model, manifest, dataset = _opened(args)
    task = task_of(dataset.recipe).name
    seen, held_out = held_out_of(dataset, manifest)
    config = PlanConfig(
        horizon=args.horizon,
        execute_horizon=args.execute,
        num_samples=args.samples,
        num_elites=args.elites,
        num_iterations=args.iterations,
        goal=args.goal,
        is_bounded=args.bounded,
        has_warm_start=args.warm_start,
        deadline_s=None if args.deadline_ms is None else args.deadline_ms / 1000,
        seed=args.seed,
    )
    contenders = {"world model": Contender(model=model, seen=seen, config=config)}
    if args.replan_on_surprise is not None:
        threshold = alarm_threshold(model, held_out, false_alarm_rate=args.replan_on_surprise)
        contenders[_SURPRISED] = replace(contenders["world model"], alarm_above=threshold)
    if args.proposals:
        contenders[_PROPOSED] = replace(
            contenders["world model"],
            config=replace(config, num_proposals=args.proposals, num_iterations=args.proposal_iterations),
            inverse=InverseModel.of_episodes(model, seen, InverseConfig(horizon=args.horizon, seed=args.seed)),
        )
    if args.control is not None:
        contenders["lambda = 0"] = replace(contenders["world model"], model=load_model(args.control)[0])
    tasks = held_out_tasks(
        held_out, args.protocol, num_tasks=args.tasks, frame_skip=dataset.frame_skip, seed=args.seed, task=task
    )
    if args.stable_worldmodel:
        check_scorable(tasks, config)
    others = {} if args.clone is None else {"cloned policy": CloningAgent(load_policy(args.clone), tasks)}
    before_look = undisturbed
    if args.teleport_after is not None:
        before_look = teleport(tasks, after_blocks=args.teleport_after, seed=args.seed)
    with progress_bars() as show:
        rows, shown = evaluate(
            contenders, tasks, others=others, seed=args.seed, before_look=before_look,
            report=lambda done, total, detail: show(detail, done, total, ""),
        )  # fmt: skip
    if args.stable_worldmodel:
        rows += score_by_stable_worldmodel(model, tasks, config)
    for row in rows:
        write_line(row.line())
    if args.control is None:
        write_line(
            "lambda = 0: no control given. A collapsed model reaches goals too: train one with "
            "'forerun world train --lambda 0 --keep-going' and name it with --control"
        )
    if args.gif is not None:
        drawn = "world model" if args.replan_on_surprise is None else _SURPRISED
        write_plan_gif(args.gif, tasks, *shown[drawn], model=model, gallery=seen)
    if args.json is not None:
        write_json(args.json, {"plan": asdict(config), "success": [row.to_json() for row in rows]})
    return 0


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
    _add_model_options(surprise)
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
    model, _, dataset = _opened(args)
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
        "was cut.\n\n  smoke  about five minutes on two idle cores: shows that everything works\n"
        "  cpu    three seeds of the 'small' configuration, about an hour on two idle cores",
        epilog="examples:\n  forerun world reproduce --task two-room --scale smoke --out world\n"
        "  forerun world reproduce --task two-room --scale cpu --out study --seeds 1",
    )
    reproduce.add_argument("--task", choices=("two-room",), default="two-room", help="default: %(default)s")
    reproduce.add_argument("--scale", choices=("smoke", "cpu"), default="smoke", help="default: %(default)s")
    reproduce.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the study")
    reproduce.add_argument("--seeds", type=int, metavar="N", help="models, each with a control (default: by scale)")
    add_number(reproduce, "--threads", 2, "CPU threads")
    add_json_option(reproduce)
    reproduce.set_defaults(action=_reproduce)


def _reproduce(args: argparse.Namespace) -> int:
    from forerun.recipes.world.reproduce import SCALES, reproduce

    scale = SCALES[args.scale].with_seeds(args.seeds)
    with progress_bars() as show:
        found = reproduce(args.out, scale, report=show)
    for line in found.lines:
        write_line(line)
    write_line(f"report: {args.out / 'report.md'}")
    if args.json is not None:
        write_json(args.json, found.numbers)
    return 0


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="folder 'model' of 'world train'")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of 'world collect'")
    add_threads_option(parser)
    add_json_option(parser)


def _opened(args: argparse.Namespace) -> "tuple[Jepa, dict[str, Any], PixelDataset]":
    from forerun.data.pixel_shards import read_dataset
    from forerun.worldmodels.jepa.checkpoint import check_fits, load_model

    model, manifest = load_model(args.model)
    dataset = read_dataset(args.data)
    check_fits(model, dataset.episodes)
    return model, manifest, dataset
