"""Which loss do the data suggest? Told from the first batch, without disturbing anything."""

from typing import Any

from torch.utils.data import Dataset, IterableDataset

from landscape import batches
from landscape.errors import InputError
from landscape.loading.subset import target_of
from landscape.undisturbed import preserved_randomness


def infer_loss(data: Any) -> str:
    """The loss that the targets suggest: indices mean classification, numbers regression.

    Args:
        data: any data a `Problem` takes; only the first batch is read, and no random state moves.

    Returns:
        "mse" for targets of floating point; "cross_entropy" for class indices, one per sample or one per
        pixel of an image; "token_cross_entropy" for class indices of sequences.

    Raises:
        InputError: the data are empty, or there is no target tensor to look at.
    """
    batch = _first_batch(data)
    target = target_of(batch)
    if target is None:
        raise InputError("no loss was given and the data do not show one: pass --loss (loss=)")
    if target.is_floating_point():
        return "mse"
    if target.ndim <= 1:
        return "cross_entropy"
    first = next(tensor for _, tensor in batches.named_tensors(batch))
    pixels = first.is_floating_point() and first.ndim >= 4 and first.shape[2:] == target.shape[1:]
    return "cross_entropy" if pixels else "token_cross_entropy"


def _first_batch(data: Any) -> Any:
    """The first batch of any data a `Problem` takes; random states and a loader's iterator stay."""
    unbatched = isinstance(data, Dataset) and not isinstance(data, IterableDataset)
    source = batches.as_batches(data, 1 if unbatched else None, pairs=True)
    nothing = object()
    with preserved_randomness(0, batches.generators(source)):
        batch = next(iter(batches.read(source)), nothing)
    if batch is nothing:
        raise InputError("the data are empty: there is no batch to measure the loss on")
    return batch
