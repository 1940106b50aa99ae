"""Adapters on a real server: at start, over AdminService with grpcurl, and in requests."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from llm_grpc.adapter_manifest import adapter_digest
from llm_grpc.client import Client, LLMError
from llm_grpc.export.adapter import export_adapter
from llm_grpc.export.command import export
from llm_grpc.export.recipe import Recipe
from llm_grpc.v1 import admin_pb2
from llm_grpc.v1.llm_pb2 import GenerateTextRequest, GenerateTextResponse, ResponseOptions, Stopping
from tests.export.peft_adapters import matrices, merged, save_adapter
from tests.export.random_model import Eager
from tests.rpc.process import HANG_S, ServerProcess

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
NUM_TOKENS = 12


@pytest.fixture(scope="module")
def roomy(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("roomy") / "model"
    export(str(checkpoint), directory, "random", recipe=Recipe(max_adapter_rank=8))
    return directory


@pytest.fixture(scope="module")
def adapters(checkpoint: Path, roomy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate("abc"):
        source = save_adapter(folder / f"peft-{name}", matrices(checkpoint, seed))
        export_adapter(source, folder / name, roomy)
    return {name: folder / name for name in "abc"}


@pytest.fixture(scope="module")
def wanted(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """What torch says after ``PROMPT``: the model alone under "", and with each adapter merged."""
    folder = tmp_path_factory.mktemp("merged")
    found = {"": Eager(checkpoint).greedy(PROMPT, NUM_TOKENS)}
    for seed, name in enumerate("abc"):
        directory = merged(checkpoint, folder / name, matrices(checkpoint, seed))
        found[name] = Eager(directory).greedy(PROMPT, NUM_TOKENS)
    assert len(set(map(tuple, found.values()))) == 4
    return found


@pytest.fixture(scope="module")
def torch_a(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Eager:
    return Eager(merged(checkpoint, tmp_path_factory.mktemp("a") / "merged", matrices(checkpoint, 0)))


@pytest.fixture
def server(roomy: Path, adapters: dict[str, Path]) -> Iterator[ServerProcess]:
    with ServerProcess(f"--model={roomy}", "--threads=1", f"--adapters=a={adapters['a']}") as found:
        yield found


@pytest.fixture
def admin(tool: Callable[[str], str], server: ServerProcess) -> Callable[..., dict[str, Any]]:
    """Calls a method of AdminService with grpcurl; fails unless it is answered, or says ``refused``."""

    def call(method: str, refused: str = "", **request: str) -> dict[str, Any]:
        command = [tool("grpcurl"), "-plaintext", "-emit-defaults", "-d", json.dumps(request)]
        done = subprocess.run(
            [*command, server.admin_address, f"llm_grpc.v1.AdminService/{method}"],
            check=False, capture_output=True, text=True, timeout=HANG_S,
        )  # fmt: skip
        assert (done.returncode != 0) == bool(refused), done.stderr
        assert refused in done.stderr
        found: dict[str, Any] = {} if refused else json.loads(done.stdout)
        return found

    return call


def said(client: Client, adapter: str) -> list[int]:
    """What is generated with an adapter."""
    reply = client.generate(PROMPT, max_tokens=NUM_TOKENS, adapter=adapter, ignore_eos=True, tokens=True)
    return [token.id for token in reply.tokens]


def test_adapters_of_a_server(
    server: ServerProcess, admin: Callable[..., dict[str, Any]], adapters: dict[str, Path],
    wanted: dict[str, list[int]],
) -> None:  # fmt: skip
    with Client(server.address) as client:
        for name in ("", "a", "", "a"):  # the second time with a prompt that is in the cache
            assert said(client, name) == wanted[name]
        loaded = admin("LoadAdapter", name="b", path=str(adapters["b"]))["adapter"]
        described = json_format.ParseDict(loaded, admin_pb2.Adapter())
        assert described == admin_pb2.Adapter(name="b", rank=4, digest=adapter_digest(adapters["b"]))
        assert [said(client, name) for name in ("b", "a", "")] == [wanted[name] for name in ("b", "a", "")]
        model = client.get_model()
        assert list(model.adapters) == ["a", "b"]
        assert model.capabilities.adapters

        admin("LoadAdapter", "'c' has rank 4, and 0 of 8 are free", name="c", path=str(adapters["c"]))
        admin("LoadAdapter", "Code: AlreadyExists", name="b", path=str(adapters["b"]))
        admin("LoadAdapter", "Code: InvalidArgument", name="c/d", path=str(adapters["c"]))
        admin("LoadAdapter", "is not an adapter directory", name="c", path="/nowhere")
        admin("LoadAdapter", "Code: NotFound", model="other", name="c", path=str(adapters["c"]))

        admin("UnloadAdapter", name="a")
        admin("UnloadAdapter", "Code: NotFound", name="a")
        with pytest.raises(LLMError, match="there is no 'a' here; the model has b") as caught:
            said(client, "a")
        assert caught.value.reason == "ADAPTER_NOT_FOUND"
        listed = json_format.ParseDict(admin("ListAdapters"), admin_pb2.ListAdaptersResponse())
        assert ([each.name for each in listed.adapters], listed.max_rank) == (["b"], 8)
        admin("LoadAdapter", name="a", path=str(adapters["c"]))
        assert [said(client, name) for name in ("a", "b", "")] == [wanted[name] for name in ("c", "b", "")]


def test_a_stream_keeps_the_adapter_that_it_began_with(
    server: ServerProcess, admin: Callable[..., dict[str, Any]], adapters: dict[str, Path], torch_a: Eager
) -> None:
    with Client(server.address) as client:
        options = {"max_tokens": 100, "adapter": "a", "ignore_eos": True, "tokens": True}
        with client.stream(PROMPT, **options) as parts:  # type: ignore[arg-type]
            found = [token.id for token in next(parts).tokens]
            admin("UnloadAdapter", name="a")
            admin("LoadAdapter", name="b", path=str(adapters["b"]))
            with pytest.raises(LLMError, match="there is no 'a' here"):
                said(client, "a")
            found += [token.id for part in parts for token in part.tokens]
        assert found == torch_a.greedy(PROMPT, 100)
        admin("LoadAdapter", name="c", path=str(adapters["c"]))  # in the room that it left


def test_every_method_takes_an_adapter(server: ServerProcess, wanted: dict[str, list[int]]) -> None:
    with Client(server.address) as client:
        scores = {
            name: client.score(PROMPT, [wanted["a"], wanted[""]], adapter=name).scores for name in ("", "a")
        }
        assert scores["a"][0].logprob > scores["a"][1].logprob, "what it says itself is likelier"
        assert scores[""][0].logprob < scores[""][1].logprob
        stopping, options = Stopping(ignore_eos=True), ResponseOptions(tokens=True, receipt=True)
        items = [
            GenerateTextRequest(
                prompt_token_ids=PROMPT, max_tokens=NUM_TOKENS, adapter=name, stopping=stopping,
                response_options=options,
            )
            for name in ("a", "", "a")
        ]  # fmt: skip
        for item, response in client.generate_batch(items):
            assert isinstance(response, GenerateTextResponse)
            name = items[item].adapter
            assert [token.id for token in response.tokens] == wanted[name]
            assert bool(response.receipt.adapter_digest) == bool(name)
        several = client.generate(
            PROMPT, max_tokens=NUM_TOKENS, adapter="a", ignore_eos=True, tokens=True, temperature=1e-3, n=3,
            seed=1, cache_disabled=True,
        )  # fmt: skip
        assert [[token.id for token in each.tokens] for each in several.sequences] == [wanted["a"]] * 3


def test_a_go_program_loads_one(go_program: Path, server: ServerProcess, adapters: dict[str, Path]) -> None:
    done = subprocess.run(
        [go_program, "-test.v", "-test.run=TestLoadedAdapter"],
        env={
            **os.environ,
            "LLM_GRPC_ADDRESS": server.address,
            "LLM_GRPC_ADMIN_ADDRESS": server.admin_address,
            "LLM_GRPC_ADAPTER": str(adapters["b"]),
        },
        check=False, capture_output=True, text=True, timeout=HANG_S,
    )  # fmt: skip
    assert "--- PASS: TestLoadedAdapter" in done.stdout, done.stdout


def test_a_model_without_room(model_dir: Path, adapters: dict[str, Path]) -> None:
    with ServerProcess(f"--model={model_dir}", "--threads=1") as server, Client(server.address) as client:
        assert not client.get_model().capabilities.adapters
        with pytest.raises(LLMError, match="exported without room for adapters") as caught:
            said(client, "a")
        assert caught.value.reason == "UNSUPPORTED_PARAMETER"
    broken = ServerProcess(f"--model={model_dir}", f"--adapters=a={adapters['a']}")
    assert broken.process.wait(HANG_S) == 1
    broken.wait()
    assert "adapters: name: the model was exported without room" in broken.log[-1]
