"""The networks of the demos: five plain, twice-differentiable modules without randomness."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def cnn(*, channels: tuple[int, int, int] = (8, 12, 12), classes: int = 10) -> nn.Module:
    """A tanh convolutional network for 8x8 images with one channel.

    Three 3x3 convolutions, the last two with stride 2, then one linear layer.

    Args:
        channels: Output channels of the convolutions. Default: (8, 12, 12), 2,754 parameters.
        classes: Number of classes. Default: 10.

    Returns:
        A fresh module that maps (batch, 1, 8, 8) to logits (batch, classes).

    Example:
        >>> cnn()(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """
    first, second, third = channels
    return nn.Sequential(
        nn.Conv2d(1, first, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(first, second, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Conv2d(second, third, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(third * 2 * 2, classes),
    )


def mlp(*, inputs: int = 64, hidden: tuple[int, ...] = (64, 32), classes: int = 10) -> nn.Module:
    """A tanh network for classification that flattens its own input.

    Args:
        inputs: Numbers per sample. Default: 64, an 8x8 image.
        hidden: Widths of the hidden layers. Default: (64, 32), 6,570 parameters.
        classes: Number of classes. Default: 10.

    Returns:
        A fresh module that maps (batch, ...) with `inputs` numbers per row to (batch, classes).
    """
    return nn.Sequential(nn.Flatten(), *_tanh_layers((inputs, *hidden, classes)))


def regression(
    *, inputs: int = 10, hidden: tuple[int, ...] = (32, 32), outputs: int = 1
) -> nn.Module:
    """A tanh network for least squares.

    Args:
        inputs: Features per sample. Default: 10.
        hidden: Widths of the hidden layers. Default: (32, 32), 1,441 parameters.
        outputs: Predicted values per sample. Default: 1.

    Returns:
        A fresh module that maps (batch, inputs) to (batch, outputs).
    """
    return nn.Sequential(*_tanh_layers((inputs, *hidden, outputs)))


def _tanh_layers(widths: tuple[int, ...]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.Tanh()]
    return layers[:-1]


def resnet20(
    *, widths: tuple[int, int, int] = (16, 32, 64), channels: int = 1, classes: int = 10
) -> nn.Module:
    """ResNet-20 with BatchNorm in its CIFAR layout, with parameter-free shortcuts (option A).

    He, Zhang, Ren and Sun (2016), "Deep residual learning for image recognition",
    arXiv:1512.03385, section 4.2: three stages of three blocks, global average pooling.

    Args:
        widths: Channels of the three stages. Default: (16, 32, 64), 269,434 parameters.
        channels: Channels of the images. Default: 1.
        classes: Number of classes. Default: 10.

    Returns:
        A fresh module that maps (batch, channels, height, width) to logits (batch, classes).
    """
    return ResNet(widths, blocks=3, channels=channels, classes=classes)


class ResNet(nn.Module):
    """Three stages of residual blocks between a 3x3 convolution and a linear layer."""

    def __init__(
        self, widths: tuple[int, int, int], *, blocks: int, channels: int, classes: int
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        stages: list[nn.Module] = []
        before = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                stages.append(ResidualBlock(before, width, stride=2 if stage and not block else 1))
                before = width
        self.blocks = nn.Sequential(*stages)
        self.head = nn.Linear(before, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        features = self.blocks(F.relu(self.norm(self.stem(images))))
        return self.head(features.mean(dim=(2, 3)))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut that subsamples and pads with zero channels."""

    def __init__(self, before: int, after: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.stride = stride
        self.new_channels = after - before

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x[:, :, :: self.stride, :: self.stride]
        shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, self.new_channels))
        hidden = F.relu(self.norm1(self.conv1(x)))
        return F.relu(shortcut + self.norm2(self.conv2(hidden)))


def gpt(
    *, vocabulary: int = 96, context: int = 64, width: int = 128, heads: int = 4, layers: int = 4
) -> nn.Module:
    """A pre-norm character GPT whose output layer shares the weights of its token embedding.

    Radford et al. (2019), "Language models are unsupervised multitask learners". A Hessian needs
    the math kernel of attention (`torch.nn.attention.sdpa_kernel`): fused ones differentiate once.

    Args:
        vocabulary: Number of tokens. Default: 96.
        context: Longest sequence, in tokens. Default: 64.
        width: Width of the residual stream, a multiple of `heads`. Default: 128.
        heads: Attention heads. Default: 4.
        layers: Transformer blocks. Default: 4, 813,824 parameters.

    Returns:
        A fresh module that maps int64 tokens (batch, time) to logits (batch, time, vocabulary).

    Example:
        >>> gpt(layers=1)(torch.zeros(2, 7, dtype=torch.int64)).shape
        torch.Size([2, 7, 96])
    """
    return Gpt(vocabulary=vocabulary, context=context, width=width, heads=heads, layers=layers)


class Gpt(nn.Module):
    """Token and position embeddings, attention blocks, and a head tied to the token embedding."""

    def __init__(
        self, *, vocabulary: int, context: int, width: int, heads: int, layers: int
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(AttentionBlock(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
        for block in self.modules():
            if isinstance(block, AttentionBlock):  # 2·layers branches add up to the variance of one
                for projection in (block.project, block.contract):
                    nn.init.normal_(projection.weight, std=0.02 / math.sqrt(2 * layers))
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        hidden = self.tokens(tokens) + self.positions(positions)
        return self.head(self.norm(self.blocks(hidden)))


class AttentionBlock(nn.Module):
    """Causal self-attention, then a GELU network four times as wide, each added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.attend = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.project(self._attention(self.norm1(x)))
        return x + self.contract(F.gelu(self.expand(self.norm2(x))))

    def _attention(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        # (batch, time, 3·width) → three of (batch, heads, time, width / heads)
        shape = (batch, time, 3, self.heads, width // self.heads)
        query, key, value = self.attend(x).view(shape).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return mixed.transpose(1, 2).reshape(batch, time, width)
