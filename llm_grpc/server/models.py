"""Which models this server has, and whether they take requests now."""

from __future__ import annotations

from llm_grpc.errors import Draining, ModelNotFound, ModelNotReady
from llm_grpc.server.served_model import ServedModel


class Models:
    """The model of this server: announced by name at start, loaded later, refused while draining."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._loaded: ServedModel | None = None
        self.draining = False

    @property
    def is_loaded(self) -> bool:
        """Whether the model takes requests."""
        return self._loaded is not None

    def loaded(self, model: ServedModel) -> None:
        """The model takes requests from now on."""
        self._loaded = model

    def refuse_if_draining(self) -> None:
        """Raise Draining where the server takes no more calls."""
        if self.draining:
            raise Draining("the server is stopping; call again, and another one will answer")

    def get(self, name: str) -> ServedModel:
        """The model ``name``, or the default one where it is empty.

        Raises:
            Draining: the server takes no more calls.
            ModelNotFound: there is no such model.
            ModelNotReady: it is loading.
        """
        self.refuse_if_draining()
        if name not in ("", self.name):
            raise ModelNotFound(f"model: there is no {name!r} here; this server has {self.name!r}")
        if self._loaded is None:
            raise ModelNotReady(f"the model {self.name!r} is loading")
        return self._loaded
