"""Train the embedded model from scratch and measure it.

Everything is made here: the text (tasks.py), the tokenizer, the weights, the report. Run it as
`python models/embedded/train.py --out models/embedded/checkpoint`.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tasks import COPIED, NAMES, TASKS, Item, Split, items
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Iterator

EOS, USER, ASSISTANT, SYSTEM = "<|eos|>", "<|user|>", "<|assistant|>", "<|system|>"
SPECIAL_TOKENS = [EOS, USER, ASSISTANT, SYSTEM]
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{ '<|user|>' + message['content'] }}"
    "{%- elif message['role'] == 'system' -%}{{ '<|system|>' + message['content'] }}"
    "{%- elif message['role'] == 'assistant' -%}{{ '<|assistant|>' + message['content'] + '<|eos|>' }}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a small language model.",
    "Be brief.",
    "Answer the user.",
)

VOCABULARY = 1024
TOKENIZER_SAMPLE = 40_000
COPIED_WORDS_REPEATED = 3000
PARAMETER_LIMIT = 1_950_000

# Share of each task among single items.
MIX = {"translate": 6, "summarise": 2, "answer": 4, "dialogue": 2, "moderate": 3, "code": 5}

SYSTEM_SHARE = 0.1
CONVERSATION_TURNS = 3
CONVERSATION_SHARE = 0.1  # of the batches: unrelated items joined into one longer conversation
BATCHES_PER_POOL = 10
HELD_OUT_SEED, UNSEEN_SEED = 1_000_003, 2_000_003


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line sets."""

    out: Path
    steps: int
    batch: int
    seed: int
    threads: int
    layers: int
    hidden: int
    intermediate: int
    muon_rate: float
    adam_rate: float
    held_out_items: int
    save_every: int


Row = tuple[list[int], int]
"""Token ids, and the index of the first id of the answer."""


def build_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of VOCABULARY entries, trained on training items alone."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=SPECIAL_TOKENS,
        show_progress=False,
    )
    texts = [f"{item.prompt}\n{item.answer}" for item in islice(mixed_items(seed), TOKENIZER_SAMPLE)]
    # A word that is copied should be one token, a name also where it starts an answer.
    texts += [*NAMES, *(f" {word}" for word in COPIED)] * COPIED_WORDS_REPEATED
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{USER} $A {ASSISTANT}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (USER, ASSISTANT)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=EOS,
        bos_token=USER,
        additional_special_tokens=[ASSISTANT, SYSTEM],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def mixed_items(seed: int) -> Iterator[Item]:
    """Training items of all tasks in the shares of MIX."""
    streams = {name: items(name, "train", seed) for name in TASKS}
    rng = random.Random(seed)
    names, weights = list(MIX), list(MIX.values())
    while True:
        yield next(streams[rng.choices(names, weights)[0]])


def prompt_ids(tokenizer: PreTrainedTokenizerFast, item: Item, *, as_chat: bool) -> list[int]:
    """The ids before the answer: a raw prompt, or the turns of a dialogue through the chat template."""
    if not (as_chat and item.messages):
        return list(tokenizer(item.prompt)["input_ids"])
    messages = [{"role": role, "content": content} for role, content in item.messages]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True))


