"""Write the table of second-order optimisers in the README from its saved runs."""

from typing import Any

from tables import load, table, write


def losses(report: dict[str, Any]) -> str:
    rows = []
    for found in sorted(report["summary"], key=lambda one: one["train_loss"]):
        edge = " (edge of the grid)" if found["at_the_edge"] else ""
        rows.append(
            [
                found["optimizer"],
                f"{found['rate']:g}{edge}",
                f"{found['train_loss']:.4f} ± {found['train_loss_se']:.4f}",
                f"{100 * found['test_accuracy']:.1f} ± {100 * found['test_accuracy_se']:.1f} %",
            ]
        )
    setting = report["setting"]
    grid = ", ".join(f"{rate:g}" for rate in setting["grid"])
    note = (
        f"ResNet-20 on 5,000 MNIST images, {setting['epochs']} epochs in batches of {setting['batch_size']}, "
        f"one-cycle schedule; peak rate by training loss on one seed among {grid}, mean ± standard error over "
        f"three others; torch {setting['torch']}; {setting['date'][:10]}. No second-order optimiser reached "
        "Adam's training loss here in as many epochs."
    )
    return table(["", "peak rate", "training loss", "held-out accuracy"], rows) + f"\n\n{note}"


def main() -> None:
    write("optimizers", losses(load("optimizers")))


if __name__ == "__main__":
    main()
