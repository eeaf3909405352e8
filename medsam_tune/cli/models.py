"""Commands without data of the user: download, info, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medsam_tune.bundle import bundle_folder
from medsam_tune.cli.next_steps import SHIPPED, after_demo, after_download
from medsam_tune.cli.options import METHODS, MODELS, refuse_unknown


def download(
    name: Annotated[str, typer.Argument(help="One of vit_t, vit_b, vit_l, vit_h, medsam.")],
    output: Annotated[Path, typer.Option(help="Folder for the file.")] = Path("checkpoints"),
    bundle: Annotated[str, typer.Option(help="Name of a bundle, or its folder.")] = SHIPPED,
) -> None:
    """Download a published checkpoint and check its hash. No other command uses the network."""
    from medsam_tune import downloads

    entry = downloads.choose(name, bundle_folder(bundle))
    path, kept = downloads.download(entry, output)
    typer.echo(f"{path}: {'was there' if kept else 'fetched'}, its {entry.hash_type} as published.")
    after_download(path, entry.options, bundle)


def info(
    model: Annotated[str | None, typer.Option(help="This model only.")] = None,
    method: Annotated[
        str | None, typer.Option(help="This method only. With --model, list its tensors too.")
    ] = None,
) -> None:
    """List how many parameters each method trains, and their share of the model."""
    if model is not None:
        refuse_unknown("model", model, MODELS)
    if method is not None:
        refuse_unknown("method", method, METHODS)
    from medsam_tune.methods.parameters import trained_parameters

    typer.echo(f"{'model':<10} {'method':<8} {'trained':>12} {'of':>12} {'share':>8}")
    for name in [model] if model else MODELS:
        for each in [method] if method else METHODS:
            sizes, total = trained_parameters(name, each)
            trained = sum(sizes.values())
            typer.echo(f"{name:<10} {each:<8} {trained:>12,} {total:>12,} {trained / total:>8.2%}")
            if model and method:
                for key, size in sizes.items():
                    typer.echo(f"  {key} {size:,}")


def demo(
    output: Annotated[Path, typer.Option(help="Folder for everything it writes.")] = Path("demo"),
    method: Annotated[str, typer.Option(help=f"What to train: {', '.join(METHODS)}.")] = "lora",
    bundle: Annotated[
        str, typer.Option(help="volume: CT scans, by Dice; image: aerial images, by IoU.")
    ] = "volume",
) -> None:
    """Tune on made-up scans. Compare scores before and after on held-out ones, with pictures."""
    from medsam_tune.demo import run_demo

    text = run_demo(output, method, bundle)
    typer.echo(f"\n{text}")
    after_demo()
