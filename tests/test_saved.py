"""Results survive a file, whatever their parts are; foreign files are refused in a sentence."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

import landscape as ls
from landscape.results import Cost
from landscape.saved import NOT_SAVED, Result, require_schema

NAN = math.nan


class Pair(NamedTuple):
    nodes: NDArray[np.float64]
    name: str = "none"


@dataclass(frozen=True)
class Part:
    value: float
    error: float | None
    pair: Pair
    pattern: tuple[int, int] | None = None
    seen: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Example(Result, schema="landscape/example/1"):
    parts: list[Part]
    by_name: dict[str, list[Pair]]
    either: str | list[str]
    counts: NDArray[np.int64]
    mask: NDArray[np.bool_]
    cost: Cost
    provenance: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    weights: list[float] | None = field(default=None, metadata=NOT_SAVED)


def example() -> Example:
    pair = Pair(np.array([1.0, NAN, math.inf]), "a")
    return Example(
        parts=[Part(NAN, None, pair), Part(2.0, 0.5, pair, (2, 4), (1.0, NAN))],
        by_name={"x": [pair]},
        either=["a", "b"],
        counts=np.array([[1, 2], [3, 4]]),
        mask=np.array([True, False]),
        cost=Cost(3, None, 1.5, 10),
        provenance={"seed": 0, "argument": None},
        weights=[1.0],
    )


def test_every_kind_of_part_survives_a_file(tmp_path: Path) -> None:
    found = example()
    found.save(tmp_path / "x.json")
    back = Example.load(tmp_path / "x.json")
    first, second = back.parts
    assert math.isnan(first.value) and first.error is None and first.pattern is None
    assert second.pattern == (2, 4) and second.seen[0] == 1 and math.isnan(second.seen[1])
    np.testing.assert_array_equal(second.pair.nodes, [1, NAN, NAN])
    assert back.by_name["x"][0].name == "a" and back.either == ["a", "b"]
    assert back.counts.dtype == np.int64 and back.counts.tolist() == [[1, 2], [3, 4]]
    assert back.mask.dtype == np.bool_ and back.mask.tolist() == [True, False]
    assert back.cost == found.cost and back.provenance == found.provenance
    assert back.weights is None and "weights" not in found.to_dict()


def test_files_of_other_versions_are_read() -> None:
    saved = example().to_dict() | {"later": 1}
    del saved["notes"], saved["cost"]["engine"], saved["parts"][0]["pair"]["name"]
    saved["parts"][0]["later"] = 2
    back = Example.from_dict(saved)
    assert back.notes == [] and back.cost.engine is None and back.parts[0].pair.name == "none"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "No such file"),
        ("{", "Expecting property name"),
        ("[1]", "this is a list, not a result of kind 'landscape/example/1'"),
        ('{"schema": "landscape/trace/1"}', "this is 'landscape/trace/1', not a result of kind"),
        ('{"schema": "landscape/example/1"}', "'landscape/example/1' lacks 'parts'"),
        ('{"schema": "landscape/example/1", "parts": 3}', "is of another kind: 'int'"),
        ('{"schema": "landscape/example/1", "parts": [3]}', "is of another kind: argument"),
    ],
)
def test_anything_else_is_refused_in_a_sentence(
    tmp_path: Path, text: str | None, sentence: str
) -> None:
    path = tmp_path / "x.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ls.InputError) as refused:
        Example.load(path)
    assert sentence in str(refused.value)
    assert str(refused.value).startswith(f"cannot read {str(path)!r}: ")


def test_pictures_say_which_command_writes_what_they_draw() -> None:
    require_schema({"schema": "landscape/trace/1"}, "landscape/trace/1")
    with pytest.raises(ls.InputError) as refused:
        require_schema({}, "landscape/trace/1", "landscape trace --json FILE")
    assert str(refused.value) == (
        "this is None, not a result of kind 'landscape/trace/1', "
        "as `landscape trace --json FILE` writes it"
    )


def test_a_saved_file_holds_plain_json(tmp_path: Path) -> None:
    example().save(tmp_path / "x.json")
    saved = json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)
    assert saved["schema"] == "landscape/example/1" and saved["parts"][0]["value"] is None
