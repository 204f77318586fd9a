"""The surfaces that figures/surface.py draws, measured: two minutes on one core.

python figures/surface_data.py
"""

import copy
from pathlib import Path

import torch
from torch import nn

import landscape as ls
from landscape.demos import DEMOS
from landscape.demos.data import load_data
from landscape.demos.train import RECIPES, build_model, loss_value

DATA = Path(__file__).parent / "data"
DEMO = DEMOS["cnn"]
BATCH_SIZES = (16, 64, 512)
KEPT = 20  # checkpoints of the path


def trained(batch_size: int, keep: int = 0) -> tuple[nn.Module, list[nn.Module]]:
    """The cnn demo by its recipe but for the batch size, and checkpoints from the first step to the last."""
    recipe, (inputs, targets) = RECIPES[DEMO.name], load_data(DEMO.data)
    torch.manual_seed(0)
    model = build_model(DEMO).train()
    steps = recipe.epochs * -(-len(inputs) // batch_size)
    weights = [p for p in model.parameters() if p.ndim > 1]
    offsets = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": weights}, {"params": offsets, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=recipe.learning_rate, total_steps=steps
    )
    moments = {round(i * steps / (keep - 1)) for i in range(keep)} if keep else set()
    checkpoints, step = [copy.deepcopy(model)] if keep else [], 0
    for _ in range(recipe.epochs):
        for rows in torch.randperm(len(inputs)).split(batch_size):
            loss = loss_value(DEMO.loss, model(inputs[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if step in moments:
                checkpoints.append(copy.deepcopy(model))
    return model.eval(), checkpoints


def main() -> None:
    data = load_data(DEMO.data)
    for batch_size in BATCH_SIZES:
        model, path = trained(batch_size, keep=KEPT if batch_size == 64 else 0)
        problem = ls.Problem(model, DEMO.loss, data)
        if path:
            ls.surface(problem, points=51).save(DATA / "surface_hessian.json")
            steps = [f"{60 * i / (KEPT - 1):.0f}" for i in range(KEPT)]
            axes = ls.trajectory_axes(problem, path, names=steps)
            ls.surface(problem, axes, points=51).save(DATA / "surface_trajectory.json")
        found = ls.surface(problem, points=31, extent=1.0)
        found.save(DATA / f"surface_batch_{batch_size}.json")
        print(batch_size, found.center, [axis.eigenvalue for axis in found.axes])


if __name__ == "__main__":
    main()
