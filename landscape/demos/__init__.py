"""Problems that need no download: the table of embedded models, each with its real data and its loss."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Demo:
    """One embedded problem, as names only, so that listing the demos loads neither torch nor data.

    Attributes:
        name: What it is called on the command line.
        description: One line for people.
        factory: `"module:function"` that returns a fresh, untrained `torch.nn.Module`.
        data: Training data, a name for `landscape.demos.data.load_data`.
        test_data: Held-out data of the same kind.
        loss: `"cross_entropy"`, `"token_cross_entropy"` or `"mse"`, averaged over samples (tokens).
        arguments: Keyword arguments of the factory. Default: none.
        limit: How many training samples, from the first, the curvature is measured on by default;
            `None`, the default, means all of them.
    """

    name: str
    description: str
    factory: str
    data: str
    test_data: str
    loss: str
    arguments: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None


DEMOS: dict[str, Demo] = {
    demo.name: demo
    for demo in (
        Demo(
            name="cnn",
            description="tanh convolutional network, 2,754 parameters, on 8x8 digits",
            factory="landscape.demos.models:cnn",
            data="digits:train",
            test_data="digits:test",
            loss="cross_entropy",
        ),
        Demo(
            name="mlp",
            description="tanh network with two hidden layers, 6,570 parameters, on 8x8 digits",
            factory="landscape.demos.models:mlp",
            data="digits:train",
            test_data="digits:test",
            loss="cross_entropy",
        ),
        Demo(
            name="resnet",
            description="ResNet-20 with BatchNorm, 269,434 parameters, on 5,000 MNIST images",
            factory="landscape.demos.models:resnet20",
            data="mnist5k:train",
            test_data="mnist5k:test",
            loss="cross_entropy",
            limit=512,
        ),
        Demo(
            name="transformer",
            description="4-layer character GPT, 813,824 parameters, on Python's own documentation",
            factory="landscape.demos.models:gpt",
            data="text:train",
            test_data="text:test",
            loss="token_cross_entropy",
            limit=128,
        ),
        Demo(
            name="regression",
            description="tanh network, 1,441 parameters, least squares on the diabetes study",
            factory="landscape.demos.models:regression",
            data="diabetes:train",
            test_data="diabetes:test",
            loss="mse",
        ),
    )
}
"""Every demo by its name; `cnn` is the default one."""
