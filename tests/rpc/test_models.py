"""Several models in one server: each loads, answers, fails and is counted by itself."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from llm_grpc.config import EngineConfig, ModelConfig, ModelSettings
from llm_grpc.engine.model_runner import ModelRunner
from llm_grpc.errors import StartupError
from llm_grpc.server.app import Server
from llm_grpc.v1 import admin_pb2, admin_pb2_grpc, llm_pb2, llm_pb2_grpc, model_pb2, model_pb2_grpc
from llm_grpc.v1.llm_pb2 import GenerateTextRequest as Request
from tests.rpc.conftest import loopback, until
from tests.rpc.models import write_model_dir
from tests.rpc.scrape import scrape
from tests.rpc.test_health import NOT_SERVING, SERVING, check, watching
from tests.rpc.test_overload import check_refusal
from tests.unit.scripted_runner import HANG_S, BrokenPlan, ScriptedRunner

LOADING, READY, FAILED = (
    model_pb2.MODEL_STATE_LOADING,
    model_pb2.MODEL_STATE_READY,
    model_pb2.MODEL_STATE_FAILED,
)
SERVER_NAMES = ("", "llm_grpc.v1.LLMService", "llm_grpc.v1.ModelService", "LLMService")


class Fleet:
    """A server of scripted models. ``may_load`` has an event for each, and ``loaded`` who began, in turn."""

    def __init__(self, directory: Path, names: Sequence[str], **server: Any) -> None:
        self.runners = {name: ScriptedRunner() for name in names}
        self.may_load = {name: threading.Event() for name in names}
        self.loaded: list[str] = []
        engine = EngineConfig(max_running=2, max_waiting=3)
        models = [ModelSettings(ModelConfig(model=directory, model_name=name), engine) for name in names]
        config = loopback(**{"metrics_address": "", **server})
        self.server = Server(models, config, make_runner=self._make_runner)

    def _make_runner(self, model: ModelConfig, *_: object) -> ModelRunner:
        self.loaded.append(model.model_name)
        assert self.may_load[model.model_name].wait(HANG_S)
        return self.runners[model.model_name]

    def let_all_load(self) -> None:
        for event in self.may_load.values():
            event.set()

    async def close(self) -> None:
        self.let_all_load()
        for runner in self.runners.values():
            runner.open()
        await self.server.close()


@asynccontextmanager
async def fleet_of(
    directory: Path, *names: str, **server: Any
) -> AsyncIterator[tuple[Fleet, grpc.aio.Channel]]:
    """A fleet that serves."""
    fleet = Fleet(directory, names, **server)
    fleet.let_all_load()
    try:
        await fleet.server.start()
        async with grpc.aio.insecure_channel(fleet.server.address) as channel:
            yield fleet, channel
    finally:
        await fleet.close()


async def generate(channel: grpc.aio.Channel, model: str = "", max_tokens: int = 8) -> Any:
    request = Request(prompt="go", max_tokens=max_tokens, model=model)
    return await llm_pb2_grpc.LLMServiceStub(channel).GenerateText(request, timeout=HANG_S)


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value


async def listed(channel: grpc.aio.Channel, **request: Any) -> model_pb2.ListModelsResponse:
    stub = model_pb2_grpc.ModelServiceStub(channel)
    return await stub.ListModels(model_pb2.ListModelsRequest(**request), timeout=HANG_S)


async def states(channel: grpc.aio.Channel) -> dict[str, int]:
    return {model.name: model.state for model in (await listed(channel)).models}


async def health(channel: grpc.aio.Channel, *names: str) -> list[int]:
    return [await check(channel, name) for name in names]


async def test_models_load_in_turn_and_each_serves_from_then_on(scripted_model: Path) -> None:
    fleet = Fleet(scripted_model, ["b", "a"])
    starting = asyncio.ensure_future(fleet.server.start())
    await until(lambda: fleet.loaded == ["b"])
    async with grpc.aio.insecure_channel(fleet.server.address) as channel:
        assert await health(channel, "model/b", "model/a", "") == [NOT_SERVING] * 3
        async with watching(channel, "model/b") as statuses:
            assert await anext(statuses) == NOT_SERVING
            fleet.may_load["b"].set()
            assert await anext(statuses) == SERVING
        await until(lambda: fleet.loaded == ["b", "a"])
        assert await health(channel, "model/a", *SERVER_NAMES) == [NOT_SERVING] * 5
        assert (await generate(channel, "b")).model == "b"
        assert (await generate(channel)).model == "b", "the first is the default"
        error = await refusal(generate(channel, "a"))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "the model 'a' is loading" in (error.details() or "")
        loading, ready = (await listed(channel)).models
        assert loading == model_pb2.Model(name="a", state=LOADING)
        assert (ready.name, ready.state, ready.is_default) == ("b", READY, True)
        assert ready.limits.context_tokens > 0
        assert not starting.done()
        fleet.may_load["a"].set()
        await starting
        assert await health(channel, "model/a", *SERVER_NAMES) == [SERVING] * 5
        assert (await generate(channel, "a")).model == "a"
    await fleet.close()


async def test_a_drain_before_all_are_loaded_lets_calls_finish(scripted_model: Path) -> None:
    fleet = Fleet(scripted_model, ["a", "b"])
    fleet.may_load["a"].set()
    starting = asyncio.ensure_future(fleet.server.start())
    await until(lambda: fleet.loaded == ["a", "b"])
    fleet.runners["a"].gate()
    async with grpc.aio.insecure_channel(fleet.server.address) as channel:
        answer = asyncio.ensure_future(generate(channel, "a"))
        await fleet.runners["a"].at_run()
        starting.cancel()
        await asyncio.wait([starting])
        draining = asyncio.ensure_future(fleet.server.drain())
        fleet.runners["a"].open()
        assert (await answer).usage.completion_tokens == 8
        await draining
    fleet.let_all_load()


async def test_one_that_cannot_be_loaded_stops_the_start(scripted_model: Path) -> None:
    models = [
        ModelSettings(ModelConfig(model=scripted_model, model_name=name), EngineConfig()) for name in "ab"
    ]

    def make_runner(model: ModelConfig, *_: object) -> ModelRunner:
        if model.model_name == "b":
            raise StartupError("no such device")
        return ScriptedRunner()

    server = Server(models, loopback(metrics_address=""), make_runner=make_runner)
    with pytest.raises(StartupError, match="the model b: no such device"):
        await server.start()
    async with grpc.aio.insecure_channel(server.address) as channel:
        assert (await refusal(generate(channel, "a"))).code() is grpc.StatusCode.UNAVAILABLE


async def test_what_one_was_given_is_not_available_to_the_next(tmp_path: Path) -> None:
    """The first is given more than any machine has, of which it has touched nothing."""
    manifest = write_model_dir(tmp_path) / "manifest.json"
    said = json.loads(manifest.read_text())
    said["kv_cache"] |= {"num_layers": 1024, "head_dim": 2**20}  # 8 GiB a token
    manifest.write_text(json.dumps(said))
    configs = [EngineConfig(max_running=1024, kv_cache_memory=2**60), EngineConfig()]
    models = [
        ModelSettings(ModelConfig(model=tmp_path, model_name=name), config)
        for name, config in zip("ab", configs, strict=True)
    ]
    server = Server(models, loopback(metrics_address=""), make_runner=lambda *_: ScriptedRunner())
    with pytest.raises(StartupError, match="the model b: 0 B are available beside the model"):
        await server.start()


async def test_one_that_fails_leaves_the_other_alone(scripted_model: Path) -> None:
    async with fleet_of(scripted_model, "a", "b") as (fleet, channel):
        fleet.runners["b"].faults += [RuntimeError("a device fault"), RuntimeError("again")]
        async with watching(channel, "model/b") as statuses:
            assert await anext(statuses) == SERVING
            for _ in range(2):
                error = await refusal(generate(channel, "b"))
                assert error.code() is grpc.StatusCode.INTERNAL
            assert await anext(statuses) == NOT_SERVING
            assert await health(channel, "model/a", "", "live") == [SERVING, NOT_SERVING, SERVING]
            assert await states(channel) == {"a": READY, "b": FAILED}
            assert (await generate(channel, "a")).usage.completion_tokens == 8
            assert (await generate(channel, "b")).usage.completion_tokens == 8
            assert await anext(statuses) == SERVING
        assert await states(channel) == {"a": READY, "b": READY}
        assert not fleet.server.broken.is_set()


async def test_one_whose_thread_is_gone_breaks_the_server(scripted_model: Path) -> None:
    async with fleet_of(scripted_model, "a", "b") as (fleet, channel):
        async with watching(channel, "live") as statuses:
            assert await anext(statuses) == SERVING
            fleet.runners["b"].faults.append(BrokenPlan())
            assert (await refusal(generate(channel, "b"))).code() is grpc.StatusCode.INTERNAL
            assert await anext(statuses) == NOT_SERVING
        assert fleet.server.broken.is_set()
        assert await health(channel, "model/a", "model/b") == [SERVING, NOT_SERVING]
        assert (await refusal(generate(channel, "b"))).code() is grpc.StatusCode.INTERNAL


async def test_a_drain_lets_calls_of_all_finish(scripted_model: Path) -> None:
    async with fleet_of(scripted_model, "a", "b") as (fleet, channel):
        for runner in fleet.runners.values():
            runner.gate()
        answers = [asyncio.ensure_future(generate(channel, name)) for name in "ab"]
        for runner in fleet.runners.values():
            await runner.at_run()
        async with watching(channel, "model/b") as statuses:
            assert await anext(statuses) == SERVING
            draining = asyncio.ensure_future(fleet.server.drain())
            assert await anext(statuses) == NOT_SERVING
        for runner in fleet.runners.values():
            runner.open()
        assert [answer.usage.completion_tokens for answer in await asyncio.gather(*answers)] == [8, 8]
        await draining


async def test_a_name_that_is_not_there(scripted_model: Path) -> None:
    async with fleet_of(scripted_model, "a", "b", default_model="b") as (_, channel):
        assert (await generate(channel)).model == "b"
        error = await refusal(generate(channel, "c"))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert "there is no 'c' here; this server has 'a', 'b'" in (error.details() or "")


@pytest.mark.parametrize(
    ("names", "default", "problem"),
    [
        (["a", "b"], "c", "default_model is 'c', and this server has 'a', 'b'"),
        (["a", "b", "a"], "", "two models have one name: a, b, a"),
    ],
)
async def test_names_that_cannot_be(
    scripted_model: Path, names: list[str], default: str, problem: str
) -> None:
    with pytest.raises(StartupError, match=problem):
        Fleet(scripted_model, names, default_model=default)


async def test_each_has_its_own_bound_and_series(scripted_model: Path) -> None:
    on = {"metrics_address": "127.0.0.1:0"}
    async with fleet_of(scripted_model, "a", "b", **on) as (fleet, channel):
        runner = fleet.runners["a"]
        runner.gate()
        waiting = [asyncio.ensure_future(generate(channel, "a")) for _ in range(5)]
        await runner.at_run()
        await until(lambda: fleet.server.admission.held == 5)
        await runner.next_run()  # a step that saw them all has ended
        await runner.next_run()
        check_refusal(await refusal(generate(channel, "a")))
        assert (await generate(channel, "b", 4)).usage.completion_tokens == 4
        samples = await scrape(fleet.server.metrics_address)
        async with grpc.aio.insecure_channel(fleet.server.admin_address) as admin:
            stub = admin_pb2_grpc.AdminServiceStub(admin)
            load = await stub.GetLoad(admin_pb2.GetLoadRequest(), timeout=HANG_S)
        runner.open()
        await asyncio.gather(*waiting)
    for name, running, queued, generated in (("a", 2, 3, 3), ("b", 0, 0, 4)):
        assert samples.value("llm_grpc_requests_running", model_name=name) == running
        assert samples.value("llm_grpc_requests_waiting", model_name=name) == queued
        assert samples.value("llm_grpc_generation_tokens_total", model_name=name) >= generated
    assert samples.value("llm_grpc_request_success_total", model_name="b", finished_reason="length") == 1
    assert samples.value("llm_grpc_request_success_total", model_name="a") == 0
    assert [(each.name, each.requests_running, each.requests_waiting) for each in load.models] == [
        ("a", 2, 3),
        ("b", 0, 0),
    ]
    assert (load.requests_running, load.requests_waiting, load.max_running, load.max_waiting) == (2, 3, 4, 6)
    assert load.kv_utilization == load.models[0].kv_utilization > 0 == load.models[1].kv_utilization
    assert all(each.ready for each in load.models)


async def test_pages_hold_all_by_name(scripted_model: Path) -> None:
    names = ["é", "m10", "b", "m2", "a b", "m1"]
    async with fleet_of(scripted_model, *names) as (_, channel):
        for size in (1, 2, 4, 5, 6, 7, 1000, 0):
            found, token = list[str](), ""
            while True:
                page = await listed(channel, page_size=size, page_token=token)
                assert len(page.models) <= (size or 100)
                found += [model.name for model in page.models]
                token = page.next_page_token
                if not token:
                    break
            assert found == sorted(names), size


@pytest.mark.parametrize(
    ("request_fields", "problem"),
    [
        ({"page_size": -1}, "page_size: is -1, and must be 0 to 1000"),
        ({"page_size": 1001}, "page_size: is 1001, and must be 0 to 1000"),
        ({"page_token": "b"}, "page_token: is no next_page_token of this list"),
        ({"page_token": "YWJjZGVm"}, "page_token: is no next_page_token of this list"),
        ({"page_token": "é"}, "page_token: is no next_page_token of this list"),
        ({"page_token": "A" * 9999}, "page_token: is no next_page_token of this list"),
    ],
)
async def test_a_page_that_nobody_offered(
    scripted_model: Path, request_fields: dict[str, Any], problem: str
) -> None:
    async with fleet_of(scripted_model, "a", "b") as (_, channel):
        error = await refusal(listed(channel, **request_fields))
        assert (error.code(), error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, problem)


async def test_a_token_outlives_its_model(scripted_model: Path) -> None:
    async with fleet_of(scripted_model, "a", "b") as (_, channel):
        token = (await listed(channel, page_size=1)).next_page_token
    async with fleet_of(scripted_model, "c", "0") as (_, channel):
        assert [model.name for model in (await listed(channel, page_token=token)).models] == ["c"]


async def test_the_server_tells_what_it_is(scripted_model: Path) -> None:
    async with fleet_of(scripted_model, "a", "b", default_model="b") as (_, channel):
        stub = model_pb2_grpc.ModelServiceStub(channel)
        info = await stub.GetServerInfo(model_pb2.GetServerInfoRequest(), timeout=HANG_S)
        assert info.default_model == "b"
        assert info.runtime.startswith("onnxruntime")
        assert info.runtime.split()[1].count(".") == 2
        assert info.start_time.seconds > 1.7e9
        unknown = model_pb2.GetServerInfoRequest.FromString(b"\x98\x06\x01")
        error = await refusal(stub.GetServerInfo(unknown, timeout=HANG_S))
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_constraints_can_be_turned_off(scripted_model: Path) -> None:
    models = [ModelSettings(ModelConfig(model=scripted_model, constraints=False), EngineConfig())]
    server = Server(models, loopback(metrics_address=""), make_runner=lambda *_: ScriptedRunner())
    await server.start()
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = model_pb2_grpc.ModelServiceStub(channel)
        model = (await stub.GetModel(model_pb2.GetModelRequest(), timeout=HANG_S)).model
        request = Request(prompt="a", constraint=llm_pb2.Constraint(regex="a"))
        with pytest.raises(grpc.aio.AioRpcError, match="'scripted' takes no constraints") as refused:
            await llm_pb2_grpc.LLMServiceStub(channel).GenerateText(request, timeout=HANG_S)
    await server.close()
    assert not model.capabilities.constraints
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_model_tells_its_defaults_and_what_it_can(scripted_model: Path) -> None:
    config = ModelConfig(
        model=scripted_model, max_tokens=9, temperature=0.5, frequency_penalty=0.25, presence_penalty=-2
    )
    models = [ModelSettings(config, EngineConfig())]
    server = Server(models, loopback(metrics_address=""), make_runner=lambda *_: ScriptedRunner())
    await server.start()
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = model_pb2_grpc.ModelServiceStub(channel)
        model = (await stub.GetModel(model_pb2.GetModelRequest(), timeout=HANG_S)).model
    await server.close()
    assert model.defaults == model_pb2.Defaults(
        max_tokens=9, temperature=0.5, top_p=1, frequency_penalty=0.25, presence_penalty=-2
    )
    assert (model.state, model.is_default) == (READY, True)
    assert model.provider == "CPUExecutionProvider"
    assert model.capabilities == model_pb2.Capabilities(constraints=True)
