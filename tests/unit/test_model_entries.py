"""The models of the configuration file: what an entry says, what it inherits, what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cyclopts import CycloptsError

from llm_grpc.cli.main import main
from llm_grpc.cli.model_entries import model_settings
from llm_grpc.config import (
    EMBEDDED_MODEL,
    EMBEDDED_PAGED_MODEL,
    EngineConfig,
    ModelConfig,
    ModelSettings,
)

Listed = Callable[..., tuple[ModelSettings, ...]]

TWO = """
max_waiting: 9
models:
  - name: chat
    model: /models/chat
    max_tokens: 7
    kv_cache_memory: 2MiB
    verify_digest: true
  - name: "7"
    temperature: 0.5
    prefix_reuse: false
"""


@pytest.fixture
def listed(tmp_path: Path) -> Listed:
    """``listed(text, model={...}, engine={...})``: the models of a file, beside these defaults."""

    def parse(
        text: str, model: ModelConfig | None = None, engine: EngineConfig | None = None
    ) -> tuple[ModelSettings, ...]:
        path = tmp_path / "llm-grpc.yaml"
        path.write_text(text)
        return model_settings(path, ModelSettings(model or ModelConfig(), engine or EngineConfig()))

    return parse


def test_without_a_file_or_a_list_there_is_one_model(listed: Listed) -> None:
    settings = ModelSettings(ModelConfig(model_name="one"), EngineConfig(max_running=2))
    assert model_settings(None, settings) == (settings,)
    assert listed("max_running: 2", *settings) == (settings,)


def test_an_entry_lists_adapters_of_its_own(listed: Listed) -> None:
    text = "models: [{name: a, adapters: {french: /x, legal: /y}}, {name: b, adapters: 'one=/z'}, {name: c}]"
    found = listed(text, ModelConfig(adapters="all=/w"))
    assert [each.model.adapters for each in found] == ["french=/x,legal=/y", "one=/z", "all=/w"]
    with pytest.raises(CycloptsError, match=r"models\[0\]\.adapters\.french must be one value"):
        listed("models: [{name: a, adapters: {french: [x]}}]")


def test_an_entry_inherits_what_it_does_not_say(listed: Listed) -> None:
    first, second = listed(TWO, ModelConfig(max_tokens=3, top_k=5), EngineConfig(max_waiting=9))
    assert first.model == ModelConfig(
        model=Path("/models/chat"), model_name="chat", max_tokens=7, top_k=5, verify_digest=True
    )
    assert first.engine == EngineConfig(max_waiting=9, kv_cache_memory=2 * 2**20)
    assert second.model == ModelConfig(model_name="7", temperature=0.5, max_tokens=3, top_k=5)
    assert second.engine == EngineConfig(max_waiting=9, prefix_reuse=False)


def test_the_embedded_model_is_the_one_for_the_entry_s_device(listed: Listed) -> None:
    cpu, gpu = listed("models:\n  - {name: a}\n  - {name: b, device: cuda}")
    assert (cpu.model.model, gpu.model.model) == (EMBEDDED_MODEL, EMBEDDED_PAGED_MODEL)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("models:", "models must be a list of mappings, not empty"),
        ("models: []", "models must be a list of mappings, not an empty list"),
        ("models: {name: a}", "models must be a list of mappings, not a mapping"),
        ("models: [a]", "models[0] must be a mapping, not the single value 'a'"),
        ("models: [{}]", "models[0] has no name"),
        ("models: [{name: a}, {model: /m}]", "models[1] has no name"),
        ("models: [{name: a}, {name: ''}]", "models[1] has no name"),
        ("models: [{name: a}, {name: b}, {name: a}]", "models[2].name is 'a', and so is that of models[0]"),
        ("models: [{name: [a]}]", "models[0].name must be one value, not a list"),
        (
            "models: [{name: a, max_runing: 3}]",
            "unknown key models[0].max_runing; did you mean max_running?",
        ),
        ("models: [{name: a, model_name: b}]", "unknown key models[0].model_name"),
        ("models: [{name: a, port: 3}]", "unknown key models[0].port"),
        ("models: [{name: a, 3: 3}]", "unknown key models[0].3"),
    ],
)
def test_a_bad_list_names_the_entry_and_the_key(listed: Listed, text: str, problem: str) -> None:
    with pytest.raises(CycloptsError) as error:
        listed(text)
    assert problem in str(error.value)


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("max_running: 0", "max_running in {}: the value '0' should be greater than or equal to 1"),
        ("temperature: hot", "temperature in {}: the value 'hot' should be a valid number"),
        ("kv_cache_memory: much", "kv_cache_memory in {}: the value 'much' should be a size such as"),
        ("name: 'a\tb'", "name in {}: the value 'a\\tb' should be at most 200 printable characters"),
        ("verify_digest: 3", "verify_digest in {}: the value '3' should be a valid boolean"),
    ],
)
def test_a_bad_value_names_entry_key_value_and_limit(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, entry: str, problem: str
) -> None:
    path = tmp_path / "llm-grpc.yaml"
    entry = entry if entry.startswith("name") else f"name: b\n    {entry}"
    path.write_text(f"models:\n  - name: a\n  - {entry}\n")
    assert main(["serve", "--config", str(path)]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"llm-grpc: models[1].{problem.format(path)}")
    assert line.count("\n") == 1


def test_the_name_of_one_model_is_no_name_for_several(listed: Listed) -> None:
    with pytest.raises(CycloptsError, match=r"model_name is 'x', and .* lists models"):
        listed("models: [{name: a}]", ModelConfig(model_name="x"))
