"""Does a killed command end with the same numbers?  kill -9 at random moments, then the same command again.

    python tests/benchmarks/kills.py [--kills 20] [--json figures/data/kills.json]

One spectrum of the cnn demo runs undisturbed; then the same, with its execution plan, is killed again and
again at random moments of its life and started anew with its resume file, until there were enough kills
and the last one has ended. All numbers must then be the same to the last bit.
"""

import argparse
import json
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

OPTIONS = ("--top", "10", "--probes", "10", "--steps", "100", "--seed", "1")
TIMES = {"seconds", "gradient_equivalents", "peak_bytes", "date", "command", "plan", "engine"}


def landscape(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    code = "from landscape_cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def ended(process: subprocess.Popen[bytes]) -> None:
    said = process.communicate()[1].decode()
    if process.returncode:
        raise RuntimeError(f"the command ended with {process.returncode}: {said}")


def numbers(value: Any) -> Any:
    """Everything but times and what was typed."""
    if isinstance(value, dict):
        return {key: numbers(item) for key, item in value.items() if key not in TIMES}
    return [numbers(item) for item in value] if isinstance(value, list) else value


def differences(one: Any, two: Any, name: str = "") -> list[str]:
    """Names of the numbers that are not the same."""
    if isinstance(one, dict) and isinstance(two, dict):
        keys = dict.fromkeys([*one, *two])
        return [d for k in keys for d in differences(one.get(k), two.get(k), f"{name}.{k}")]
    if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        return [
            d
            for i, pair in enumerate(zip(one, two, strict=True))
            for d in differences(*pair, f"{name}[{i}]")
        ]
    return [] if one == two else [f"{name}: {one!r} became {two!r}"]


def killed(
    folder: Path, kills: int, seed: int, options: tuple[str, ...] = OPTIONS
) -> dict[str, Any]:
    """The log of some kills, and whether the numbers were the same."""
    draws = random.Random(seed)
    ended(landscape(folder, "demo", "cnn", "-o", "model.pt"))
    start = time.monotonic()
    ended(landscape(folder, "spectrum", "model.pt", *options, "--json", "whole.json"))
    whole_seconds = lifetime = time.monotonic() - start
    whole = numbers(json.loads((folder / "whole.json").read_text()))
    asked = ("spectrum", "model.pt", *options, "--plan", "whole.json")
    asked += ("--resume", "work.pt", "--json", "pieces.json")
    log: list[dict[str, float]] = []
    finished: list[int] = []  # numbers that differed at the end of each life that had one
    wrong: list[str] = []
    while True:
        fresh, start = not (folder / "work.pt").exists(), time.monotonic()
        process = landscape(folder, *asked)
        if len(log) < kills:
            moment = draws.uniform(0, lifetime)
            try:
                process.wait(moment)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                file = folder / "work.pt"
                log.append(
                    {
                        "after_seconds": moment,
                        "resume_file_bytes": file.stat().st_size if file.exists() else 0,
                    }
                )
                continue
        ended(process)
        if fresh:  # on a shared machine the next lives may be as short
            lifetime = min(lifetime, time.monotonic() - start)
        pieces = json.loads((folder / "pieces.json").read_text())
        different = differences(whole, numbers(pieces))
        finished.append(len(different))
        wrong += different
        if len(log) >= kills:
            break
    left = sorted(path.name for path in folder.iterdir())
    return {
        "undisturbed_seconds": whole_seconds,
        "kills": log,
        "finished": finished,
        "bit_identical": not wrong,
        "differences": wrong[:20],
        "files_left": left,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = killed(Path(folder), arguments.kills, arguments.seed)
    found |= {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    print(json.dumps(found, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
