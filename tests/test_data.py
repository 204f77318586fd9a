"""Data from files, folders and callables: what opens as what, what is refused, and that nothing runs."""

import itertools
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
)

import landscape as ls
from landscape.batches import as_batches, read, row_count
from landscape.demos.data import VOCABULARY
from landscape.loading import images as images_module
from landscape.loading.arrays import read_npz
from landscape.loading.data import read_data
from landscape.loading.glance import infer_loss
from landscape.loading.subset import take

Say = list[str]


def _samples(data: Any) -> int:
    return sum(row_count(batch) for batch in read(as_batches(data, None, pairs=True)))


class Touch:
    """A pickle that would write a file when opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.path}",))


def png(path: Path, size: tuple[int, int] = (5, 4), mode: str = "L", level: int = 0) -> None:
    """A picture of one level; the first pixel is white."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new(mode, size, level if mode == "L" else (level,) * len(mode))
    picture.putpixel((0, 0), 255 if mode == "L" else (255,) * len(mode))
    picture.save(path)


def npy_header(shape: str, dtype: str = "<f8") -> bytes:
    """The beginning of an .npy member that declares a shape, whatever follows."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def zipped(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


# One row per kind of data: what opens, and with which sentence the rest is refused.

IRIS = (
    "length,width,species\n5.1,3.5,setosa\n6.2,2.9,virginica\n4.9,3.0,setosa\n5.6,2.5,versicolor\n"
)
X, Y = torch.arange(12.0).reshape(6, 2), torch.tensor([0, 1, 2, 0, 1, 2])


def savez(path: Path, **arrays: Any) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)


def parquet(path: Path, **columns: Any) -> None:
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(arrow.table(columns), path)


def picture_folder(path: Path) -> None:
    for index, label in enumerate(("ant", "ant", "bee")):
        png(path / label / f"{index}.png")


def safetensors(path: Path, **tensors: Tensor) -> None:
    from safetensors.torch import save_file

    save_file(tensors, path)


def bomb(path: Path) -> None:
    """A picture of 10000 × 10000 pixels in some ten kilobytes: Pillow's alarm is at 90 million."""
    from PIL import Image

    picture_folder(path)
    Image.new("1", (10_000, 10_000)).save(path / "ant" / "bomb.png")


def postscript(path: Path) -> None:
    """A picture that Pillow would hand to Ghostscript, which runs programs."""
    from PIL import Image

    Image.new("L", (5, 4)).save(path, "EPS")


def animated(path: Path) -> None:
    from PIL import Image

    picture_folder(path)
    frames = [Image.new("L", (5, 4), level) for level in (0, 99)]
    frames[0].save(path / "bee" / "z.tiff", save_all=True, append_images=frames[1:])


