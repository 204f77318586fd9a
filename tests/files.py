"""Model files of every kind, all of one small network: what opens, and how each one is refused.

`OPENS` and `REFUSED` map a kind, in words, to a function that writes it into a folder and returns the
path and the options it is opened with.
"""

import argparse
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

import landscape as ls

Options = dict[str, Any]
Build = Callable[[Path], tuple[Path, Options]]
OPENS: dict[str, Build] = {}
REFUSED: dict[str, tuple[Build, str]] = {}


class Net(nn.Module):
    """Convolution, batch normalisation, and a head whose weight is used twice."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Tanh())
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


def net(width: int = 4) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Net(width)
        model(torch.randn(50, 1, 5, 5))  # running statistics that are not 0 and 1
    return model.eval()


def samples() -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(2)
    x = torch.randn(12, 1, 5, 5, generator=source)
    return x, torch.randint(0, 3, (12,), generator=source)


FACTORY: Options = {"model": "files:net"}


def opens(kind: str) -> Callable[[Build], Build]:
    def add(build: Build) -> Build:
        OPENS[kind] = build
        return build

    return add


def refused(kind: str, sentence: str) -> Callable[[Build], Build]:
    def add(build: Build) -> Build:
        REFUSED[kind] = build, sentence
        return build

    return add


def _saved(folder: Path, content: Any, **options: Any) -> tuple[Path, Options]:
    path = folder / "model.pt"
    torch.save(content, path)
    return path, {**FACTORY, **options}


@opens("problem archive with a factory of the demos")
def archive(folder: Path) -> tuple[Path, Options]:
    from landscape.demos.models import regression

    x, y = torch.randn(12, 10), torch.randn(12, 1)
    path = folder / "a.pt"
    ls.save_problem(
        path, regression(), factory="landscape.demos.models:regression", data=(x, y), loss="mse"
    )
    return path, {"data": None}


@opens("problem archive with an exported program")
def archived_program(folder: Path) -> tuple[Path, Options]:
    ls.save_problem(folder / "a.pt", net(), data=samples(), loss="cross_entropy")
    return folder / "a.pt", {"data": None}


@opens("state dict, torch.save")
def state_dict(folder: Path) -> tuple[Path, Options]:
    return _saved(folder, net().state_dict())


@opens("state dict, torch.save in its format before 2020")
def legacy_state_dict(folder: Path) -> tuple[Path, Options]:
    path = folder / "model.pt"
    torch.save(net().state_dict(), path, _use_new_zipfile_serialization=False)
    return path, FACTORY


@opens("state dict, safetensors")
def safetensors_file(folder: Path) -> tuple[Path, Options]:
    path = folder / "weights"  # no ending says what it is
    safetensors.torch.save_file(net().state_dict(), path)
    return path, FACTORY


@opens("state dict in two safetensors files with an index")
def sharded(folder: Path) -> tuple[Path, Options]:
    weights = net().state_dict()
    names = list(weights)
    index = {}
    for number, part in enumerate((names[:3], names[3:])):
        file = f"model-{number}.safetensors"
        safetensors.torch.save_file({name: weights[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return path, FACTORY


@opens("checkpoint: state_dict, optimizer, epoch")
def checkpoint(folder: Path) -> tuple[Path, Options]:
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 1, 5, 5)).sum().backward()
    optimizer.step()
    content = {
        "state_dict": net().state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
    }
    return _saved(folder, content)


@opens("checkpoint: model_state_dict")
def checkpoint_tutorial(folder: Path) -> tuple[Path, Options]:
    return _saved(folder, {"epoch": 1, "model_state_dict": net().state_dict(), "loss": 0.5})


@opens("checkpoint: model, with a Namespace of arguments (not imported)")
def checkpoint_namespace(folder: Path) -> tuple[Path, Options]:
    return _saved(folder, {"args": argparse.Namespace(lr=0.1), "model": net().state_dict()})


@opens("checkpoint: ema, chosen with --weights")
def checkpoint_ema(folder: Path) -> tuple[Path, Options]:
    other = {name: torch.zeros_like(value) for name, value in net().state_dict().items()}
    return _saved(folder, {"model": other, "ema": net().state_dict()}, weights="ema")


@opens("checkpoint of DataParallel: module.")
def data_parallel(folder: Path) -> tuple[Path, Options]:
    return _saved(folder, {f"module.{k}": v for k, v in net().state_dict().items()})


@opens("checkpoint of a compiled model: _orig_mod.")
def compiled(folder: Path) -> tuple[Path, Options]:
    return _saved(folder, {f"_orig_mod.{k}": v for k, v in net().state_dict().items()})


@opens("checkpoint of Lightning's layout")
def lightning_layout(folder: Path) -> tuple[Path, Options]:
    weights = {f"net.{k}": v for k, v in net().state_dict().items()}
    content = {
        "epoch": 2,
        "global_step": 40,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": weights | {"criterion.weight": torch.ones(3)},
        "loops": {},
        "callbacks": {"ModelCheckpoint": {"best_model_path": "x", "best_model_score": 0.5}},
        "optimizer_states": [],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"width": 4},
    }
    return _saved(folder, content)


@opens("pickled module, its weights only (nothing runs), with --model")
def pickled_weights(folder: Path) -> tuple[Path, Options]:
    return _saved(folder, net())


@opens("pickled module, with --trust-pickle")
def pickled_trusted(folder: Path) -> tuple[Path, Options]:
    path, _ = _saved(folder, net())
    return path, {"trust_pickle": True}


@opens("module of pickle.dump, with --trust-pickle")
def bare_pickle_trusted(folder: Path) -> tuple[Path, Options]:
    path = folder / "model.pkl"
    path.write_bytes(pickle.dumps(net()))
    return path, {"trust_pickle": True}


@opens("torch.export program, dynamic batch")
def program(folder: Path) -> tuple[Path, Options]:
    path = folder / "model.pt2"
    dynamic = ({0: torch.export.Dim.AUTO},)
    torch.export.save(torch.export.export(net(), (samples()[0][:2],), dynamic_shapes=dynamic), path)
    return path, {}


@opens("torch.export program, static batch of 4")
def static_program(folder: Path) -> tuple[Path, Options]:
    path = folder / "model.pt2"
    torch.export.save(torch.export.export(net(), (samples()[0][:4],)), path)
    return path, {}


@opens("TorchScript trace, with --trust-pickle")
def trace(folder: Path) -> tuple[Path, Options]:
    path = folder / "model.pt"
    torch.jit.save(torch.jit.trace(net(), samples()[0][:2]), path)
    return path, {"trust_pickle": True}


@opens("TorchScript script, with --trust-pickle")
def script(folder: Path) -> tuple[Path, Options]:
    path = folder / "model.pt"
    torch.jit.save(torch.jit.script(net()), path)
    return path, {"trust_pickle": True}


# What follows is refused.


@refused("pickled module", "say --trust-pickle")
def pickled(folder: Path) -> tuple[Path, Options]:
    return _saved(folder, net())[0], {}


@refused("module of pickle.dump", "say --trust-pickle")
def bare_pickle(folder: Path) -> tuple[Path, Options]:
    path = folder / "model.pkl"
    path.write_bytes(pickle.dumps(net()))
    return path, FACTORY


@refused("TorchScript archive", "whose code runs while it is loaded")
def untrusted_trace(folder: Path) -> tuple[Path, Options]:
    return trace(folder)[0], {}


@refused("state dict without --model", "say --model package.module:factory")
def weights_alone(folder: Path) -> tuple[Path, Options]:
    return _saved(folder, net().state_dict())[0], {}


@refused("checkpoint without weights", "holds no state dict: there are epoch, history")
def no_weights(folder: Path) -> tuple[Path, Options]:
    return _saved(folder, {"epoch": 3, "history": [0.1, 0.2]})


@refused("state dict of another width", "of wrong shape 7: body.0.weight (5, 1, 3, 3) instead of")
def wrong_shapes(folder: Path) -> tuple[Path, Options]:
    weights = net(5).state_dict()
    return _saved(folder, weights)


@refused("state dict with other names", "nearest names 2: fc.weight → head.weight")
def wrong_names(folder: Path) -> tuple[Path, Options]:
    weights = net().state_dict()
    renamed = {name.replace("head", "fc"): value for name, value in weights.items()}
    return _saved(folder, renamed)


@refused("a single tensor", "holds a Tensor")
def tensor(folder: Path) -> tuple[Path, Options]:
    return _saved(folder, torch.zeros(3))[0], {}


@refused("tar format of 2016", "torch's tar format of 2016")
def tar(folder: Path) -> tuple[Path, Options]:
    path = folder / "model.pt"
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
    return path, FACTORY


@refused("empty file", "is empty")
def empty(folder: Path) -> tuple[Path, Options]:
    (folder / "model.pt").touch()
    return folder / "model.pt", FACTORY


@refused("truncated torch.save", "damaged or truncated zip")
def truncated(folder: Path) -> tuple[Path, Options]:
    path, options = _saved(folder, net().state_dict())
    path.write_bytes(path.read_bytes()[:-200])
    return path, options


@refused("truncated torch.save of before 2020", "cannot read")
def truncated_legacy(folder: Path) -> tuple[Path, Options]:
    path, options = legacy_state_dict(folder)
    path.write_bytes(path.read_bytes()[:-200])
    return path, options


@refused("truncated safetensors", "cannot read")
def truncated_safetensors(folder: Path) -> tuple[Path, Options]:
    path, options = safetensors_file(folder)
    path.write_bytes(path.read_bytes()[:-20])
    return path, options


@refused("truncated torch.export program", "damaged or truncated zip")
def truncated_program(folder: Path) -> tuple[Path, Options]:
    path, options = program(folder)
    path.write_bytes(path.read_bytes()[:-300])
    return path, options


@refused("index that names a file elsewhere", "it must lie in the same folder")
def wandering_index(folder: Path) -> tuple[Path, Options]:
    path = folder / "index.json"
    path.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    return path, FACTORY


@refused("arrays where a model belongs", "give it with --data")
def arrays(folder: Path) -> tuple[Path, Options]:
    import numpy as np

    np.savez(folder / "d.npz", x=np.zeros(3))
    return folder / "d.npz", FACTORY


@refused("Git LFS pointer", "run git lfs pull")
def lfs(folder: Path) -> tuple[Path, Options]:
    (folder / "model.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a")
    return folder / "model.pt", FACTORY


@refused("web page saved as a model", "is a web page")
def web_page(folder: Path) -> tuple[Path, Options]:
    (folder / "model.pt").write_text("<!doctype html><html>Not found</html>")
    return folder / "model.pt", FACTORY


@refused("GGUF", "a GGUF file")
def gguf(folder: Path) -> tuple[Path, Options]:
    (folder / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    return folder / "model.gguf", FACTORY


@refused("text", "is no kind of model file")
def text(folder: Path) -> tuple[Path, Options]:
    (folder / "model.pt").write_text("not a model at all")
    return folder / "model.pt", FACTORY


@refused("folder without config.json", "is a folder without config.json")
def plain_folder(folder: Path) -> tuple[Path, Options]:
    return folder, {}


# Sizes that are not there: refused within seconds and without filling the memory.


@refused("zip bomb as a model", "is compressed, which torch never does")
def bomb(folder: Path) -> tuple[Path, Options]:
    path = folder / "model.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", bytes(500_000_000))
    return path, FACTORY


@refused("zip whose members overlap", "declares")
def overlapping(folder: Path) -> tuple[Path, Options]:
    """Fifty names for the bytes of one member: a bomb without compression."""
    path = folder / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", bytes(100_000))
        first = archive.infolist()[0]
        for number in range(50):
            other = zipfile.ZipInfo(f"model/data/{number}")
            other.header_offset, other.CRC = first.header_offset, first.CRC
            other.file_size, other.compress_size = first.file_size, first.compress_size
            archive.filelist.append(other)
    return path, FACTORY


@refused("safetensors with an absurd header", "truncated safetensors")
def absurd_safetensors(folder: Path) -> tuple[Path, Options]:
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + b'{"a":')
    return path, FACTORY


@refused("safetensors with absurd shapes", "cannot read")
def absurd_shape(folder: Path) -> tuple[Path, Options]:
    path = folder / "model.safetensors"
    entry = {"dtype": "F32", "shape": [2**40, 2**10], "data_offsets": [0, 2**52]}
    header = json.dumps({"a": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    return path, FACTORY


class Huge:
    """Pickles as a tensor of 2⁵⁰ numbers, with no such storage behind it."""

    def __init__(self, numel: int) -> None:
        self.numel = numel

    def __reduce__(self) -> Any:
        arguments = (torch.UntypedStorage(4), 0, (self.numel,), (1,), False, None)
        return torch._utils._rebuild_tensor_v2, arguments


@refused("torch.save with a tensor larger than its storage", "cannot read")
def absurd_tensor(folder: Path) -> tuple[Path, Options]:
    return _saved(folder, {"a": Huge(2**50)})


@refused("torch.save of before 2020 with an absurd storage", "cannot read")
def absurd_storage(folder: Path) -> tuple[Path, Options]:
    """The count of a storage is written in the pickle: 40 numbers become 2³¹ − 1 (8 GB)."""
    path = folder / "model.pt"
    torch.save({"a": torch.zeros(40)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert content.count(b"K(") >= 1
    path.write_bytes(content.replace(b"K(", b"J" + struct.pack("<i", 2**31 - 1)))
    return path, FACTORY


@refused("problem archive of a model with 10⁶ hidden units", "does not hold so many")
def absurd_arguments(folder: Path) -> tuple[Path, Options]:
    from landscape.demos.models import regression

    path = folder / "a.pt"
    ls.save_problem(
        path,
        regression(),
        factory="landscape.demos.models:regression",
        arguments={"hidden": [10**6, 10**6]},
        data="diabetes",
        loss="mse",
    )
    return path, {"data": None}


class Of:
    """Pickles as a call of a function that torch's restricted reader allows."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@refused("torch.save that asks for 4 GB of bytes", "asks for a block of bytes")
