"""``forerun world convert`` and ``export``: models out of other programs, and for them."""

import argparse
from pathlib import Path

from forerun.cli.console import write_json, write_line
from forerun.cli.options import Commands, add_command, add_json_option, add_threads_option
from forerun.cli.world_options import add_model_option


def add_convert(actions: Commands) -> None:
    """Add the action."""
    convert = add_command(
        actions,
        "convert",
        summary="take a model out of a published checkpoint",
        description="Reads config.json and weights.pt (or weights.safetensors) as LeWorldModel publishes them, and\n"
        "writes a model for 'world plan'. Units of actions are not in those files: name data to take them from.",
        epilog="examples:\n  forerun world convert lewm-pusht --out model --data pushes",
    )
    convert.add_argument("folder", type=Path, help="holds config.json and weights.pt")
    convert.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the model")
    convert.add_argument("--data", type=Path, metavar="DIR", help="folder of 'world collect', for units of actions")
    add_threads_option(convert)
    add_json_option(convert)
    convert.set_defaults(action=_convert)


def _convert(args: argparse.Namespace) -> int:
    from forerun.core.atomic_files import check_new_folder
    from forerun.data.pixel_shards import read_dataset
    from forerun.worldmodels.jepa.checkpoint import check_fits, save_model
    from forerun.worldmodels.jepa.config import JepaTrainConfig
    from forerun.worldmodels.jepa.published import load_published
    from forerun.worldmodels.jepa.train import action_units

    check_new_folder(args.out)
    record: dict[str, object] = {"source": "published checkpoint"}
    if args.data is None:
        model = load_published(args.folder)
    else:
        dataset = read_dataset(args.data)
        model = load_published(args.folder, action_normalizer=action_units(dataset.episodes))
        check_fits(model, dataset.episodes)
        record |= {"task": dataset.task, "frame_skip": dataset.frame_skip, "data_digest": dataset.digest}
    defaults = JepaTrainConfig()
    split = {"held_out_fraction": defaults.held_out_fraction, "split_seed": defaults.split_seed}
    save_model(model, args.out, record=record | {"train_config": split})
    num_params = sum(parameter.numel() for parameter in model.parameters())
    write_line(f"{args.out}: {num_params:,} parameters, frames of {model.config.encoder.image_size} pixels")
    if args.data is None:
        write_line("actions are taken as standardised; name --data to have raw ones brought to the data's units")
    if args.json is not None:
        write_json(args.json, {"num_params": num_params, "model": model.config.to_json()})
    return 0


def add_export(actions: Commands) -> None:
    """Add the action."""
    export = add_command(
        actions,
        "export",
        summary="write encoder and predictor as programs of torch.export or ONNX",
        description="The programs run without this package: frames to embeddings, embeddings and raw actions to the\n"
        "next embedding, for any number of sequences. ONNX needs the extra 'export'.",
        epilog="examples:\n  forerun world export --model run/model --out programs\n"
        "  forerun world export --model run/model --out programs --format torch onnx",
    )
    add_model_option(export)
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the programs")
    export.add_argument(
        "--format", nargs="+", choices=("torch", "onnx"), default=["torch"], help="kinds of files (default: torch)"
    )
    add_threads_option(export)
    add_json_option(export)
    export.set_defaults(action=_export)


def _export(args: argparse.Namespace) -> int:
    from forerun.worldmodels.jepa.checkpoint import load_model
    from forerun.worldmodels.jepa.export import export_model

    record = export_model(load_model(args.model)[0], args.out, formats=args.format)
    for name in (record["encoder"], *record["predictors"]):
        write_line(" ".join(str(args.out / f"{name}{suffix}") for suffix in record["suffixes"]))
    if args.json is not None:
        write_json(args.json, record)
    return 0
