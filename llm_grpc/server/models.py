"""Which models this server has, and whether they take requests now."""

from __future__ import annotations

from collections.abc import Sequence

from llm_grpc.errors import Draining, ModelNotFound, ModelNotReady, StartupError
from llm_grpc.server.model_host import ModelHost
from llm_grpc.server.served_model import ServedModel


class Models:
    """The models of this server: announced by name at start, loaded later, refused while draining.

    ``default`` is the one that requests without a name get: that of ``default_name``, else the first.

    Raises:
        StartupError: two have one name, or none has the default's.
    """

    def __init__(self, hosts: Sequence[ModelHost], default_name: str = "") -> None:
        self._hosts = {host.name: host for host in hosts}
        if len(self._hosts) < len(hosts):
            raise StartupError(f"two models have one name: {', '.join(host.name for host in hosts)}")
        if default_name and default_name not in self._hosts:
            raise StartupError(f"default_model is {default_name!r}, and this server has {self._names()}")
        self.default = self._hosts[default_name] if default_name else hosts[0]
        self.draining = False

    def by_name(self) -> list[ModelHost]:
        """All of them, ordered by name."""
        return sorted(self._hosts.values(), key=lambda host: host.name)

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
        return self.loaded(name)[1]

    def loaded(self, name: str) -> tuple[ModelHost, ServedModel]:
        """The same with its host."""
        self.refuse_if_draining()
        host = self._hosts.get(name) if name else self.default
        if host is None:
            raise ModelNotFound(f"model: there is no {name!r} here; this server has {self._names()}")
        if host.served is None:
            raise ModelNotReady(f"the model {host.name!r} is loading")
        return host, host.served

    def _names(self) -> str:
        return ", ".join(repr(name) for name in self._hosts)