def block_of_bytes(folder: Path) -> tuple[Path, Options]:
    return _saved(folder, {"a": Of(bytearray, 4 * 10**9)})


@refused("torch.save with tuples in tuples in tuples as a name", "nests tuples")
def nested_tuples(folder: Path) -> tuple[Path, Options]:
    """Hashing the name, as every reader must, would take 2⁴⁰ steps; so the pickle is written by hand."""
    path, options = _saved(folder, {})
    name = b")" + b"".join(b"q%c0h%c\x86" % (i, i) for i in range(40))
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            if member.endswith("/data.pkl"):
                content = b"\x80\x02}" + name.replace(b"0h", b"h") + b"Ns."
            archive.writestr(member, content)
    return path, options


@refused("pickled module that holds itself twice", "is a pickled object")
def endless_module(folder: Path) -> tuple[Path, Options]:
    module = nn.Module()
    module._modules |= {"a": module, "b": module}
    return _saved(folder, module)[0], {}


def _damaged_archive(folder: Path, **changes: Any) -> tuple[Path, Options]:
    path, options = archive(folder)
    torch.save({**torch.load(path, weights_only=True), **changes}, path)
    return path, options


@refused("problem archive of 10⁹ rows that are one", "the field 'data' of the problem archive")
def expanded_data(folder: Path) -> tuple[Path, Options]:
    rows = torch.zeros(1, 10).expand(10**9, 10)
    return _damaged_archive(folder, data={"tensors": [rows, torch.zeros(1).expand(10**9)]})


