"""A folder of images: one sub-folder per class, every picture of one size and one mode."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from landscape.errors import InputError
from landscape.loading import Say

ENDINGS = (
    ".png",
    ".jpg",
    ".jpeg",
    ".bmp",
    ".gif",
    ".webp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
)
KEEP_BYTES = 10**9  # a set above this size is read picture by picture, on every pass
# Pillow would hand other formats, such as PostScript, to programs outside.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")


class ImageFolder(Dataset[tuple[Tensor, Tensor]]):
    """Pictures with their class, opened when asked for.

    Attributes:
        paths: the files, class by class, sorted by name.
        targets: class indices, int64 (n,).
        classes: names of the classes in order.
    """

    def __init__(self, paths: Sequence[Path], targets: Tensor, classes: Sequence[str]) -> None:
        self.paths, self.targets, self.classes = list(paths), targets, list(classes)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return _read(self.paths[index]), self.targets[index]

    def rows(self, chosen: Tensor) -> "ImageFolder":
        """The same set with some of its pictures only."""
        paths = [self.paths[index] for index in chosen.tolist()]
        return ImageFolder(paths, self.targets[chosen], self.classes)


def find_images(folder: Path, say: Say) -> ImageFolder:
    """List the pictures of a folder; none is opened yet.

    Args:
        folder: it holds one folder per class; classes are numbered in the sorted order of their names.
        say: told the classes and what was left out.

    Raises:
        InputError: there are no folders of pictures in it, or one of them holds none.
    """
    shown = repr(str(folder))
    _require_pillow(shown)
    classes, others = [], 0
    loose = False
    for entry in _entries(folder):
        if entry.is_dir() and not entry.name.startswith("."):
            classes.append(entry)
        else:
            others += 1
            loose |= entry.suffix.lower() in ENDINGS
    if not classes:
        if (folder / "config.json").is_file():
            raise InputError(f"{shown} is the folder of a model, not data: give it as MODEL")
        raise InputError(
            f"{shown} holds {'pictures' if loose else 'nothing'} outside of class folders: put the pictures "
            "of every class into a folder of their own in it"
        )
    paths: list[Path] = []
    targets: list[int] = []
    for index, label in enumerate(classes):
        found = _entries(label)
        pictures = [
            path
            for path in found
            if path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.is_file()
        ]
        others += len(found) - len(pictures)
        if not pictures:
            raise InputError(
                f"the folder {label.name!r} in {shown} holds no picture ({', '.join(ENDINGS)}), and every "
                "folder is a class: remove it, or put its pictures there"
            )
        paths += pictures
        targets += [index] * len(pictures)
    names = [label.name for label in classes]
    listed = ", ".join(f"{i} {name}" for i, name in enumerate(names[:20]))
    listed += f" … ({len(names)})" if len(names) > 20 else ""
    say(f"classes of {shown}, numbered in sorted order: {listed}; pixels run from 0 to 1")
    if others:
        what = "file or folder that is" if others == 1 else "files or folders that are"
        say(f"left out {others} {what} no picture")
    return ImageFolder(paths, torch.tensor(targets), names)


def read_images(images: ImageFolder, say: Say) -> tuple[Tensor, Tensor] | ImageFolder:
    """Open the pictures: float32 (n, channels, height, width) from 0 to 1, and classes int64 (n,).

    Args:
        images: of `find_images`.
        say: told if the set is too large to be held in memory.

    Returns:
        Two tensors; the set itself, read picture by picture, if they would take more than 1 GB.

    Raises:
        InputError: a picture is damaged, too large, of another size or mode than the first, or in a mode
            other than greyscale and RGB.
    """
    first = images.paths[0]
    form = _form(first)
    for path in images.paths[1:]:
        if (other := _form(path)) != form:
            raise InputError(
                f"{str(first)!r} is {_shown(form)} and {str(path)!r} is {_shown(other)}: bring the "
                "pictures to one size and one mode"
            )
    width, height, mode = form
    shape = (len(images), 1 if mode == "L" else 3, height, width)
    if 4 * int(np.prod(shape, dtype=object)) > KEEP_BYTES:
        say(
            f"the {len(images)} pictures are too many to be held in memory: read again on every pass"
        )
        return images
    pixels = torch.empty(shape)
    for index, path in enumerate(images.paths):
        pixels[index] = _read(path)
    return pixels, images.targets.clone()


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError as error:
        raise InputError(f"{str(folder)!r} cannot be read ({error.strerror}): check it") from error


def _require_pillow(shown: str) -> None:
    try:
        import PIL  # noqa: F401  # asked for before a long listing
    except ImportError as error:
        raise InputError(
            f"{shown} is a folder of images, and Pillow, which reads them, is not installed; run: "
            "pip install pillow"
        ) from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The picture in a file, its pixels not yet read; every failure is a sentence with its name."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            # Pillow only warns of a picture of 90 million pixels and refuses one of 180 million.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=_FORMATS) as image:
                yield image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InputError(
            f"the picture {str(path)!r} unpacks to more than {Image.MAX_IMAGE_PIXELS:,} pixels: make it "
            "smaller, or leave it out"
        ) from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{str(path)!r} is no picture, despite its ending: replace it, or leave it out"
        ) from error
    except InputError:
        raise
    except Exception as error:  # damaged pictures fail in many ways
        reason = str(error).strip().split("\n")[0].removesuffix(".") or type(error).__name__
        raise InputError(
            f"the picture {str(path)!r} is damaged ({reason}): replace it, or leave it out"
        ) from error


def _form(path: Path) -> tuple[int, int, str]:
    """Width, height and mode of a picture, from its header."""
    with _opened(path) as image:
        if image.mode not in ("L", "RGB"):
            raise InputError(
                f"the picture {str(path)!r} is in mode {image.mode}: convert it to greyscale (L) or RGB"
            )
        if getattr(image, "is_animated", False) and image.format in ("GIF", "WEBP", "TIFF", "PNG"):
            raise InputError(
                f"the picture {str(path)!r} holds {image.n_frames} frames: save the one that is meant"
            )
        return (*image.size, image.mode)


def _shown(form: tuple[int, int, str]) -> str:
    width, height, mode = form
    return f"{width} × {height} {'greyscale' if mode == 'L' else 'RGB'}"


def _read(path: Path) -> Tensor:
    """One picture as float32 (channels, height, width) from 0 to 1."""
    with _opened(path) as image:
        pixels = np.array(image)
    if pixels.dtype != np.uint8:
        raise InputError(f"the picture {str(path)!r} does not hold bytes: convert it to 8 bits")
    values = torch.from_numpy(pixels)
    values = values[None] if values.ndim == 2 else values.permute(2, 0, 1)
    return values.float() / 255
