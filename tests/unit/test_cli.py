"""The command line without a server: help, precedence, bad settings, what is imported."""

from __future__ import annotations

import dataclasses
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llm_grpc import __version__
from llm_grpc.adapter_names import parse_adapters
from llm_grpc.cli.extras import needs_extra
from llm_grpc.cli.main import build_app, main
from llm_grpc.config import EngineConfig, ModelConfig, ServerConfig
from llm_grpc.errors import LLMGrpcError

ROOT = Path(__file__).parents[2]
FIELDS = [f.name for c in (ModelConfig, EngineConfig, ServerConfig) for f in dataclasses.fields(c)]
COMMANDS = ["serve", "generate", "health", "export", "export-adapter", "verify", "bench", "demo", "doctor"]


def settings(*flags: str) -> dict[str, Any]:
    """Return what `serve` would run with."""
    _, bound, _ = build_app().parse_args(["serve", *flags], exit_on_error=False, print_error=False)
    configs = (bound.arguments.get(name) for name in ("model", "engine", "server"))
    return {key: value for config in configs if config for key, value in dataclasses.asdict(config).items()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "llm-grpc.yaml"


def stderr_of(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 2) -> str:
    """Run a command that fails; return its one line."""
    assert main(list(argv)) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("llm-grpc: ")
    return err.removeprefix("llm-grpc: ").rstrip("\n")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for command in COMMANDS:
        assert any(len(line.split()) > 4 and line.split()[1] == command for line in lines)


def test_help_of_serve_names_each_flag_and_variable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["serve", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for field in [*FIELDS, "config"]:
        flag = f"--{field.replace('_', '-')}"
        (line,) = (line for line in lines if line.split()[1:2] == [flag])
        assert f"[env var: LLM_GRPC_{field.upper()}]" in line
        assert field in {"config", "port"} or "[default: " in line


@pytest.mark.parametrize("command", COMMANDS)
def test_help_states_the_exit_codes(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main([command, "--help"]) == 0
    assert "Exit codes: 0 " in capsys.readouterr().out


def test_flag_beats_variable_beats_file_beats_default(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("max_running: 2\nmax_waiting: 2\nchunk_tokens: 2\n")
    monkeypatch.setenv("LLM_GRPC_MAX_RUNNING", "3")
    monkeypatch.setenv("LLM_GRPC_MAX_WAITING", "3")
    found = settings("--max-running", "4", "--config", str(file))
    assert (found["max_running"], found["max_waiting"], found["chunk_tokens"]) == (4, 3, 2)
    assert found.get("threads", 0) == EngineConfig().threads


@pytest.mark.parametrize("unsaid", [("host", "port"), ("address",)])
def test_each_field_is_flag_variable_and_key(
    file: Path, monkeypatch: pytest.MonkeyPatch, unsaid: tuple[str, ...]
) -> None:
    values: dict[str, Any] = {field: 1 for field in FIELDS if field not in unsaid}
    texts = {"model_name", "default_model", "address", "host", "metrics_address", "admin_address"}
    values |= dict.fromkeys(texts - set(unsaid), "x:1")
    values |= {"adapters": "french=/a,legal=/b/c"}
    values |= {"model": "/models/x", "device": "cuda:1", "log_level": "debug", "max_message_bytes": 2048}
    defaults = {field: getattr(ServerConfig(), field) for field in unsaid}
    expected = {**values, "model": Path("/models/x"), **defaults}
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in values.items()]
    assert settings(*flags) == expected
    file.write_text(json.dumps(values))
    assert settings("--config", str(file)) == expected
    for key, value in values.items():
        monkeypatch.setenv(f"LLM_GRPC_{key.upper()}", str(value))
    assert settings() == expected


def test_adapters_may_be_a_mapping_in_the_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("model_config:\n  adapters:\n    french: /a\n    legal: /b/c\n")
    assert settings("--config", str(file))["adapters"] == "french=/a,legal=/b/c"
    assert parse_adapters("french=/a,legal=/b/c") == {"french": Path("/a"), "legal": Path("/b/c")}
    for wrong in ("french", "=x", "a b=/x", "a=/x,a=/y"):
        assert "adapters" in stderr_of(capsys, "serve", f"--adapters={wrong}")


def test_the_file_may_be_named_by_a_variable_and_use_blocks(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(
        "threads: 1\nengine_config:\n  max_running: 2\nserver_config:\n  address: x:1\nmodel_config:\n"
    )
    monkeypatch.setenv("LLM_GRPC_CONFIG", str(file))
    found = settings()
    assert (found["threads"], found["max_running"], found["address"]) == (1, 2, "x:1")


def test_an_empty_file_and_an_empty_value_are_fine(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("")
    monkeypatch.setenv("LLM_GRPC_METRICS_ADDRESS", "")
    found = settings("--config", str(file), "--admin-address", "")
    assert (found["metrics_address"], found["admin_address"]) == ("", "")


def test_the_variables_of_a_kubernetes_service_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = settings("--threads", "1", "--address", "x:1")
    for service in ("", "_MODEL", "_CONFIG", "_ADDRESS", "_SERVE", "_METRICS", "_MAX"):
        for suffix, value in (
            ("SERVICE_HOST", "10.0.0.7"),
            ("SERVICE_PORT", "50051"),
            ("SERVICE_PORT_GRPC", "50051"),
            ("PORT", "tcp://10.0.0.7:50051"),
            ("PORT_50051_TCP", "tcp://10.0.0.7:50051"),
            ("PORT_50051_TCP_ADDR", "10.0.0.7"),
            ("PORT_50051_TCP_PORT", "50051"),
            ("PORT_50051_TCP_PROTO", "tcp"),
        ):
            monkeypatch.setenv(f"LLM_GRPC{service}_{suffix}", value)
    assert settings("--threads", "1", "--address", "x:1") == before


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("max_running", "0", "the value '0' should be greater than or equal to 1"),
        ("max_running", "many", "the value 'many' should be a valid integer"),
        ("max_running", "1.5", "the value '1.5' should be a valid integer"),
        ("max_waiting", "99999999999999999999", "should be less than or equal to 1000000"),
        ("temperature", "nan", "the value 'nan' should be a finite number"),
        ("top_p", "0", "the value '0' should be greater than 0"),
        ("frequency_penalty", "2.5", "the value '2.5' should be less than or equal to 2"),
        ("presence_penalty", "-3", "the value '-3' should be greater than or equal to -2"),
        ("port", "65536", "the value '65536' should be less than or equal to 65535"),
        ("max_workers", "-1", "the value '-1' should be greater than or equal to 0"),
        ("drain_limit_s", "inf", "should be a finite number"),
        ("log_level", "loud", "the value 'loud' should be 'debug', 'info', 'warning' or 'error'"),
    ],
)
def test_a_bad_value_is_one_line_that_names_key_value_and_limit(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    file: Path,
    field: str,
    value: str,
    problem: str,
) -> None:
    flag = f"--{field.replace('_', '-')}"
    line = stderr_of(capsys, "serve", flag, value)
    assert line.startswith(f"{flag}: ")
    assert problem in line
    file.write_text(f"{field}: {value}\n")
    line = stderr_of(capsys, "serve", "--config", str(file))
    assert line.startswith(f"{field} in {file}: ")
    assert problem in line
    monkeypatch.setenv(f"LLM_GRPC_{field.upper()}", value)
    line = stderr_of(capsys, "serve")
    assert line.startswith(f"LLM_GRPC_{field.upper()}: ")
    assert problem in line


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("max_runing: 3", "unknown key max_runing; did you mean max_running?"),
        ("zebra: 3", "unknown key zebra"),
        ("serve:\n  max_running: 3", "unknown key serve"),
        ("config: other.yaml", "unknown key config"),
        ("'*': 1", "unknown key *"),
        ("engine_config:\n  max_runing: 3", "unknown key max_runing"),
        ("max_running: 1\nengine_config:\n  max_running: 2", "max_running is set twice"),
        ("max_running: [1]", "max_running must be one value, not a list"),
        ("max_running:", "max_running must be one value, not empty"),
        ("- max_running", "must hold `key: value` lines, not a list"),
        ("max_running", "must hold `key: value` lines, not the single value 'max_running'"),
        ("max_running: [", "is not valid YAML"),
        ("model_config:\n  port: 50051", "model_config.port belongs in server_config"),
        ("server_config:\n  max_tokens: 1", "server_config.max_tokens belongs in model_config"),
        ("engine_config:\n  models: []", "unknown key models"),
        ("address: x:1\nport: 2", "are both set: say one of them"),
        ("address: x:1\nserver_config:\n  host: y", "are both set: say one of them"),
        ("max_running: \x01", "is not valid YAML"),
        ("max_running: !!python/object:os.system 1", "is not valid YAML"),
    ],
)
def test_a_bad_file_is_one_line(
    capsys: pytest.CaptureFixture[str], file: Path, text: str, problem: str
) -> None:
    file.write_text(text)
    line = stderr_of(capsys, "serve", "--config", str(file))
    assert str(file) in line
    assert problem in line


def test_a_file_that_cannot_be_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "No such file" in stderr_of(capsys, "serve", "--config", str(tmp_path / "none.yaml"))
    assert "Is a directory" in stderr_of(capsys, "serve", "--config", str(tmp_path))


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["serv"], 'Did you mean "serve"'),
        (["serve", "--max-runing", "3"], "Did you mean --max-running?"),
        (["generate"], "PROMPT requires an argument"),
        (["generate", "hello", "--top-k", "x"], "--top-k"),
        (["generate", "hello", "you"], "you"),
        (["generate", "--strem"], "Unknown option"),
        (["generate", "--strem", "hello"], "Unknown option"),
    ],
)
def test_a_bad_command_line_is_one_line(
    capsys: pytest.CaptureFixture[str], argv: list[str], problem: str
) -> None:
    assert problem in stderr_of(capsys, *argv)