@refused("problem archive whose weights stand for 10¹² numbers", "does not hold so many")
def expanded_weights(folder: Path) -> tuple[Path, Options]:
    factory = {
        "name": "landscape.demos.models:regression",
        "arguments": {"hidden": [10**6, 10**6]},
    }
    weights = {"x": torch.zeros(1).expand(10**13)}
    return _damaged_archive(folder, factory=factory, state_dict=weights)


def _laugh() -> list[Any]:
    """Thirty lists in lists, each twice: written out, a thousand million entries."""
    laugh: list[Any] = []
    for _ in range(30):
        laugh = [laugh, laugh]
    return laugh


for _field in ("loss", "norm_stats", "factory", "batch_size"):

    @refused(f"problem archive with lists in lists as its {_field}", f"the field {_field!r} of the")
    def laughing(folder: Path, field: str = _field) -> tuple[Path, Options]:
        return _damaged_archive(folder, **{field: _laugh()})


@refused(
    "problem archive with a limit that is no number", "the field 'limit' of the problem archive"
)
def wrong_limit(folder: Path) -> tuple[Path, Options]:
    return _damaged_archive(folder, data={"name": "diabetes", "limit": "all"})


@refused("program with many views of one block", "too many views of the same numbers")
def many_views(folder: Path) -> tuple[Path, Options]:
    path, _ = program(folder)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith("model_weights_config.json"))
    config = json.loads(members[name])
    entry = max(config["config"].values(), key=lambda e: len(e["tensor_meta"]["sizes"]))
    for number in range(200):
        sizes = [{"as_int": size} for size in (36, 1, 1, 1)]
        strides = [{"as_int": stride} for stride in (0, number, 1, 1)]
        meta = {**entry["tensor_meta"], "sizes": sizes, "strides": strides}
        config["config"][f"extra{number}"] = {**entry, "tensor_meta": meta}
    members[name] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return path, {}


@refused("named pipe", "is neither a file nor a folder")
def named_pipe(folder: Path) -> tuple[Path, Options]:
    os.mkfifo(folder / "model.pt")
    return folder / "model.pt", FACTORY
