"""What PEFT's ``adapter_config.json`` says of a LoRA adapter, and what of it cannot be served."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from llm_grpc.adapter_room import MAX_ADAPTER_RANK
from llm_grpc.errors import ExportError

CONFIG = "adapter_config.json"

_READ = frozenset(
    {"peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "target_modules", "bias"}
)

_WITHOUT_EFFECT = frozenset({
    "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "eva_config", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "lora_dropout",
    "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
})  # fmt: skip
"""Keys about training, about where the weights come from, or about which there are: the files show those."""


def _expression(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"should be a regular expression: {error}") from None
    return text


_Rank = Annotated[int, Field(ge=1, le=MAX_ADAPTER_RANK)]
_Alpha = Annotated[float, Field(allow_inf_nan=False)]
_Expression = Annotated[str, AfterValidator(_expression)]

_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
"""``init_lora_weights`` that leave the model's own weights as they are."""


@dataclass(frozen=True)
class PeftConfig:
    """A LoRA adapter's settings. ``targets`` are the modules it names, None where it gives an expression."""

    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    is_rank_stabilised: bool
    targets: tuple[str, ...] | None

    def rank_of(self, module: str) -> int:
        """The rank of the matrices of ``module``."""
        rank: int = _by_pattern(self.ranks, module, self.rank)
        return rank

    def scale_of(self, module: str) -> float:
        """What their product is multiplied by."""
        rank = self.rank_of(module)
        alpha: float = _by_pattern(self.alphas, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.is_rank_stabilised else rank)


class _Stated(BaseModel):
    r: _Rank
    lora_alpha: _Alpha
    rank_pattern: dict[_Expression, _Rank] | None = None
    alpha_pattern: dict[_Expression, _Alpha] | None = None
    use_rslora: bool | None = False
    target_modules: list[str] | str | None = None

    def settings(self) -> PeftConfig:
        targets = self.target_modules
        return PeftConfig(
            rank=self.r,
            alpha=self.lora_alpha,
            ranks=self.rank_pattern or {},
            alphas=self.alpha_pattern or {},
            is_rank_stabilised=bool(self.use_rslora),
            targets=tuple(targets) if isinstance(targets, list) else None,
        )


def read_config(directory: Path) -> PeftConfig:
    """Read the settings of a PEFT directory.

    Raises:
        ExportError: there are none, or one asks for what is not served.
    """
    path = directory / CONFIG
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise ExportError(
            f"{directory} is not a PEFT directory: cannot read {path}: {error.strerror}"
        ) from None
    except ValueError as error:
        raise ExportError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ExportError(f"{path}: peft_type must be LORA")
    _refuse(path, config)
    try:
        return _Stated.model_validate(config).settings()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ExportError(f"{path} is damaged: {where}: {first['msg']}") from None


def _refuse(path: Path, config: dict[str, Any]) -> None:
    if config.get("bias", "none") != "none":
        raise ExportError(f"{path}: bias is {config['bias']!r}, and biases of adapters are not served")
    start = config.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        raise ExportError(
            f"{path}: init_lora_weights is {start!r}, which changes the model's own weights: convert the "
            "adapter to plain LoRA first"
        )
    for key in sorted(config.keys() - _READ - _WITHOUT_EFFECT - {"init_lora_weights"}):
        if config[key]:
            raise ExportError(f"{path}: {key} is {config[key]!r}, which is not served")


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that is the end of the module's name, behind a dot or from its start."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
