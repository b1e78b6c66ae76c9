"""``forerun world plan``: act by a world model, for the goal's picture or for what is wanted in words."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from forerun.cli.console import write_json, write_line
from forerun.cli.options import Commands, add_command, add_json_option, add_number, add_threads_option, output_file
from forerun.cli.progress import progress_bars
from forerun.cli.world_options import add_data_option
from forerun.core.errors import ConfigError

if TYPE_CHECKING:
    from forerun.data.pixel_episodes import PixelEpisodes
    from forerun.recipes.world.evaluation import Contender
    from forerun.recipes.world.planners import PlanConfig
    from forerun.worldmodels.jepa.ensemble import EnsembleModel
    from forerun.worldmodels.jepa.model import Jepa

_MODEL: Final = "world model"
_SURPRISED: Final = "world model, replans on surprise"
_PROPOSED: Final = "world model, with proposals"
_DESCRIPTION: Final = """\
Plans in latent space, as published by the cross-entropy method. near: the goal is 25 actions ahead in the same episode,
50 may be spent. opposite: the goal is in the other room, 100 may be spent. push (Push-T): as near, where the block must
be moved. Starts and goals come from held-out episodes; starts at the goal already are left out.

words of --objective, with + and - and * by numbers; NAME is a known quantity of the data, such as x:
  goal()                      the goal's picture, as --goal says
  near(NAME=1.0, ...)         wish for values: minus the absolute error; what is not named may be anything
  any_of(TERM, TERM, ...)     the term that a plan fulfils best
  energy()                    wish for little effort: minus the squared actions
  keep_out(NAME=(0, 1), ...)  how deep inside a box: subtract it, or give it to --constraint
  keep_in(NAME=(0, 1), ...)   how far outside a box: likewise
"""
_EPILOG: Final = """\
examples:
  forerun world plan --model run/model --data rooms --control control/model
  forerun world plan --model run/model --data rooms --protocol opposite --goal landmarks --gif plan.gif
  forerun world plan --model run/model --data rooms --teleport-after 2 --replan-on-surprise 0.01
  forerun world plan --model run/model --data rooms --proposals 32 --proposal-iterations 2
  forerun world plan --model run/model --data pushes --bounded --execute 1 --context 3 --cost-at every
  forerun world plan --model run0/model --model run1/model --kappa 1 --data rooms
  forerun world plan --model run/model --data rooms --objective "any_of(near(x=50, y=50), near(x=50, y=170))"