def rows(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[Row]:
    """Training rows without end: system text now and then, dialogues in both forms."""
    rng = random.Random(seed + 1)
    encode = tokenizer.backend_tokenizer.encode
    systems = [tokenizer.convert_tokens_to_ids([SYSTEM]) + encode(text, add_special_tokens=False).ids
               for text in SYSTEM_PROMPTS]  # fmt: skip
    for item in mixed_items(seed):
        prefix = rng.choice(systems) if rng.random() < SYSTEM_SHARE else []
        prompt = prefix + prompt_ids(tokenizer, item, as_chat=rng.random() < 0.5)
        answer = encode(item.answer, add_special_tokens=False).ids
        yield [*prompt, *answer, tokenizer.eos_token_id], len(prompt)


def sorted_batches(options: Options, stream: Iterator[Row]) -> Iterator[list[list[Row]]]:
    """Batches of single items without end, the items of a batch being of similar length."""
    rng = random.Random(options.seed + 2)
    while True:
        pool = sorted(islice(stream, options.batch * BATCHES_PER_POOL), key=lambda row: len(row[0]))
        starts = list(range(0, len(pool), options.batch))
        rng.shuffle(starts)
        for start in starts:
            yield [[row] for row in pool[start : start + options.batch]]


def batches(options: Options, tokenizer: PreTrainedTokenizerFast) -> Iterator[list[list[Row]]]:
    """One batch for each step; each row of a batch is a list of turns."""
    rng = random.Random(options.seed + 3)
    stream = rows(tokenizer, options.seed)
    singles = sorted_batches(options, stream)
    for _ in range(options.steps):
        if rng.random() < CONVERSATION_SHARE:
            turns = iter(list(islice(stream, options.batch)))
            yield [[turn, *islice(turns, CONVERSATION_TURNS - 1)] for turn in turns]
        else:
            yield next(singles)


def collate(batch: list[list[Row]]) -> tuple[Tensor, Tensor]:
    """Ids [rows, width] padded on the right, and the weight of each in the loss, of the same shape.

    Weights are zero outside answers. An answer of n tokens weighs sqrt(n) in all, so that a label of one word
    is not drowned by functions of thirty tokens.
    """
    width = max(sum(len(turn) for turn, _ in row) for row in batch)
    ids, weights = torch.zeros(len(batch), width, dtype=torch.long), torch.zeros(len(batch), width)
    for index, row in enumerate(batch):
        at = 0
        for turn, start in row:
            end = at + len(turn)
            ids[index, at:end] = torch.tensor(turn)
            weights[index, at + start : end] = (len(turn) - start) ** -0.5
            at = end
    return ids, weights


def answer_loss(model: LlamaForCausalLM, ids: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean cross entropy over answer tokens; logits are computed at those positions alone.

    Padding is on the right and attention is causal, so no mask is needed.
    """
    wanted = weights[:, 1:] > 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        logits = model.lm_head(hidden[wanted])
    losses = torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][wanted], reduction="none")
    chosen = weights[:, 1:][wanted]
    return (losses * chosen).sum() / chosen.sum()


def build_model(options: Options, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with fresh weights."""
    torch.manual_seed(options.seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=options.hidden,
        intermediate_size=options.intermediate,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 32,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        rope_theta=10_000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")  # on a CPU the fused kernel's backward pass is slower
    size = parameters(model)
    if size > PARAMETER_LIMIT:
        raise SystemExit(f"{size} parameters; the limit is {PARAMETER_LIMIT}")
    return model


def parameters(model: LlamaForCausalLM) -> int:
    """The number of weights, tied ones counted once."""
    return sum(weight.numel() for weight in model.parameters())


def optimizers(options: Options, model: LlamaForCausalLM) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon for the matrices of the layers, AdamW for embeddings and norms, each with its peak rate."""
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    chosen = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in chosen]
    muon = torch.optim.Muon(matrices, lr=options.muon_rate, momentum=0.95, weight_decay=0.01)
    adam = torch.optim.AdamW(others, lr=options.adam_rate, betas=(0.9, 0.95), weight_decay=0.0)
    return [(muon, options.muon_rate), (adam, options.adam_rate)]


def rate(step: int, steps: int) -> float:
    """The share of the peak rate at a step: a short rise, flat for half of the run, then a line to zero."""
    return min(1.0, (step + 1) / 100, 2.0 * (1.0 - step / steps))


def train(options: Options, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> float:
    """Train for the given steps; return the seconds it took."""
    model.train()
    chosen = optimizers(options, model)
    started = time.perf_counter()
    recent: list[float] = []
    for step, batch in enumerate(batches(options, tokenizer)):
        for optimizer, peak in chosen:
            optimizer.param_groups[0]["lr"] = peak * rate(step, options.steps)
            optimizer.zero_grad()
        loss = answer_loss(model, *collate(batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, _ in chosen:
            optimizer.step()
        recent.append(loss.item())
        if (step + 1) % 50 == 0:
            seconds = time.perf_counter() - started
            print(f"step {step + 1} loss {sum(recent) / len(recent):.4f} {seconds:.0f} s", flush=True)
            recent.clear()
        if options.save_every and (step + 1) % options.save_every == 0:
            quick = {name: measure(model, tokenizer, name, "held_out", 200) for name in TASKS}
            print({name: round(share, 3) for name, share in quick.items()}, flush=True)
            save(options.out, model, tokenizer, {"steps": step + 1, "unfinished": True})
            model.train()
    return time.perf_counter() - started


@torch.no_grad()
def measure(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    task: str,
    split: Split,
    count: int,
    *,
    as_chat: bool = False,
) -> float:
    """The share of `count` items whose greedy answer is exactly right (fp32, eval mode)."""
    model.eval()
    seed = HELD_OUT_SEED if split == "held_out" else UNSEEN_SEED
    by_length: dict[int, list[tuple[list[int], str]]] = defaultdict(list)
    for item in islice(items(task, split, seed), count):
        ids = prompt_ids(tokenizer, item, as_chat=as_chat)
        by_length[len(ids)].append((ids, item.answer))
    right = 0
    for length, group in by_length.items():
        prompts = torch.tensor([ids for ids, _ in group])
        made = model.generate(input_ids=prompts, attention_mask=torch.ones_like(prompts),
                              max_new_tokens=64, do_sample=False)  # fmt: skip
        texts = tokenizer.batch_decode(made[:, length:], skip_special_tokens=True)
        right += sum(text == answer for text, (_, answer) in zip(texts, group, strict=True))
    return right / count


def report(
    options: Options, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seconds: float
) -> dict[str, Any]:
    """Measure every task and describe the run."""
    accuracy: dict[str, dict[str, float]] = {}
    for split in ("held_out", "unseen_phrasing"):
        shares = {name: measure(model, tokenizer, name, split, options.held_out_items) for name in TASKS}
        shares["dialogue_as_chat"] = measure(
            model, tokenizer, "dialogue", split, options.held_out_items, as_chat=True
        )
        accuracy[split] = shares
    return {
        "seed": options.seed,
        "steps": options.steps,
        "batch": options.batch,
        "threads": options.threads,
        "seconds": round(seconds),
        "parameters": parameters(model),
        "items_per_task": options.held_out_items,
        "held_out_seed": HELD_OUT_SEED,
        "unseen_phrasing_seed": UNSEEN_SEED,
        "measured_with": f"torch {torch.__version__}, fp32, greedy",
        "accuracy": accuracy,
    }


def save(
    out: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, described: dict[str, Any]
) -> None:
    """Write the checkpoint folder."""
    out.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    model.save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out, save_jinja_files=False)
    (out / "training.json").write_text(json.dumps(described, indent=2) + "\n")


def check_format(tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuse a tokenizer in which a raw prompt differs from a chat of one turn."""
    if tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS) != [0, 1, 2, 3] or len(tokenizer) != VOCABULARY:
        raise SystemExit("special tokens or vocabulary size are off; this is a bug")
    text = "Où est l'œuf? 日本\n    return x"
    chat = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
    plain = tokenizer(text)["input_ids"]
    if chat != plain or tokenizer.decode(plain, skip_special_tokens=True) != text:
        raise SystemExit("a raw prompt and a chat of one turn differ; this is a bug")


def parse() -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "checkpoint")
    parser.add_argument("--steps", type=int, default=2300)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--intermediate", type=int, default=416)
    parser.add_argument("--muon-rate", type=float, default=0.02)
    parser.add_argument("--adam-rate", type=float, default=4e-3)
    parser.add_argument("--held-out-items", type=int, default=1000)
    parser.add_argument(
        "--save-every", type=int, default=0, help="save and measure quickly every so many steps"
    )
    return Options(**vars(parser.parse_args()))


def main() -> None:
    """Train, measure, save."""
    options = parse()
    torch.set_num_threads(options.threads)
    tokenizer = build_tokenizer(options.seed)
    check_format(tokenizer)
    model = build_model(options, tokenizer)
    print(f"{parameters(model)} parameters", flush=True)
    seconds = train(options, model, tokenizer)
    described = report(options, model, tokenizer, seconds)
    save(options.out, model, tokenizer, described)
    print(json.dumps(described, indent=2))


if __name__ == "__main__":
    main()
