"""Every family exports exactly, or is refused for the reason that docs/architectures.md states."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests.export.families import FAMILIES, Family
from tests.export.threefold import check

# Some of the architectures use what torch deprecates as they are imported.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")


@pytest.fixture(scope="module")
def page(repository: Path) -> ModuleType:
    """The script that writes the page."""
    path = repository / "docs/generate_architectures.py"
    spec = importlib.util.spec_from_file_location("generate_architectures", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, id=f.name, marks=[] if f.quick else [pytest.mark.slow]) for f in FAMILIES],
)
def test_a_family_is_what_the_page_says(family: Family, page: ModuleType, tmp_path: Path) -> None:
    found = check(family, tmp_path)
    assert found.result == page.results()[family.name], "run docs/generate_architectures.py"
    assert round(found.nodes_per_layer) <= page.nodes()[family.name], "the graph has grown"


def test_the_page_lists_every_family_once(page: ModuleType) -> None:
    assert list(page.results()) == [family.name for family in FAMILIES]
    assert page.TARGET.read_text(encoding="utf-8").startswith(page.HEAD)
