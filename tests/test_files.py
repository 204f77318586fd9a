"""Every kind of model file: what opens gives the right loss, what does not is refused in one sentence."""

import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from files import FACTORY, OPENS, REFUSED, net, samples
from torch import nn

import landscape as ls
from landscape.loading.kinds import sniff

LIMIT_SECONDS, LIMIT_BYTES = 20, 2 * 2**30


@pytest.mark.parametrize("kind", OPENS)
def test_opens_and_gives_the_loss_of_the_live_model(
    kind: str, tmp_path: Path, record: Callable[..., None]
) -> None:
    path, options = OPENS[kind](tmp_path)
    said: list[str] = []
    problem = ls.load_problem(path, **{"data": samples(), **options}, say=said.append)
    if "demos" not in kind:
        x, y = samples()
        with torch.no_grad():
            expected = nn.functional.cross_entropy(net()(x), y).item()
        assert problem.loss() == pytest.approx(expected, rel=1e-5)
        v = torch.randn(problem.size, generator=torch.Generator().manual_seed(0))
        live = ls.Hessian(ls.Problem(net(), "cross_entropy", (x, y)))
        torch.testing.assert_close(ls.Hessian(problem) @ v, live @ v, rtol=1e-4, atol=1e-5)
    record("files", kind=kind, outcome="opens", said=said)


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_in_one_sentence_within_seconds_and_bounded_memory(
    kind: str, tmp_path: Path, record: Callable[..., None]
) -> None:
    build, sentence = REFUSED[kind]
    path, options = build(tmp_path)
    before = path.read_bytes() if path.is_file() else b""
    start, peak = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ls.InputError) as error:
        ls.load_problem(path, **{"data": samples(), **options})
    said = str(error.value).replace(f"{tmp_path}/", "").replace(str(tmp_path), ".")
    assert sentence in said
    assert "\n" not in said and len(said) < 500
    assert time.monotonic() - start < LIMIT_SECONDS
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
    assert grown < LIMIT_BYTES
    assert not path.is_file() or path.read_bytes() == before
    record("files", kind=kind, outcome="refused", said=[said])


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480])
def test_a_header_length_that_looks_like_a_pickle_is_still_safetensors(
    length: int, tmp_path: Path
) -> None:
    """The length of a safetensors header is written first: 0x280 bytes read 80 02, as a pickle does."""
    path = tmp_path / "model.safetensors"
    weights = net().state_dict()
    safetensors.torch.save_file(weights, path)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size].rstrip().ljust(length)
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
    assert len(header) == length
    assert ls.load_problem(path, data=samples(), **FACTORY).samples == 12
    safetensors.torch.save_file({"x": torch.zeros(3, 2), "y": torch.zeros(3)}, path)
    assert sniff(path) == "safetensors"