"""


def add_plan(actions: Commands) -> None:
    """Add the action."""
    plan = add_command(
        actions,
        "plan",
        summary="success at held-out tasks",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    plan.add_argument(
        "--model", type=Path, required=True, action="append", metavar="DIR",
        help="folder 'model' of 'world train'; several times: models with other seeds plan as one",
    )  # fmt: skip
    add_number(plan, "--kappa", 0.0, "with several models: what a standard deviation between their costs costs")
    add_data_option(plan)
    add_threads_option(plan)
    add_json_option(plan)
    plan.add_argument("--control", type=Path, metavar="DIR", help="a model trained with --lambda 0 --keep-going")
    plan.add_argument("--clone", type=Path, metavar="DIR", help="a policy of 'world clone', as a baseline")
    plan.add_argument(
        "--protocol", choices=("near", "opposite", "push"), default="near", help="which tasks (default: %(default)s)"
    )
    add_number(plan, "--tasks", 100, "how many")
    plan.add_argument(
        "--goal", choices=("latent", "landmarks", "state"), default="latent",
        help="distance to the goal's embedding, the way over a map of training embeddings, or distance between what a "
        "head reads off both (default: %(default)s)",
    )  # fmt: skip
    plan.add_argument(
        "--cost-at", choices=("last", "every"), default="last",
        help="what a plan costs: its last state, or the sum over its states (default: %(default)s)",
    )  # fmt: skip
    plan.add_argument(
        "--objective", metavar="TEXT", help="what is wanted instead of the goal, in words about known quantities"
    )
    plan.add_argument(
        "--constraint", action="append", default=[], metavar="TEXT",
        help="with --objective: a hard limit, keep_out(...) or keep_in(...); may be given several times",
    )  # fmt: skip
    plan.add_argument(
        "--head", choices=("network", "linear"), default="network",
        help="what reads known quantities off embeddings (default: %(default)s)",
    )  # fmt: skip
    plan.add_argument(
        "--planner", choices=("cem", "icem", "mppi", "gradient"), default="cem", help="default: %(default)s"
    )
    add_number(plan, "--samples", 300, "candidates of an iteration")
    add_number(plan, "--elites", 30, "best candidates that the next iteration is fitted to")
    add_number(plan, "--iterations", 10, "iterations")
    add_number(plan, "--horizon", 5, "blocks of actions in a plan")
    add_number(plan, "--execute", 5, "blocks executed before the next plan")
    add_number(plan, "--context", 1, "frames that a plan begins with: more than one show how fast things move")
    plan.add_argument(
        "--returns", choices=("mean", "best"), default="mean",
        help="the last mean of a search, or the best candidate it ever scored (default: %(default)s)",
    )  # fmt: skip
    plan.add_argument("--bf16", action="store_true", help="roll out in bfloat16")
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
        "--stable-worldmodel", action="store_true", help="let stable-worldmodel's evaluation score all of it, too"
    )
    add_number(plan, "--seed", 0, "root of all chance")
    plan.add_argument("--gif", type=output_file, metavar="FILE", help="write a plan, as imagined and as it went")
    plan.set_defaults(action=_plan)


def _plan(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from forerun.data.pixel_shards import read_dataset
    from forerun.recipes.world.agents import CloningAgent
    from forerun.recipes.world.evaluation import evaluate, held_out_of
    from forerun.recipes.world.goal_tasks import held_out_tasks
    from forerun.recipes.world.pictures import check_picture_packages, write_plan_gif
    from forerun.recipes.world.play import Played, undisturbed
    from forerun.recipes.world.pursuit import Pursued
    from forerun.recipes.world.replanning import teleport
    from forerun.recipes.world.stable_scoring import check_scorable, score_by_stable_worldmodel
    from forerun.worldmodels.cloning import load_policy
    from forerun.worldmodels.collection import task_of
    from forerun.worldmodels.jepa.checkpoint import check_fits
    from forerun.worldmodels.jepa.ensemble import EnsembleModel, load_models

    if args.gif is not None:
        check_picture_packages()
    config = _config(args)
    model, manifest = load_models(args.model)
    dataset = read_dataset(args.data)
    for part in model.models if isinstance(model, EnsembleModel) else [model]:
        check_fits(part, dataset.episodes)
    task = task_of(dataset.recipe)
    seen, held_out = held_out_of(dataset, manifest)
    contenders = _contenders(args, config, model, seen, held_out)
    tasks = held_out_tasks(
        held_out, args.protocol, num_tasks=args.tasks, frame_skip=dataset.frame_skip, seed=args.seed, task=task.name
    )
    if args.stable_worldmodel:
        check_scorable(tasks, contenders)
    others = {} if args.clone is None else {"cloned policy": CloningAgent(load_policy(args.clone), tasks)}
    before_look = undisturbed
    if args.teleport_after is not None:
        before_look = teleport(tasks, after_blocks=args.teleport_after, seed=args.seed)
    played: dict[str, Played] = {}
    with progress_bars() as show:
        rows, shown = evaluate(
            contenders, tasks, others=others, seed=args.seed, before_look=before_look,
            stops_at_goal=args.objective is None, on_played=played.__setitem__,
            report=lambda done, total, detail: show(detail, done, total, ""),
        )  # fmt: skip
    if args.stable_worldmodel:
        rows += score_by_stable_worldmodel(contenders, tasks, seed=args.seed)
    for row in rows:
        write_line(row.line())
    pursued: list[Pursued] = []
    if args.objective is not None:
        pursued = [Pursued.of(name, what, task.state_names, args.constraint) for name, what in played.items()]
        for one in pursued:
            write_line(one.line())
    if args.control is None:
        write_line(
            "lambda = 0: no control given. A collapsed model reaches goals too: train one with "
            "'forerun world train --lambda 0 --keep-going' and name it with --control"
        )
    if args.gif is not None:
        drawn = _MODEL if args.replan_on_surprise is None else _SURPRISED
        write_plan_gif(args.gif, tasks, *shown[drawn], model=model, gallery=seen)
    if args.json is not None:
        found = {"plan": asdict(config), "success": [row.to_json() for row in rows]}
        write_json(args.json, found | {"pursued": [one.to_json() for one in pursued]})
    return 0


def _config(args: argparse.Namespace) -> "PlanConfig":
    """Return the options of the planner, checked together with what does not go with them."""
    from forerun.recipes.world.planners import PlanConfig

    if len(args.model) == 1 and args.kappa:
        raise ConfigError(f"--kappa {args.kappa}: one model agrees with itself; name several with --model")
    for name, value in (
        ("--proposals", args.proposals),
        ("--replan-on-surprise", args.replan_on_surprise),
        ("--stable-worldmodel", args.stable_worldmodel),
    ):
        if value and len(args.model) > 1:
            raise ConfigError(f"{name} with several --model: goes with one model; leave it out")
        if value and args.objective is not None and name != "--replan-on-surprise":
            raise ConfigError(f"{name} with --objective: is made for the goal's picture; leave it out")
    if args.constraint and args.objective is None:
        raise ConfigError("--constraint: goes with --objective; say what is wanted, such as --objective 'goal()'")
    return PlanConfig(
        planner=args.planner,
        horizon=args.horizon,
        execute_horizon=args.execute,
        num_context=args.context,
        num_samples=args.samples,
        num_elites=args.elites,
        num_iterations=args.iterations,
        returns=args.returns,
        goal=args.goal,
        cost_at=args.cost_at,
        is_bounded=args.bounded,
        has_warm_start=args.warm_start,
        kappa=args.kappa,
        has_autocast=args.bf16,
        deadline_s=None if args.deadline_ms is None else args.deadline_ms / 1000,
        seed=args.seed,
    )


def _contenders(
    args: argparse.Namespace,
    config: "PlanConfig",
    model: "Jepa | EnsembleModel",
    seen: "PixelEpisodes",
    held_out: "PixelEpisodes",
) -> "dict[str, Contender]":
    """Return the model, alone and with what the options add, and the control."""
    from dataclasses import replace

    from forerun.recipes.world.evaluation import Contender
    from forerun.recipes.world.replanning import alarm_threshold
    from forerun.recipes.world.wishes import goal_wish, worded_wish
    from forerun.worldmodels.jepa.checkpoint import load_model
    from forerun.worldmodels.jepa.ensemble import EnsembleModel
    from forerun.worldmodels.jepa.inverse import InverseConfig, InverseModel

    def contender(which: "Jepa | EnsembleModel") -> Contender:
        options: dict[str, Any] = {name: getattr(config, name) for name in ("goal", "cost_at", "kappa", "seed")}
        options["head"] = args.head
        if args.objective is None:
            wish = goal_wish(which, seen, **options)
        else:
            wish = worded_wish(which, seen, args.objective, constraints=args.constraint, **options)
        return Contender(model=which, seen=seen, config=config, wish=wish)

    contenders = {_MODEL: contender(model)}
    if not isinstance(model, EnsembleModel):
        if args.replan_on_surprise is not None:
            threshold = alarm_threshold(model, held_out, false_alarm_rate=args.replan_on_surprise)
            contenders[_SURPRISED] = replace(contenders[_MODEL], alarm_above=threshold)
        if args.proposals:
            contenders[_PROPOSED] = replace(
                contenders[_MODEL],
                config=replace(config, num_proposals=args.proposals, num_iterations=args.proposal_iterations),
                inverse=InverseModel.of_episodes(model, seen, InverseConfig(horizon=args.horizon, seed=args.seed)),
            )
    if args.control is not None:
        contenders["lambda = 0"] = contender(load_model(args.control)[0])
    return contenders
