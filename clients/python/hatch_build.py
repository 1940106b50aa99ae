"""Names the files of llm-grpc-client, which live two directories up, beside the server's."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

OWNED = ("llm_grpc/__init__.py", "llm_grpc/py.typed", "llm_grpc/client", "llm_grpc/v1")


class OwnedFiles(BuildHookInterface[Any]):
    """Adds the owned files to a wheel; an editable install only puts the repository on the path."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Fills `force_include`, unless the build is for an editable install."""
        if version != "editable":
            repository = Path(self.root).parents[1]
            build_data["force_include"].update({str(repository / path): path for path in OWNED})
