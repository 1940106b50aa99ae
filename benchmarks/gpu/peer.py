"""One peer, in the interpreter that has it: ``python peer.py NAME GIVEN.json DEVICE`` prints its figures.

Needs nothing of llm-grpc. Models have random weights, which are drawn on the device.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

BATCH = 64
"""Of ``generate``, whose batches run until their longest request is done."""


def main(name: str, given: str, device: str) -> None:
    """Load, warm up, work, print one line of JSON."""
    found = json.loads(Path(given).read_text(encoding="utf-8"))
    run = PEERS[name](found["architecture"], found["config"], device)
    requests: list[dict[str, Any]] = found["requests"]
    run([{"prompt": request["prompt"], "tokens": 4} for request in requests[:4]])
    start = time.perf_counter()
    run(requests)
    wall_s = time.perf_counter() - start
    tokens = sum(request["tokens"] for request in requests)
    total = tokens + sum(len(request["prompt"]) for request in requests)
    figures = {
        "output_tokens_per_s": tokens / wall_s,
        "total_tokens_per_s": total / wall_s,
        "wall_s": wall_s,
    }
    print(json.dumps(figures))


Requests = Sequence[dict[str, Any]]
Run = Callable[[Requests], None]


def _model(architecture: str, config: dict[str, Any], device: str) -> Any:
    import torch  # noqa: PLC0415 - of the peer's environment
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415 - as above

    shape = AutoConfig.for_model(architecture, **config)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16, attn_implementation="sdpa")
    return model.eval()


def _generate(architecture: str, config: dict[str, Any], device: str) -> Run:
    import torch  # noqa: PLC0415 - as above

    model = _model(architecture, config, device)

    def run(requests: Requests) -> None:
        for start in range(0, len(requests), BATCH):
            batch = requests[start : start + BATCH]
            width, tokens = max(len(r["prompt"]) for r in batch), max(r["tokens"] for r in batch)
            ids = [[0] * (width - len(r["prompt"])) + r["prompt"] for r in batch]
            mask = [[0] * (width - len(r["prompt"])) + [1] * len(r["prompt"]) for r in batch]
            with torch.inference_mode():
                model.generate(
                    input_ids=torch.tensor(ids, device=device),
                    attention_mask=torch.tensor(mask, device=device),
                    max_new_tokens=tokens,
                    min_new_tokens=tokens,
                    do_sample=False,
                    eos_token_id=None,
                    pad_token_id=0,
                )

    return run


def _continuous(architecture: str, config: dict[str, Any], device: str) -> Run:
    from transformers.generation import GenerationConfig  # noqa: PLC0415 - as above

    model = _model(architecture, config, device)

    def run(requests: Requests) -> None:
        settings = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=1024)
        with model.continuous_batching_context_manager(settings) as manager:
            for index, request in enumerate(requests):
                manager.add_request(request["prompt"], f"request-{index}", request["tokens"], eos_token_id=-1)
            left = len(requests)
            while left:
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    left -= 1
                elif result is None and not manager.is_running():
                    raise RuntimeError("its thread ended")

    return run


def _vllm(architecture: str, config: dict[str, Any], _device: str) -> Run:
    from vllm import LLM, SamplingParams  # noqa: PLC0415 - as above

    names = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
    from transformers import AutoConfig  # noqa: PLC0415 - takes long, and is for nothing without vLLM

    directory = tempfile.mkdtemp()
    AutoConfig.for_model(architecture, **config, architectures=[names[architecture]]).save_pretrained(
        directory
    )
    engine = LLM(directory, load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16")

    def run(requests: Requests) -> None:
        prompts = [{"prompt_token_ids": request["prompt"]} for request in requests]
        params = [
            SamplingParams(temperature=0, max_tokens=request["tokens"], ignore_eos=True, detokenize=False)
            for request in requests
        ]
        engine.generate(prompts, params, use_tqdm=False)

    return run


PEERS: dict[str, Callable[[str, dict[str, Any], str], Run]] = {
    "transformers generate": _generate,
    "transformers continuous": _continuous,
    "vllm": _vllm,
}

if __name__ == "__main__":
    main(*sys.argv[1:4])
