# ruff: noqa: INP001 - a script, not a package
"""Checks every family of tests/export/families.py and writes architectures.md from what it finds.

From the root, with the export extra installed: `python docs/generate_architectures.py`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.export.families import FAMILIES
from tests.export.threefold import GREEDY_TOKENS, TOLERANCE, Row, check

TARGET = Path(__file__).with_name("architectures.md")

HEAD = f"""\
# Architectures that export

<!-- Written by docs/generate_architectures.py from tests/export/families.py: change it there. -->

Each row is a model of three layers with random weights. Its exported step is compared with the same
checkpoint in torch, eager attention, fp32: a whole prompt; the prompt in chunks of 1, 7 and 59 tokens; two
sequences decoding at different lengths beside a chunk of a third. *exact* means that no logit is further off
than {TOLERANCE:.0e} of the largest one and that {GREEDY_TOKENS} greedy tokens are equal, but for those where
torch's best two are closer than that (ties). Windows are of 8 tokens, shorter than every prompt. No family
has code of its own: what is not listed is tried the same way, and refused with a reason if it does not fit.

*Nodes* is how many nodes ONNX Runtime runs for a layer, after its own optimisation.

| Family | Architecture | What is odd about it | Result | Largest error | Ties | Nodes |
|---|---|---|---|---|---|---|
"""


def document(rows: list[Row]) -> str:
    """Return the page."""
    return HEAD + "".join(_row(row) for row in rows)


def _row(row: Row) -> str:
    family = row.family
    numbers = ("", "", "")
    if not row.refusal:
        numbers = (f"{row.error:.0e}", str(row.num_ties), f"{row.nodes_per_layer:.0f}")
    return f"| {' | '.join((family.name, family.model_type, family.odd, row.result, *numbers))} |\n"


def _cells() -> list[list[str]]:
    """The rows of the committed page."""
    lines = TARGET.read_text(encoding="utf-8").removeprefix(HEAD).splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def results() -> dict[str, str]:
    """The result of each family as the committed page states it."""
    return {cells[0]: cells[3] for cells in _cells()}


def nodes() -> dict[str, int]:
    """The nodes a layer of each family as the committed page states them; 0 for a refused one."""
    return {cells[0]: int(cells[6] or 0) for cells in _cells()}


def main() -> None:
    """Check them all and write the page."""
    rows = []
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as directory:
            rows.append(check(family, Path(directory)))
        print(_row(rows[-1]), end="", flush=True)  # noqa: T201 - a script says how far it is
    TARGET.write_text(document(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
