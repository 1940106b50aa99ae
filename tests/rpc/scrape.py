"""What /metrics says, read the way Prometheus reads it."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families

from tests.rpc.process import HANG_S


class Samples(dict[tuple[str, frozenset[tuple[str, str]]], float]):
    """Values by name and labels."""

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples of that name with these labels among theirs; 0 where there is none."""
        asked = frozenset(labels.items())
        return sum(value for (found, has), value in self.items() if found == name and asked <= has)

    @property
    def names(self) -> set[str]:
        """The names of all samples."""
        return {name for name, _ in self}


async def scrape(metrics_address: str) -> Samples:
    """Read /metrics once."""
    return await asyncio.to_thread(_scrape, metrics_address)


async def scrape_until(metrics_address: str, is_it: Callable[[Samples], bool]) -> Samples:
    """Read /metrics until it says what the test waits for."""
    async with asyncio.timeout(HANG_S):
        while not is_it(samples := await scrape(metrics_address)):
            pass
    return samples


def _scrape(metrics_address: str) -> Samples:
    with urllib.request.urlopen(f"http://{metrics_address}/metrics", timeout=HANG_S) as response:
        text = response.read().decode()
    families = text_string_to_metric_families(text)
    return Samples(
        {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}
    )
