from __future__ import annotations

from llm_grpc.cli.messages import fail
from llm_grpc.cli.server_address import target
from llm_grpc.client.channel import DEFAULT_ADDRESS
from llm_grpc.client.errors import DeadlineExceeded, LLMError, Unavailable
from llm_grpc.client.health import LLM_SERVICE
from llm_grpc.client.sync_client import Client

SERVING, CHECK_FAILED, UNREACHABLE, NOT_SERVING = 0, 1, 3, 4
"""2 is a wrong flag, as for every command."""


def health(*, service: str = LLM_SERVICE, address: str = DEFAULT_ADDRESS, timeout_s: float = 2.0) -> int:
    """Print the status of a server; return the exit code that says it too.

    Parameters
    ----------
    service
        Full name of a service, `model/NAME`, `live`, or empty for the server as a whole.
    address
        Server, HOST:PORT. LLM_GRPC_ADDRESS counts too, with 0.0.0.0 or [::] read as loopback.
    timeout_s
        Seconds to wait for the answer.
    """
    try:
        with Client(target(address), timeout_s=timeout_s) as client:
            status = client.health(service)
    except (Unavailable, DeadlineExceeded) as error:
        return fail(f"no answer from {target(address)}: {error}", UNREACHABLE)
    except LLMError as error:
        return fail(f"the check of {service!r} was refused: {error}", CHECK_FAILED)
    print(status)
    return SERVING if status == "SERVING" else NOT_SERVING
