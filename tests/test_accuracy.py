"""The four trained demos, through the command line, against the independent oracle of the benchmark."""

from pathlib import Path

import pytest
from benchmarks.accuracy import measure


@pytest.mark.slow
@pytest.mark.parametrize(
    ("demo", "limit"), [("regression", None), ("cnn", 200), ("transformer", 8), ("resnet", 32)]
)
def test_demo_agrees_with_the_float64_oracle(demo: str, limit: int | None, tmp_path: Path) -> None:
    row = measure(demo, tmp_path, limit)
    # The required accuracy of float32 runs; measured again in float64 they reach far less.
    assert max(row["relative_errors"]) <= 1e-4
    # Four standard errors: one honest run in 16,000 would fail.
    assert abs(row["trace_deviation_in_standard_errors"]) <= 4
    for pair, error in zip(row["eigenvalues"], row["relative_errors"], strict=True):
        assert pair["converged"]
        assert error * abs(pair["value"]) <= pair["residual"] + 1e-9
