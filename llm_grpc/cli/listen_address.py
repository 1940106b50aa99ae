"""Where `llm-grpc serve` listens: one address, or its host and its port said by themselves."""

from __future__ import annotations

from cyclopts import App, Argument, ArgumentCollection, CycloptsError

from llm_grpc.cli.messages import source

ADDRESS, PARTS = "--address", ("--host", "--port")


def service_links(_app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Leave alone what Kubernetes says of a Service named llm-grpc: LLM_GRPC_PORT is tcp://10.0.0.7:50051."""
    port = arguments.get("--port", None)
    if port is not None and port.tokens and port.tokens[0].source == "env" and "://" in port.tokens[0].value:
        port.tokens.clear()


def one_address(_app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Let a flag beat a variable and a variable the file, be it the address or a part of it.

    Raises:
        CycloptsError: one source says the address and a part of it.
    """
    address = arguments.get(ADDRESS, None)
    if address is None or not address.tokens:
        return
    for part in (arguments.get(name, None) for name in PARTS):
        if part is None or not part.tokens:
            continue
        if _rank(part) == _rank(address):
            raise CycloptsError(msg=f"{source(address)} and {source(part)} are both set: say one of them")
        if _rank(part) > _rank(address):
            part.tokens.clear()


def _rank(argument: Argument) -> int:
    where = argument.tokens[0].source
    return {"": 0, "cli": 0, "env": 1}.get(where, 2)
