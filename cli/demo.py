"""`landscape demo`: train an embedded network and write it as a problem archive."""

from pathlib import Path
from typing import Annotated

import typer

from . import options


def demo(
    name: Annotated[
        str, typer.Argument(help="cnn, mlp, resnet, transformer or regression.")
    ] = "cnn",
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="Where to write the archive.")
    ] = Path("model.pt"),
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of weights and batches.")
    ] = 0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    debug: options.Debug = False,
) -> None:
    """Train a small network on real data that needs no download.

    The archive holds weights, data and loss, so that the next command needs no flags.

    | name | network | data |
    |---|---|---|
    | cnn | tanh CNN, 2,754 parameters | 8×8 digits |
    | mlp | two hidden layers | 8×8 digits |
    | resnet | ResNet-20 with BatchNorm | 5,000 MNIST images |
    | transformer | 4-layer character GPT | Python's own English documentation |
    | regression | small tanh network | diabetes |
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from landscape.demos.train import train
    from landscape.loading.archive import save_problem
    from landscape.numerals import duration

    from .output import console, require_folder, require_new

    require_folder(output)
    require_new(output, force)
    screen = console(stderr=True)
    columns = (
        TextColumn("training {task.fields[name]}"),
        BarColumn(),
        TextColumn("step {task.completed}/{task.total}, loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task("", name=name, loss=float("nan"))

        def show(step: int, total: int, loss: float) -> None:
            bar.update(task, completed=step, total=total, loss=loss)

        trained = train(name, seed=seed, progress=show)
    notes = {
        "demo": name,
        "seed": seed,
        "train_loss": trained.train_loss,
        "test_loss": trained.test_loss,
        "train_accuracy": trained.train_accuracy,
        "test_accuracy": trained.test_accuracy,
    }
    recipe = trained.demo
    save_problem(
        output,
        trained.model,
        factory=recipe.factory,
        arguments=recipe.arguments,
        data=recipe.data,
        loss=recipe.loss,
        limit=recipe.limit,
        notes=notes,
    )
    accuracy = (
        ""
        if trained.test_accuracy is None
        else f", held-out accuracy {100 * trained.test_accuracy:.1f} %"
    )
    parameters = sum(p.numel() for p in trained.model.parameters())
    print(
        f"{output}: {recipe.description}\n"
        f"  {parameters:,} parameters, {trained.steps:,} steps in {duration(trained.seconds)}\n"
        f"  loss {trained.train_loss:.4f} on the training data, {trained.test_loss:.4f} held out"
        f"{accuracy}\n"
        f"next: landscape spectrum {output}"
    )
