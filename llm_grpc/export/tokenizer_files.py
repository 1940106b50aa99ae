"""The tokenizer and the chat templates, as files of a model directory."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerFast

TOKENIZER = "tokenizer.json"
CHAT_TEMPLATE, TOOL_CHAT_TEMPLATE = "chat_template.jinja", "chat_template_tools.jinja"


def write_tokenizer(tokenizer: PreTrainedTokenizerFast, directory: Path) -> set[str]:
    """Write them; returns the files' names."""
    tokenizer.backend_tokenizer.save(str(directory / TOKENIZER))
    templates = chat_templates(tokenizer.chat_template)
    for name, template in templates.items():
        (directory / name).write_text(template, encoding="utf-8")
    return {TOKENIZER, *templates}


def chat_templates(template: str | dict[str, str] | None) -> dict[str, str]:
    """The chat templates by their files. A tokenizer has one, or several by name: transformers takes tool_use
    where there are tools, and default elsewhere.
    """
    named = template if isinstance(template, dict) else {"default": template or ""}
    files = {CHAT_TEMPLATE: named.get("default"), TOOL_CHAT_TEMPLATE: named.get("tool_use")}
    found = {name: text for name, text in files.items() if text}
    return found if CHAT_TEMPLATE in found else {}