def compressed(path: Path) -> None:
    torch.save((X, Y), path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def half(path: Path, make: Callable[[Path], None]) -> None:
    make(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def unnamed(path: Path) -> None:
    savez(path, a=np.ones((3, 3)), b=np.ones((3, 3)))


KINDS: list[tuple[str, str, Callable[[Path], Any], dict[str, Any], str]] = [
    (".npz, inputs and targets", "d.npz", lambda p: savez(p, x=X, y=Y), {}, "opens"),
    (".npz under another ending", "d.dat", lambda p: savez(p, x=X, y=Y), {}, "opens"),
    (".pt, tuple of tensors", "d.pt", lambda p: torch.save((X, Y), p), {}, "opens"),
    (".pt, dictionary of tensors", "d.pt", lambda p: torch.save({"x": X, "y": Y}, p), {}, "opens"),
    (
        ".pt in the format before torch 1.6",
        "d.pt",
        lambda p: torch.save([X, Y], p, _use_new_zipfile_serialization=False),
        {},
        "opens",
    ),
    (".safetensors", "d.safetensors", lambda p: safetensors(p, inputs=X, targets=Y), {}, "opens"),
    (
        ".safetensors by keyword",
        "d.safetensors",
        lambda p: safetensors(p, input_ids=Y[:, None].clone(), labels=Y),
        {},
        "opens",
    ),
    (
        "CSV, label column named by --target",
        "d.csv",
        lambda p: p.write_text(IRIS),
        {"target": "species"},
        "opens",
    ),
    ("CSV, column called y", "d.csv", lambda p: p.write_text("a,y\n1,2.5\n2,3\n"), {}, "opens"),
    ("TSV", "d.tsv", lambda p: p.write_text("a\ty\n1\t2\n2\t3\n"), {}, "opens"),
    ("Parquet", "d.parquet", lambda p: parquet(p, a=[1, 2], y=["no", "yes"]), {}, "opens"),
    ("folder of images", "pictures", picture_folder, {}, "opens"),
    ("text, by characters", "d.txt", lambda p: p.write_text("to be or not " * 30), {}, "opens"),
    (
        "text, ASCII",
        "d.txt",
        lambda p: p.write_text("to be " * 30),
        {"tokenizer": "ascii", "context": 8},
        "opens",
    ),
    ("missing file", "d.npz", lambda p: None, {}, "there is no file"),
    ("empty file", "d.npz", lambda p: p.touch(), {}, "is empty: copy or save it again"),
    (
        "Git LFS pointer",
        "d.npz",
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        {},
        "run git lfs pull",
    ),
    ("gzip", "d.csv", lambda p: p.write_bytes(b"\x1f\x8b\x08" + bytes(20)), {}, "unpack it first"),
    ("single .npy", "d.npy", lambda p: np.save(p, np.ones(3)), {}, "is a single NumPy array"),
    ("single picture", "d.png", png, {}, "give the folder that holds one folder of pictures"),
    ("other zip", "d.zip", lambda p: zipfile.ZipFile(p, "w").close(), {}, "without arrays"),
    ("unknown binary", "d.bin", lambda p: p.write_bytes(bytes(range(9))), {}, "of an unknown kind"),
    ("ending without content", "d.npz", lambda p: p.write_text("words"), {}, "is no .npz file"),
    (
        "weights as data",
        "m.pt",
        lambda p: torch.save(nn.Linear(2, 1).state_dict(), p),
        {},
        "is a torch model, not data: give it as MODEL",
    ),
    (
        "weights as data, safetensors",
        "m.safetensors",
        lambda p: safetensors(p, **nn.Linear(2, 1).state_dict()),
        {},
        "is a torch model, not data: give it as MODEL",
    ),
    (
        "TorchScript as data",
        "m.pt",
        lambda p: torch.jit.script(nn.Linear(2, 1)).save(str(p)),
        {},
        "is a TorchScript model, not data",
    ),
    (".npz without telling names", "d.npz", unnamed, {}, "name two of them 'inputs' and 'targets'"),
    (
        ".npz of words",
        "d.npz",
        lambda p: savez(p, x=np.array(["a", "b"]), y=Y[:2]),
        {},
        "has dtype <U1: numbers of at most 64 bits are needed",
    ),
    (
        ".npz of different lengths",
        "d.npz",
        lambda p: savez(p, x=X, y=Y[:4]),
        {},
        r"differ in length \('x' 6, 'y' 4\)",
    ),
    (".npz without rows", "d.npz", lambda p: savez(p, x=X[:0], y=Y[:0]), {}, "have no rows"),
    ("truncated .npz", "d.npz", lambda p: half(p, lambda q: savez(q, x=X, y=Y)), {}, "truncated"),
    (
        "truncated .pt",
        "d.pt",
        lambda p: half(p, lambda q: torch.save((X, Y), q)),
        {},
        "truncated",
    ),
    (
        "truncated .pt in the format before torch 1.6",
        "d.pt",
        lambda p: half(p, lambda q: torch.save((X, Y), q, _use_new_zipfile_serialization=False)),
        {},
        "is damaged",
    ),
    (
        "truncated .safetensors",
        "d.safetensors",
        lambda p: half(p, lambda q: safetensors(q, inputs=X.repeat(99, 1), targets=Y)),
        {},
        "cannot be read as a safetensors file",
    ),
    (
        "safetensors with an absurd header",
        "d.safetensors",
        lambda p: p.write_bytes(struct.pack("<Q", 2**31) + b"{}"),
        {},
        "its header should take 2,147,483,648 bytes",
    ),
    (".pt of one tensor", "d.pt", lambda p: torch.save(X, p), {}, "holds a Tensor: save a tuple"),
    (
        ".pt of other things",
        "d.pt",
        lambda p: torch.save({"x": X, "y": "no"}, p),
        {},
        "holds a str under 'y', not a tensor",
    ),
    (
        ".pt with an expanded tensor",
        "d.pt",
        lambda p: torch.save((torch.zeros(1).expand(10**12), Y), p),
        {},
        "an expanded tensor",
    ),
    (
        ".pt with a sparse tensor",
        "d.pt",
        lambda p: torch.save((torch.eye(6).to_sparse(), Y), p),
        {},
        "save a dense tensor",
    ),
    (
        ".pt with complex numbers",
        "d.pt",
        lambda p: torch.save((X + 0j, Y), p),
        {},
        "is strided, complex64: save a dense tensor of real numbers",
    ),
    (
        ".pt without values",
        "d.pt",
        lambda p: torch.save((X.to("meta"), Y), p),
        {},
        r"has no values \(device 'meta'\)",
    ),
    ("compressed .pt", "d.pt", compressed, {}, "is compressed, which torch never does"),
    (
        "CSV with a stray quote",
        "d.csv",
        lambda p: p.write_text('a,y\n"1"2,3\n'),
        {},
        "is no table of separated values",
    ),
    (
        "CSV without --target",
        "d.csv",
        lambda p: p.write_text(IRIS),
        {},
        "no column is known as the target: name one with --target .*'length', 'width', 'species'",
    ),
    (
        "CSV, typo in --target",
        "d.csv",
        lambda p: p.write_text(IRIS),
        {"target": "specie"},
        "no column 'specie': did you mean 'species'",
    ),
    (
        "CSV with two target columns",
        "d.csv",
        lambda p: p.write_text("a,y,label\n1,2,3\n"),
        {},
        "'y' and 'label' may both be the target",
    ),
    (
        "CSV with words among the features",
        "d.csv",
        lambda p: p.write_text("a,b,y\n1,red,2\n2,blue,3\n"),
        {},
        "the column 'b' of .* does not hold numbers",
    ),
    (
        "CSV with missing values",
        "d.csv",
        lambda p: p.write_text("a,b,y\n1,,2\n2,NA,3\n3,4,5\n"),
        {},
        "the column 'b' of .* has 2 missing values",
    ),
    (
        "CSV with missing targets",
        "d.csv",
        lambda p: p.write_text("a,y\n1,2\n2,?\n"),
        {},
        "the column 'y' of .* has 1 missing value:",
    ),
    ("CSV, ragged", "d.csv", lambda p: p.write_text("a,y\n1,2\n1,2,3\n"), {}, "has 3 values for 2"),
    ("CSV of numbers only", "d.csv", lambda p: p.write_text("1,2\n3,4\n"), {}, "add a line of col"),
    (
        "CSV headed by data",
        "d.csv",
        lambda p: p.write_text("5.1,3.5,setosa\n"),
        {"target": "setosa"},
        r"first line of .* holds numbers \(5.1, 3.5\)",
    ),
    ("CSV without rows", "d.csv", lambda p: p.write_text("a,y\n"), {}, "but no rows"),
    (
        "CSV separated by semicolons",
        "d.csv",
        lambda p: p.write_text("a;y\n1;2\n"),
        {},
        "separated by semicolons",
    ),
    (
        "CSV with equal columns",
        "d.csv",
        lambda p: p.write_text("a,a,y\n1,2,3\n"),
        {},
        "two columns",
    ),
    ("CSV out of range", "d.csv", lambda p: p.write_text("a,y\n1e300,1\n"), {}, "range of float32"),
    ("CSV in Latin 1", "d.csv", lambda p: p.write_bytes(b"a,y\n\xe9,1\n"), {}, "is not UTF-8 text"),
    (
        "CSV of one endless line",
        "d.csv",
        lambda p: p.write_bytes(b"1" * 2**23),
        {},
        "a line of more than",
    ),
    (
        "CSV with an unclosed quote",
        "d.csv",
        lambda p: p.write_text('a,y\n"1,2\n' + "3,4\n" * 99_999),
        {},
        "is no table of separated values",
    ),
    (
        "CSV with names as targets",
        "d.csv",
        lambda p: p.write_text("a,y\n" + "".join(f"{i},name{i}\n" for i in range(300))),
        {},
        "has 300 different words in 300 rows",
    ),
    (
        "Parquet with words among the features",
        "d.parquet",
        lambda p: parquet(p, a=["red", "blue"], y=[1, 2]),
        {},
        "the column 'a' of .* does not hold numbers",
    ),
    (
        "Parquet with missing values",
        "d.parquet",
        lambda p: parquet(p, a=[1.0, None], y=[1, 2]),
        {},
        "the column 'a' of .* has 1 missing value:",
    ),
    (
        "Parquet with missing targets",
        "d.parquet",
        lambda p: parquet(p, a=[1, 2, 3], y=["no", None, None]),
        {},
        "the column 'y' of .* has 2 missing values",
    ),
    (
        "Parquet with lists as targets",
        "d.parquet",
        lambda p: parquet(p, a=[1, 2], y=[[1], [2]]),
        {},
        "holds values of type list",
    ),
    (
        "truncated Parquet",
        "d.parquet",
        lambda p: half(p, lambda q: parquet(q, a=[1, 2], y=[1, 2])),
        {},
        "is a damaged Parquet table",
    ),
    (
        "images of two sizes",
        "pictures",
        lambda p: (picture_folder(p), png(p / "bee" / "z.png", (6, 4))),
        {},
        r"0.png' is 5 × 4 greyscale and '.*z.png' is 6 × 4 greyscale",
    ),
    (
        "images of two modes",
        "pictures",
        lambda p: (picture_folder(p), png(p / "bee" / "z.png", mode="RGB")),
        {},
        "is 5 × 4 greyscale and '.*z.png' is 5 × 4 RGB",
    ),
    (
        "image with transparency",
        "pictures",
        lambda p: png(p / "ant" / "0.png", mode="RGBA"),
        {},
        "is in mode RGBA: convert it",
    ),
    ("image with frames", "pictures", animated, {}, "holds 2 frames: save the one that is meant"),
    ("image bomb", "pictures", bomb, {}, "bomb.png' unpacks to more than .* pixels"),
    (
        "truncated image",
        "pictures",
        lambda p: (
            picture_folder(p),
            (p / "bee" / "z.png").write_bytes((p / "ant" / "0.png").read_bytes()[:44]),
        ),
        {},
        "z.png' is damaged",
    ),
    (
        "image that is none",
        "pictures",
        lambda p: (picture_folder(p), postscript(p / "bee" / "z.png")),
        {},
        "z.png' is no picture, despite its ending",
    ),
    (
        "images without class folders",
        "pictures",
        lambda p: png(p / "0.png"),
        {},
        "holds pictures outside of class folders",
    ),
    (
        "empty class folder",
        "pictures",
        lambda p: (picture_folder(p), (p / "cow").mkdir()),
        {},
        "the folder 'cow' in .* holds no picture",
    ),
    ("text in Latin 1", "d.txt", lambda p: p.write_bytes(b"caf\xe9 " * 99), {}, "is neither UTF-8"),
    (
        "text shorter than one window",
        "d.txt",
        lambda p: p.write_text("short"),
        {},
        r"has 5 tokens, and a window takes 65",
    ),
    (
        "text without its tokenizer",
        "d.txt",
        lambda p: p.write_text("to be " * 30),
        {"tokenizer": "nowhere"},
        "there is no tokenizer 'nowhere'",
    ),
    (
        "text, context 0",
        "d.txt",
        lambda p: p.write_text("to be " * 30),
        {"context": 0},
        "the context is 0 tokens",
    ),
    (
        "--target for what is no table",
        "d.npz",
        lambda p: savez(p, x=X, y=Y),
        {"target": "y"},
        "--target y is about the label column of a table, and .* is an .npz file: leave --target out",
    ),
    (
        "--tokenizer for a table",
        "d.csv",
        lambda p: p.write_text(IRIS),
        {"tokenizer": "ascii"},
        "--tokenizer ascii is about the tokens of a text",
    ),
]


@pytest.mark.parametrize(
    ("kind", "name", "make", "options", "outcome"), KINDS, ids=[row[0] for row in KINDS]
)
def test_every_kind_of_data_opens_or_is_refused_in_a_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record: Callable[..., None],
    kind: str,
    name: str,
    make: Callable[[Path], Any],
    options: dict[str, Any],
    outcome: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path(name))
    if outcome == "opens":
        data = read_data(name, **options)
        assert _samples(data)
        record("data", kind=kind, outcome="opens")
        return
    with pytest.raises(ls.InputError, match=outcome) as error:
        read_data(name, **options)
    sentence = str(error.value)
    assert "\n" not in sentence
    record("data", kind=kind, outcome=sentence)


# Nothing in a file runs, and nothing exhausts the memory.


def test_no_pickle_runs_from_any_kind_of_file(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    evil = np.array([Touch(witness)], dtype=object)
    np.savez(tmp_path / "objects.npz", inputs=evil, targets=evil)
    torch.save([Touch(witness), Y], tmp_path / "list.pt")
    torch.save({"x": X, "y": Touch(witness)}, tmp_path / "dict.pt")
    torch.save([Touch(witness)], tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.pt").write_bytes(pickle.dumps([Touch(witness), Y]))
    (tmp_path / "renamed.csv").write_bytes(pickle.dumps(Touch(witness)))
    # A header that calls a pickle numbers, and one that calls numbers objects.
    pickled = pickle.dumps(evil)
    zipped(tmp_path / "member.npz", x=npy_header("(1,)", "|O") + pickled, y=npy_header("(1,)"))
    zipped(tmp_path / "bytes.npz", x=npy_header(f"({len(pickled)},)", "|u1") + pickled, y=b"")
    code = f"__import__('os').system('touch {witness}')"
    zipped(tmp_path / "header.npz", x=npy_header(f"({code},)"), y=npy_header("(1,)"))
    (tmp_path / "words.csv").write_text(f"a,y\n{code},1\n=cmd,2\n")
    files = sorted(path for path in tmp_path.iterdir())
    assert len(files) == 10
    for path in files:
        with pytest.raises(ls.InputError) as error:
            read_data(str(path))
        assert "\n" not in str(error.value)
        assert not witness.exists(), path.name


def test_a_pickle_is_refused_with_what_to_save_instead(tmp_path: Path) -> None:
    torch.save(TensorDataset(X, Y), tmp_path / "d.pt")
    with pytest.raises(ls.InputError, match=r"would run code: save the tensors themselves"):
        read_data(str(tmp_path / "d.pt"))
    evil = np.array([{}], dtype=object)
    np.savez(tmp_path / "d.npz", inputs=evil, targets=evil)
    with pytest.raises(ls.InputError, match="array 'inputs' .* cannot be read without pickle"):
        read_data(str(tmp_path / "d.npz"))


@pytest.mark.parametrize(
    "shape", ["(10**15,)", "(1000000000000000,)", "(-1,)", "(2, 3)", "(4294967296, 4294967296)"]
)
def test_shapes_that_do_not_fit_an_array_are_refused_before_memory_is_taken(
    tmp_path: Path, shape: str
) -> None:
    content = npy_header(shape) + bytes(8)
    path = zipped(tmp_path / "d.npz", x=content, y=npy_header("(1,)") + bytes(8))
    with pytest.raises(ls.InputError, match="does not fit the 8 bytes|is damaged"):
        read_data(str(path))


def test_a_changed_byte_in_an_npz_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, x=np.full((50, 2), 7.0), y=np.zeros(50))
    content = bytearray(path.read_bytes())
    place = content.index(struct.pack("<d", 7.0) * 2)
    content[place + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ls.InputError, match="is damaged .*CRC"):
        read_data(str(path))


def test_a_member_shorter_than_the_directory_says_is_noticed(tmp_path: Path) -> None:
    content, whole = npy_header("(100,)") + bytes(8), npy_header("(100,)") + bytes(800)
    path = zipped(tmp_path / "d.npz", x=content, y=npy_header("(1,)") + bytes(8))
    sizes = [len(part).to_bytes(4, "little") for part in (content, whole)]
    assert (
        path.read_bytes().count(sizes[0]) == 4
    )  # of two members, in their headers and the directory
    path.write_bytes(path.read_bytes().replace(*sizes))
    with pytest.raises(ls.InputError, match="array 'x' of .* is truncated"):
        read_data(str(path))


def test_changed_numbers_in_the_footer_of_parquet_end_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    parquet(path, a=np.zeros(1000), y=np.zeros(1000))
    content = path.read_bytes()
    # 1000 and 8191 as the footer writes a whole number after the mark of its field.
    written, changed = b"\x16\xd0\x0f", b"\x16\xfe\x7f"
    places = [place for place in range(len(content)) if content.startswith(written, place)]
    sentences = []
    for place in places:
        path.write_bytes(content[:place] + changed + content[place + 3 :])
        try:  # some of the numbers say what is known anyway
            inputs, targets = read_data(str(path))
            assert inputs.tolist() == targets.tolist() == [[0.0]] * 1000
        except ls.InputError as error:
            sentences.append(str(error))
    assert len(places) == 4 and any("1000 rows, 8191 declared" in s for s in sentences)


def test_bombs_end_in_a_sentence_with_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    zeros = npy_header("(5242880,)") + bytes(8 * 5242880)  # 40 MB in 40 kB
    zipped(tmp_path / "bomb.npz", x=zeros, y=zeros)
    zipped(
        tmp_path / "shape.npz", x=npy_header("(1125899906842624,)") + bytes(2**20), y=zeros[:500]
    )
    # A million equal rows in a few kilobytes.
    table = arrow.table({"a": np.zeros(2**20), "y": np.zeros(2**20)})
    with pyarrow.parquet.ParquetWriter(
        tmp_path / "rows.parquet", table.schema, compression="zstd"
    ) as writer:
        writer.write_table(table)
    with (tmp_path / "endless.txt").open("wb") as file:
        file.write(b"a" * 5000)
        file.truncate(10**11)  # takes no space on the disk
    with (tmp_path / "endless.csv").open("wb") as file:
        file.write(b"a,y\n")
        file.truncate(10**11)
    script = (
        "import sys, resource, landscape.loading.data as d; from landscape import InputError\n"
        "import pyarrow.parquet, landscape.loading.parquet as p, landscape.loading.container as c\n"
        "from landscape.memory import peak_bytes\n"
        "before = peak_bytes()\n"
        "p.available_bytes = c.available_bytes = lambda: 2**24\n"
        "for name in sys.argv[1:]:\n"
        "    try: d.read_data(name); print('opened', name)\n"
        "    except InputError as error: print(error)\n"
        "print(peak_bytes() - before)\n"
    )
    names = ["bomb.npz", "shape.npz", "rows.parquet", "endless.txt", "endless.csv"]
    done = subprocess.run(
        [sys.executable, "-c", script, *names],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    *sentences, taken = done.stdout.strip().split("\n")
    assert len(sentences) == 5 and "opened" not in done.stdout, sentences
    assert "unpacks to 84 MB, more than half of the free memory" in sentences[0]
    assert "declares the shape (1125899906842624,)" in sentences[1]
    assert "(1048576 rows), more than half of the free memory" in sentences[2]
    assert "the text 'endless.txt' has 100.0 GB" in sentences[3]
    assert "NUL bytes" in sentences[4]
    monkeypatch.setattr("landscape.loading.container.available_bytes", lambda: 2**24)
    with pytest.raises(ls.InputError, match="unpacks to"):  # the reader does not rely on its caller
        read_npz(tmp_path / "bomb.npz", print)
    assert int(taken) < 100e6  # of 10¹¹ bytes and more that are declared


def test_pipes_and_devices_are_not_read() -> None:
    with pytest.raises(ls.InputError, match="neither a file nor a folder"):
        read_data("/dev/zero")


# Arrays.


def test_the_same_arrays_come_back_from_every_container(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((9, 4)).astype(np.float32), rng.integers(0, 3, 9).astype(np.int32)
    a, b = torch.from_numpy(x), torch.from_numpy(y)
    np.savez(tmp_path / "1.npz", features=x, labels=y)
    np.savez_compressed(tmp_path / "2.npz", X=np.asfortranarray(x), y=y.astype(">i2"))
    torch.save((a, b), tmp_path / "3.pt")
    torch.save({"labels": b, "images": nn.Parameter(a)}, tmp_path / "4.pt")
    safetensors(tmp_path / "5.safetensors", data=a, target=b)
    for path in sorted(tmp_path.iterdir()):
        inputs, targets = read_data(str(path))
        assert inputs.dtype == torch.float32 and targets.dtype == torch.int64
        assert not inputs.requires_grad
        np.testing.assert_array_equal(inputs.numpy(), x)
        np.testing.assert_array_equal(targets.numpy(), y)


def test_floats_keep_their_type_and_pictures_of_bytes_are_scaled(tmp_path: Path) -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    masks = np.ones((1, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", images=pixels, labels=masks)
    said: Say = []
    inputs, targets = read_data(str(tmp_path / "d.npz"), say=said.append)
    assert inputs.flatten()[[0, 51, 255]].tolist() == [0, np.float32(0.2), 1]
    assert targets.dtype == torch.int64 and int(targets.max()) == 1  # targets are never scaled
    assert said == ["scaled 'images' from whole numbers 0…255 to 0…1, as pictures are"]
    for dtype in (torch.float16, torch.float64, torch.bfloat16):
        torch.save((X.to(dtype), Y.bool()), tmp_path / "d.pt")
        inputs, targets = read_data(str(tmp_path / "d.pt"))
        assert (inputs.dtype, targets.dtype) == (dtype, torch.int64)


def test_an_obvious_target_is_taken_aloud_and_others_are_not_guessed(tmp_path: Path) -> None:
    said: Say = []
    np.savez(tmp_path / "d.npz", b=np.arange(3), a=np.ones((3, 5)))
    inputs, targets = read_data(str(tmp_path / "d.npz"), say=said.append)
    assert inputs.shape == (3, 5) and targets.tolist() == [0, 1, 2]
    assert said == ["took 'a' as inputs and 'b' as targets"]
    torch.save({"b": torch.arange(3), "a": torch.ones(3, 5)}, tmp_path / "d.pt")
    with pytest.raises(ls.InputError, match="holds the arrays 'b', 'a'"):
        read_data(str(tmp_path / "d.pt"))
    said.clear()
    np.savez(tmp_path / "d.npz", x=X, y=Y, ids=Y)
    assert len(read_data(str(tmp_path / "d.npz"), say=said.append)) == 2
    assert said == ["took 'x' as inputs and 'y' as targets, and left out 'ids'"]


def test_a_target_among_other_names_makes_a_mapping_for_the_model(tmp_path: Path) -> None:
    ids = torch.arange(8, dtype=torch.int32).reshape(4, 2)
    content = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0]}
    torch.save(content, tmp_path / "d.pt")
    said: Say = []
    data = read_data(str(tmp_path / "d.pt"), say=said.append)
    assert {name: value.dtype for name, value in data.items()} == dict.fromkeys(
        content, torch.int64
    )
    assert said == [
        "'input_ids', 'attention_mask' go to the model by keyword; 'labels' are the targets"
    ]
    assert infer_loss(data) == "cross_entropy"


def test_numbers_beyond_int64_are_refused(tmp_path: Path) -> None:
    big = np.array([[2**63]], dtype=np.uint64)
    np.savez(tmp_path / "d.npz", x=big, y=np.zeros(1))
    torch.save((torch.from_numpy(big), torch.zeros(1)), tmp_path / "d.pt")
    for name in ("d.npz", "d.pt"):
        with pytest.raises(ls.InputError, match="int64"):
            read_data(str(tmp_path / name))


# Tables.


def table(path: Path, text: str, target: str | None = None) -> tuple[Tensor, Tensor, Say]:
    said: Say = []
    path.write_text(text)
    inputs, targets = read_data(str(path), target=target, say=said.append)
    return inputs, targets, said


def test_words_become_classes_in_sorted_order_aloud(tmp_path: Path) -> None:
    inputs, targets, said = table(tmp_path / "d.csv", IRIS, "species")
    assert targets.dtype == torch.int64 and targets.tolist() == [0, 2, 0, 1]
    expected = np.array([[5.1, 3.5], [6.2, 2.9], [4.9, 3.0], [5.6, 2.5]], dtype=np.float32)
    np.testing.assert_array_equal(inputs.numpy(), expected)
    assert said == [
        "2 features used as they are, not standardised",
        "classes of 'species', numbered in sorted order: 0 setosa, 1 versicolor, 2 virginica",
    ]


@pytest.mark.parametrize(
    ("labels", "expected", "sentence"),
    [
        ("0 1 2 0", [0, 1, 2, 0], "classes of 'y', numbered in sorted order: 0 0, 1 1, 2 2"),
        ("1 2 3 1", [0, 1, 2, 0], "classes of 'y', numbered in sorted order: 0 1, 1 2, 2 3"),
        (
            "True False True True",
            [1, 0, 1, 1],
            "classes of 'y', numbered in sorted order: 0 False, 1 True",
        ),
        ("b NA b a", [2, 0, 2, 1], "classes of 'y', numbered in sorted order: 0 NA, 1 a, 2 b"),
        ("10 b 9 b", [0, 2, 1, 2], "classes of 'y', numbered in sorted order: 0 10, 1 9, 2 b"),
        ("0.5 1 2 -3e1", [[0.5], [1], [2], [-30]], "'y' holds numbers: regression"),
        (
            "25 310 100 25",
            [[25], [310], [100], [25]],
            "'y' holds 3 different whole numbers from 25",
        ),
        ("25 26 27 25", [[25], [26], [27], [25]], "'y' holds 3 different whole numbers from 25"),
        ("-1 1 1 -1", [[-1], [1], [1], [-1]], "'y' holds 2 different whole numbers from -1 to 1"),
    ],
)
def test_targets_are_classes_or_numbers_and_it_is_said_which(
    tmp_path: Path, labels: str, expected: list[Any], sentence: str
) -> None:
    pa = pytest.importorskip("pyarrow")
    words = labels.split()
    rows = "".join(f"{index},{word}\n" for index, word in enumerate(words))
    inputs, targets, said = table(tmp_path / "d.csv", "a,y\n" + rows)
    assert inputs.tolist() == [[0], [1], [2], [3]]
    assert targets.tolist() == expected
    assert targets.dtype == (torch.int64 if targets.ndim == 1 else torch.float32)
    assert said[-1].startswith(sentence)
    # The same table as Parquet, its types found by pyarrow's own reader of CSV.
    import pyarrow.csv
    import pyarrow.parquet

    options = pyarrow.csv.ConvertOptions(strings_can_be_null=False)
    read = pyarrow.csv.read_csv(tmp_path / "d.csv", convert_options=options)
    for column in (read["y"], read["y"].dictionary_encode()):
        pyarrow.parquet.write_table(pa.table({"a": read["a"], "y": column}), tmp_path / "d.parquet")
        again = read_data(str(tmp_path / "d.parquet"))
        assert torch.equal(again[0], inputs) and torch.equal(again[1], targets)


def test_more_than_a_hundred_whole_numbers_are_quantities(tmp_path: Path) -> None:
    for different, dtype in ((100, torch.int64), (101, torch.float32)):
        rows = "".join(f"1,{index}\n" for index in range(different))
        assert table(tmp_path / "d.csv", "a,y\n" + rows)[1].dtype == dtype


def test_csv_agrees_with_pandas(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame(
        {
            "a": rng.standard_normal(3000),
            'quoted, "b"': rng.integers(-9, 9, 3000),
            "flag": rng.random(3000) < 0.5,
            "Target": rng.choice(["x", "y, z"], 3000),
        }
    )
    for index in (False, True):  # with row names, pandas writes a column without a name
        frame.to_csv(tmp_path / "d.csv", index=index, lineterminator="\r\n")
        said: Say = []
        inputs, targets = read_data(str(tmp_path / "d.csv"), say=said.append)
        expected = frame.iloc[:, :3].astype(np.float32).to_numpy()
        np.testing.assert_array_equal(inputs.numpy(), expected)
        assert targets.tolist() == (frame["Target"] == "y, z").astype(int).tolist()
        assert any("no name" in sentence for sentence in said) == index
    assert "took the column 'Target' as targets; 3 features used" in said[1]


def test_parquet_of_pandas_leaves_its_row_names_out(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"a.b": [1, 2], "b": [True, False], "y": [0.5, 1.5]}, index=["p", "q"])
    frame.to_parquet(tmp_path / "d.parquet")
    said: Say = []
    inputs, targets = read_data(str(tmp_path / "d.parquet"), say=said.append)
    assert inputs.tolist() == [[1, 1], [2, 0]] and targets.tolist() == [[0.5], [1.5]]
    assert said[0] == "left out '__index_level_0__', the row names of pandas"


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet(tmp_path / "d.parquet", a=[1], y=[2])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ls.InputError, match="run: pip install pyarrow"):
        read_data(str(tmp_path / "d.parquet"))


# Images.


def test_pictures_become_tensors_with_classes_in_order(tmp_path: Path) -> None:
    png(tmp_path / "b" / "1.png", mode="RGB", level=51)
    png(tmp_path / "a" / "2.bmp", mode="RGB", level=102)
    png(tmp_path / "a" / "1.png", mode="RGB")
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    (tmp_path / "a" / ".hidden.png").write_text("no picture")
    (tmp_path / "README").touch()
    said: Say = []
    inputs, targets = read_data(str(tmp_path), say=said.append)
    assert inputs.shape == (3, 3, 4, 5) and inputs.dtype == torch.float32
    assert targets.tolist() == [0, 0, 1]
    assert inputs[:, 0, 0, 0].tolist() == [1, 1, 1]  # the white pixel is the first, as in the file
    np.testing.assert_allclose(inputs[:, :, 3, 4].numpy(), [[0] * 3, [0.4] * 3, [0.2] * 3])
    assert said[0].endswith(": 0 a, 1 b; pixels run from 0 to 1")
    assert said[1:] == ["left out 3 files or folders that are no picture"]


def test_a_large_set_of_pictures_is_read_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index, label in itertools.product(range(5), "ab"):
        png(tmp_path / label / f"{index}.png", level=10 * index)
    (tmp_path / "c").symlink_to(tmp_path / "a", target_is_directory=True)
    whole = read_data(str(tmp_path))
    monkeypatch.setattr(images_module, "KEEP_BYTES", 4 * 15 * 4 * 5 - 1)  # one byte too few
    said: Say = []
    lazy = read_data(str(tmp_path), say=said.append)
    assert isinstance(lazy, Dataset) and "read again on every pass" in said[-1]
    pixels, labels = next(iter(DataLoader(lazy, batch_size=15)))
    assert torch.equal(pixels, whole[0]) and torch.equal(labels, whole[1])
    assert infer_loss(lazy) == "cross_entropy"
    model = nn.Sequential(nn.Flatten(), nn.Linear(20, 3))
    problem = ls.Problem(model, "cross_entropy", lazy)
    assert problem.samples == 15
    assert problem.summary()["tensors"]["input"] == {"shape": [1, 4, 5], "dtype": "float32"}
    part = read_data(str(tmp_path), limit=6, seed=1)  # small enough to be held
    assert isinstance(part, tuple) and torch.bincount(part[1]).tolist() == [2, 2, 2]


def test_with_a_limit_only_the_chosen_pictures_are_opened(tmp_path: Path) -> None:
    for index, label in itertools.product(range(8), "ab"):
        png(tmp_path / label / f"{index}.png", level=index)
    chosen = read_data(str(tmp_path), limit=4, seed=0)[0][:, 0, 3, 4] * 255
    levels = set(chosen[:2].round().int().tolist())
    for index in set(range(8)) - levels:
        (tmp_path / "a" / f"{index}.png").write_text("damaged")
    assert torch.equal(read_data(str(tmp_path), limit=4, seed=0)[0][:, 0, 3, 4] * 255, chosen)
    with pytest.raises(ls.InputError, match="despite its ending"):
        read_data(str(tmp_path))


# Texts.


def test_characters_are_numbered_in_sorted_order_and_windows_are_shifted(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("hello wörld\n", encoding="utf-8", newline="\r\n")
    said: Say = []
    inputs, targets = read_data(str(tmp_path / "d.txt"), context=4, say=said.append)
    vocabulary = sorted(set("hello wörld\n"))
    expected = [vocabulary.index(character) for character in "hello wörl"]
    assert inputs.tolist() == [expected[0:4], expected[5:9]]
    assert targets.tolist() == [expected[1:5], expected[6:10]]
    assert inputs.dtype == targets.dtype == torch.int64
    assert (
        "tokens are the 10 distinct characters" in said[0] and "must have been trained" in said[0]
    )
    assert said[1] == "12 tokens in 2 windows of 4 and the token after each; the last 2 left out"
    assert infer_loss((inputs, targets)) == "token_cross_entropy"


def test_ascii_is_the_vocabulary_of_the_demo(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("Ab~é\n!", encoding="utf-8")
    said: Say = []
    options: dict[str, Any] = {"tokenizer": "ascii", "context": 5}
    inputs, targets = read_data(str(tmp_path / "d.txt"), say=said.append, **options)
    assert [VOCABULARY[token] for token in inputs[0]] == list("Ab~?\n")
    assert VOCABULARY[int(targets[0, -1])] == "!"
    assert said[0] == "tokens are the 96 ASCII characters; 1 others became '?'"


def tokenizer_folder(path: Path) -> list[str]:
    """A tokenizer of words, with a limit and special tokens that must not apply."""
    tokenizers = pytest.importorskip("tokenizers")
    words = ["[UNK]", "[CLS]", "to", "be", "or", "not"]
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", 1)]
    )
    made.enable_truncation(4)
    made.enable_padding(pad_to_multiple_of=64)
    path.mkdir()
    made.save(str(path / "tokenizer.json"))
    return words


def test_tokens_of_a_hugging_face_folder(tmp_path: Path) -> None:
    words = tokenizer_folder(tmp_path / "model")
    text = "to be or not to be that not be " * 3
    (tmp_path / "d.txt").write_text(text)
    (tmp_path / "model" / "tokenization_evil.py").write_text("raise SystemExit")
    said: Say = []
    inputs, targets = read_data(
        str(tmp_path / "d.txt"), tokenizer=str(tmp_path / "model"), context=8, say=said.append
    )
    tokens = [words.index(word) if word in words else 0 for word in text.split()]
    assert torch.cat([inputs, targets[:, -1:]], 1).flatten().tolist() == tokens
    assert said[0].startswith("tokens are those of the tokenizer in")


@pytest.mark.parametrize("content", ["{", "[" * 100_000, '{"version": "1.0"}', "\0"])
def test_a_damaged_tokenizer_is_refused(tmp_path: Path, content: str) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_text(content)
    (tmp_path / "d.txt").write_text("to be " * 99)
    with pytest.raises(ls.InputError, match="cannot be used|is no readable JSON") as error:
        read_data(str(tmp_path / "d.txt"), tokenizer=str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_folder_with_code_for_its_tokenizer_runs_none_of_it(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    witness = tmp_path / "witness"
    place = tmp_path / "model"
    place.mkdir()
    (place / "evil.py").write_text(
        f"open({str(witness)!r}, 'w').close()\n"
        "from transformers import PreTrainedTokenizer\n"
        "class Evil(PreTrainedTokenizer):\n    pass\n"
    )
    settings = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (place / "tokenizer_config.json").write_text(json.dumps(settings))
    (place / "config.json").write_text(json.dumps({"model_type": "evil", **settings}))
    (tmp_path / "d.txt").write_text("to be " * 99)
    with pytest.raises(ls.InputError, match="cannot be used|is no readable JSON"):
        read_data(str(tmp_path / "d.txt"), tokenizer=str(place))
    assert not witness.exists()


# Names and callables.


def test_callables_give_any_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_sets.py").write_text(
        "import torch\n"
        "from torch.utils.data import DataLoader, TensorDataset\n"
        "x, y = torch.arange(8.).reshape(4, 2), torch.tensor([0, 1, 0, 1])\n"
        "def pair(): return x, y\n"
        "def mapping(): return {'x': x, 'labels': y}\n"
        "def dataset(): return TensorDataset(x, y)\n"
        "def loader(): return DataLoader(TensorDataset(x, y), batch_size=3)\n"
        "def listed(): return [(x[:3], y[:3]), (x[3:], y[3:])]\n"
        "def nothing(): return None\n"
        "def once(): return iter([(x, y)])\n"
        "def broken(): raise RuntimeError('no data today')\n"
    )
    for name in ("pair", "mapping", "dataset", "loader", "listed"):
        whole, part = read_data(f"my_sets:{name}"), read_data(f"my_sets:{name}", limit=2)
        assert _samples(whole) == 4 and _samples(part) == 2
        assert infer_loss(part) == "cross_entropy"
    for name, sentence in (
        ("nothing", "'my_sets:nothing' does not return data: the data are a NoneType"),
        ("once", "used up after one pass"),
        ("broken", "no data today"),
        ("missing", "no callable 'missing'"),
    ):
        with pytest.raises(ls.InputError, match=sentence):
            read_data(f"my_sets:{name}")
    with pytest.raises(ls.InputError, match="--context 8 is about the windows of a text"):
        read_data("my_sets:pair", context=8)
    with pytest.raises(ls.InputError, match="cannot import 'no_such_module'"):
        read_data("no_such_module:make")


def test_names_are_those_of_embedded_sets_first_and_typos_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ls.InputError, match="did you mean digits.* choose one of digits"):
        read_data("digitz")
    monkeypatch.chdir(tmp_path)
    Path("diabetes").mkdir()
    said: Say = []
    assert len(read_data("diabetes", say=said.append)[0]) == 442
    assert said == ["'diabetes' is the embedded data set; the file of that name is ./diabetes"]
    with pytest.raises(ls.InputError, match="--target y is about the label column"):
        read_data("digits", target="y")
    with pytest.raises(ls.InputError, match="the limit is 0"):
        read_data("digits", limit=0)


# A limit.


def test_a_subset_keeps_class_proportions_and_is_reproducible() -> None:
    inputs, targets = read_data("digits")
    x, y = take((inputs, targets), 200, seed=3)
    assert x.shape == (200, 1, 8, 8)
    whole = torch.bincount(targets) / len(targets)
    assert (torch.bincount(y) / 200 - whole).abs().max() < 0.01
    again = take((inputs, targets), 200, seed=3)
    assert torch.equal(x, again[0]) and not torch.equal(x, take((inputs, targets), 200, 4)[0])
    assert len(take((inputs, targets), 10**6, 0)[0]) == len(inputs)


ROWS = torch.arange(60.0).reshape(30, 2)  # every row tells which one it is
LABELS = torch.tensor([0] * 18 + [1] * 9 + [2] * 3)[torch.arange(30) * 7 % 30]


class Labelled(Dataset[Any]):
    """A map-style dataset that may keep its labels and counts how often it is read."""

    def __init__(self, kept: bool) -> None:
        self.reads = 0
        if kept:
            self.targets = LABELS.tolist()

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.reads += 1
        return ROWS[index] + 0 * torch.rand(2), int(LABELS[index])


class Streamed(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([(ROWS[i], LABELS[i]) for i in range(30)])


class Batches:
    """A re-iterable of ragged mapping batches."""

    def __iter__(self) -> Iterator[Any]:
        for part in torch.arange(30).split([7, 1, 12, 10]):
            names = [f"row {i}" for i in part.tolist()]
            yield {
                "x": ROWS[part],
                "names": names,
                "unit": torch.tensor(1.0),
                "labels": LABELS[part],
            }


def pairs(data: Any) -> tuple[Tensor, Tensor]:
    """All inputs and targets of data of any kind."""
    if isinstance(data, tuple):
        return data
    if isinstance(data, dict):
        return data["x"], data["labels"]
    batches = list(DataLoader(data, batch_size=4) if isinstance(data, Dataset) else data)
    if isinstance(batches[0], dict):
        batches = [(batch["x"], batch["labels"]) for batch in batches]
    return torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])


SOURCES: dict[str, Callable[[], Any]] = {
    "tuple": lambda: (ROWS, LABELS),
    "pair as a list": lambda: [ROWS, LABELS],
    "mapping": lambda: {"x": ROWS, "labels": LABELS},
    "tensor dataset": lambda: TensorDataset(ROWS, LABELS),
    "dataset with labels": lambda: Labelled(True),
    "dataset without labels": lambda: Labelled(False),
    "subset": lambda: Subset(Labelled(True), list(range(30))),
    "loader": lambda: DataLoader(Labelled(True), batch_size=8),
    "shuffling loader": lambda: DataLoader(Labelled(True), batch_size=8, shuffle=True),
    "loader with a sampler": lambda: DataLoader(
        Labelled(True), batch_size=8, sampler=list(range(30))
    ),
    "loader of a stream": lambda: DataLoader(Streamed(), batch_size=8),
    "list of batches": lambda: [(ROWS[:11], LABELS[:11]), (ROWS[11:], LABELS[11:])],
    "re-iterable of mappings": Batches,
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_limit_takes_whole_rows_in_proportion_from_every_kind_of_data(source: str) -> None:
    data = SOURCES[source]()
    state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    part = take(data, 10, 5)
    assert torch.equal(state[0], torch.get_rng_state())
    assert state[1] == np.random.get_state()[1].tolist()
    inputs, targets = pairs(part)
    assert inputs.shape == (10, 2)
    rows = (inputs[:, 0] / 2).long()
    assert torch.equal(targets, LABELS[rows])  # inputs and targets still belong together
    assert len(set(rows.tolist())) == 10 and rows.tolist() == sorted(rows.tolist())
    assert torch.bincount(targets).tolist() == [6, 3, 1]  # of 18, 9 and 3
    again = pairs(take(SOURCES[source](), 10, 5))[0]
    assert torch.equal(again, inputs)
    assert not torch.equal(pairs(take(SOURCES[source](), 10, 6))[0], inputs)
    data = SOURCES[source]()
    assert len(pairs(take(data, 30, 0))[0]) == 30
    with pytest.raises(ls.InputError, match="the limit is 0"):
        take(data, 0, 0)


def test_a_limit_keeps_the_form_of_the_data() -> None:
    def collate(samples: list[Any]) -> Any:
        return {
            "x": torch.stack([s[0] for s in samples]),
            "y": torch.tensor([s[1] for s in samples]),
        }

    dataset = Labelled(True)
    loader = DataLoader(dataset, batch_size=4, shuffle=True, collate_fn=collate)
    part = take(loader, 10, 0)
    assert isinstance(part, DataLoader) and dataset.reads == 0  # the labels are kept beside
    assert (part.batch_size, part.num_workers, part.collate_fn) == (4, 0, collate)
    assert [len(batch["x"]) for batch in part] == [4, 4, 2]
    assert isinstance(take(dataset, 10, 0), Subset)
    assert list(take({"x": ROWS, "labels": LABELS}, 5, 0)) == ["x", "labels"]
    batches = take(Batches(), 12, 0)
    for batch in batches:
        assert list(batch) == ["x", "names", "unit", "labels"]
        assert batch["names"] == [f"row {int(x[0]) // 2}" for x in batch["x"]]
        assert float(batch["unit"]) == 1
    assert isinstance(take([(ROWS, LABELS), (ROWS, LABELS)], 5, 0)[0], tuple)


def test_a_limit_on_data_larger_than_what_is_kept_reads_them_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = pairs(take(Batches(), 10, 5))[0]
    monkeypatch.setattr("landscape.batches.KEEP_BYTES", 100)
    assert torch.equal(pairs(take(Batches(), 10, 5))[0], expected)

    class Shrinking:
        length = 30

        def __iter__(self) -> Iterator[Any]:
            self.length -= 1
            return iter([(ROWS[: self.length], LABELS[: self.length])])

    with pytest.raises(ls.InputError, match="two passes over the data give batches of different"):
        take(Shrinking(), 5, 0)


def test_loaders_that_do_not_read_every_sample_once_are_read_as_they_are() -> None:
    dataset = Labelled(True)
    sampler = RandomSampler(dataset, replacement=True, num_samples=12)
    part = take(DataLoader(dataset, batch_size=5, sampler=sampler), 10, 0)
    assert isinstance(part, list) and len(pairs(part)[0]) == 10
    whole = DataLoader([(ROWS[:11], LABELS[:11]), (ROWS[11:], LABELS[11:])], batch_size=None)
    part = take(whole, 10, 0)  # each of its two samples is a batch already
    assert isinstance(part, list) and torch.bincount(pairs(part)[1]).tolist() == [6, 3, 1]


def test_rare_classes_do_not_end_the_proportions_of_others() -> None:
    labels = torch.tensor([0] * 60 + [1] * 38 + [2, 3])
    for seed in range(5):
        counts = torch.bincount(take((labels[:, None], labels), 20, seed)[1], minlength=2)
        assert abs(int(counts[0]) - 12) <= 1 and abs(int(counts[1]) - 7.6) <= 1
    assert len(take((labels[:, None], labels), 2, 0)[0]) == 2  # too few for proportions
    assert len(take((labels[:, None], labels), 99, 0)[0]) == 99


def test_a_limit_needs_rows() -> None:
    batches = [(ROWS, torch.ones(3, 3), LABELS)] * 2
    with pytest.raises(ls.InputError, match=r"holds a tensor of shape \(3, 3\)"):
        take(batches, 5, 0)
    with pytest.raises(ls.InputError, match="one-shot"):
        take(iter(batches), 5, 0)
    with pytest.raises(ls.InputError, match="differ in length"):
        take((ROWS, LABELS[:4]), 5, 0)


def test_targets_that_are_no_classes_are_not_read_through() -> None:
    class Regression(Labelled):
        def __getitem__(self, index: int) -> Any:
            self.reads += 1
            return ROWS[index], ROWS[index, :1]

    dataset = Regression(False)
    assert len(take(dataset, 10, 0)) == 10 and dataset.reads == 1


# What the data look like.


@pytest.mark.parametrize("source", SOURCES)
def test_the_loss_is_inferred_without_disturbing_anything(source: str) -> None:
    state = torch.get_rng_state()
    data = SOURCES[source]()
    assert infer_loss(data) == "cross_entropy"
    assert torch.equal(torch.get_rng_state(), state)


def test_the_loss_is_inferred_from_the_targets() -> None:
    x = torch.zeros(4, 3)
    assert infer_loss((x, torch.zeros(4, 1))) == "mse"
    assert infer_loss((x, torch.zeros(4, dtype=torch.int64))) == "cross_entropy"
    assert infer_loss((x, torch.zeros(4, 5, dtype=torch.int64))) == "token_cross_entropy"
    pixels = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5, dtype=torch.int64)
    assert infer_loss([pixels]) == "cross_entropy"  # a class for every pixel, classes second
    with pytest.raises(ls.InputError, match="--loss"):
        infer_loss([x])
    with pytest.raises(ls.InputError, match="the data are empty"):
        infer_loss([])


def test_a_loader_with_an_iteration_under_way_goes_on() -> None:
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(
        TensorDataset(ROWS, LABELS), batch_size=10, shuffle=True, generator=generator
    )
    state = generator.get_state()
    infer_loss(loader)
    assert torch.equal(generator.get_state(), state)


def test_importing_the_readers_loads_no_heavy_library() -> None:
    script = (
        "import sys, landscape.loading.data\n"
        "print([m for m in ('pandas', 'PIL', 'pyarrow', 'transformers', 'tokenizers') "
        "if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_named_file_is_opened_as_the_problem_of_a_model(tmp_path: Path) -> None:
    """From the file to the number: the loss is that of the rows written, computed apart."""
    (tmp_path / "d.csv").write_text("a,b,y\n1,2,0\n3,4,1\n5,6,1\n")
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    data = read_data(str(tmp_path / "d.csv"))
    with torch.no_grad():
        logits = model(torch.tensor([[1.0, 2], [3, 4], [5, 6]]))
    chosen = torch.log_softmax(logits, 1)[torch.arange(3), torch.tensor([0, 1, 1])]
    problem = ls.Problem(model, infer_loss(data), data)
    assert problem.loss() == pytest.approx(-float(chosen.mean()), rel=1e-6)