def test_a_model_directory_that_is_missing_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    missing = str(tmp_path / "none")
    command = [sys.executable, "-m", "llm_grpc.cli.main", "serve", "--model", missing]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert missing in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("argv", [["--help"], ["health", "--address", "127.0.0.1:1"], ["generate", "--help"]])
def test_client_commands_import_no_runtime(argv: list[str]) -> None:
    code = f"import sys; from llm_grpc.cli.main import main; main({argv!r}); print('\\n', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert not loaded & {"onnxruntime", "numpy", "torch", "tokenizers", "pydantic", "yaml"}
    assert argv != ["--help"] or "grpc" not in loaded


def test_a_missing_extra_says_what_to_install() -> None:
    with (
        pytest.raises(LLMGrpcError, match="nowhere is not installed: install llm-grpc"),
        needs_extra("install llm-grpc[export]"),
    ):
        import nowhere  # type: ignore[import-not-found]  # noqa: F401, PLC0415
    with pytest.raises(ModuleNotFoundError), needs_extra("install llm-grpc[export]"):
        import llm_grpc.nowhere  # type: ignore[import-not-found]  # noqa: F401, PLC0415


def test_the_page_of_the_contract_is_current() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "generate_api.py"))["document"]()
    assert (ROOT / "docs" / "api.md").read_text(encoding="utf-8") == page


def test_the_table_of_the_configuration_is_current() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "generate_configuration.py"))
    page = script["document"]()
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == page
    assert all(f"| `{field}` |" in page for field in FIELDS)
