"""From a conversation to a prompt, by the model's own chat template.

A template is a Jinja program that comes with the model. What it gets, and what it makes of it, is what
transformers' ``apply_chat_template`` gives and makes, to the character (decision 20).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import TemplateError, TemplateSyntaxError, meta

from llm_grpc.errors import InvalidParameter, ManifestError, UnsupportedParameter
from llm_grpc.manifest import Manifest
from llm_grpc.text.template_environment import TemplateEnvironment, operations
from llm_grpc.text.tool_format import ToolFormat, tool_format_of

MAX_PROMPT_CHARACTERS = 16 * 1024 * 1024
"""Most characters of a rendered prompt: four times what the largest request message may hold by default."""

MAX_OPERATIONS = 200_000
"""Most look-ups and calls of one rendering, about a second of work. Templates take 5 to 70 a message."""

_INLINE_MESSAGES, _INLINE_CHARACTERS = 8, 4096
"""Larger conversations are rendered in a worker thread, so that the event loop stays free; smaller ones take
less than the hand-over."""

_RARE_ROLES = ("developer", "tool")
"""Those that a template may leave out which asks for each role by its name."""

_GIVEN = ("messages", "tools", "add_generation_prompt")
"""What a template gets from the server."""

SpecialTokens = Mapping[str, str | Sequence[str]]


class Conversation(NamedTuple):
    """What a template makes a prompt of, in the shapes that transformers' callers pass.

    ``messages`` have role and content, and where they apply tool_calls, tool_call_id and name. ``tools`` are
    None where the model is told of none. ``options`` are further names for the template.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    options: Mapping[str, Any] = {}


class ChatTemplate:
    """One model's chat template. ``tool_source`` replaces ``source`` where there are tools; models that have
    two name them so. ``special_tokens`` are bos_token and its like, ``now`` is the clock of ``strftime_now``.

    Raises:
        ManifestError: the template is no Jinja.
    """

    def __init__(
        self,
        source: str,
        special_tokens: SpecialTokens,
        tool_source: str | None = None,
        now: Callable[[], datetime] = datetime.now,
        max_operations: int = MAX_OPERATIONS,
    ) -> None:
        self._max_operations = max_operations
        self._environment = TemplateEnvironment(now)
        self._special_tokens = dict(special_tokens)
        try:
            self._template = self._environment.from_string(source)
            self._with_tools = self._environment.from_string(tool_source) if tool_source else self._template
        except TemplateSyntaxError as error:
            raise ManifestError(f"the chat template is no Jinja: line {error.lineno}: {error}") from None
        shown = tool_source or source
        self.shows_tools = "tools" in meta.find_undeclared_variables(self._environment.parse(shown))
        """Whether the template tells the model of tools."""
        self.tool_format: ToolFormat | None = tool_format_of(shown) if self.shows_tools else None
        """How the model calls them, None where this version does not know it."""

    def is_taken(self, name: str) -> bool:
        """Whether ``name`` means something to a template already and cannot be an option's."""
        return name in _GIVEN or name in self._special_tokens or name in self._environment.globals

    async def prompt(self, conversation: Conversation) -> str:
        """``render`` of a conversation that is shown whole, in a worker thread where it may take long.

        Raises:
            InvalidParameter: as ``render`` says.
            UnsupportedParameter: the template passes over messages of a rare role, or over tool_calls.
        """
        messages, tools, options = conversation
        num_characters = sum(len(message["content"]) for message in messages)
        is_small = len(messages) <= _INLINE_MESSAGES and num_characters <= _INLINE_CHARACTERS
        if is_small and not tools and not options:
            return self._shown_whole(conversation)
        return await asyncio.to_thread(self._shown_whole, conversation)

    def _shown_whole(self, conversation: Conversation) -> str:
        prompt = self.render(conversation)
        for rest, part in _without_rare_parts(conversation.messages):
            with suppress(InvalidParameter):  # the template asks for that part
                if self.render(conversation._replace(messages=rest)) == prompt:
                    raise UnsupportedParameter(f"messages: the model's chat template passes over {part}")
        return prompt

    def render(self, conversation: Conversation) -> str:
        """The prompt, which ends where the model's answer begins.

        Raises:
            InvalidParameter: the template refuses the messages or cannot work with them, makes nothing of
                them, takes more than ``max_operations`` or makes more than ``MAX_PROMPT_CHARACTERS``.
        """
        messages, tools, options = conversation
        template = self._with_tools if tools else self._template
        given = {"documents": None, **self._special_tokens, **options}
        given |= {"messages": messages, "tools": tools, "add_generation_prompt": True}
        parts: list[str] = []
        num_characters = 0
        try:
            with operations(self._max_operations) as count:
                for part in template.generate(given):
                    count()
                    parts.append(part)
                    num_characters += len(part)
                    if num_characters > MAX_PROMPT_CHARACTERS:
                        raise _TooLong(f"it makes more than {MAX_PROMPT_CHARACTERS} characters of them")
        except TemplateError as error:
            raise InvalidParameter("messages", f"the model's chat template refuses them: {error}") from None
        except Exception as error:  # noqa: BLE001 - a template is a program: it may raise anything
            problem = f"the model's chat template fails over them: {type(error).__name__}: {error}"
            raise InvalidParameter("messages", problem) from None
        if not num_characters:
            raise InvalidParameter("messages", "the model's chat template makes nothing of them")
        return "".join(parts)


def _without_rare_parts(
    messages: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[Sequence[Mapping[str, Any]], str]]:
    """``messages`` without a part that templates are known to pass over without a word, and what that part
    is, for each that is there.
    """
    for role in _RARE_ROLES:
        rest = [message for message in messages if message["role"] != role or not message["content"]]
        if len(rest) < len(messages):
            yield rest, f"messages whose role is {role}"
    if any("tool_calls" in message for message in messages):
        calls = "tool_calls"
        yield [{name: message[name] for name in message if name != calls} for message in messages], calls


class _TooLong(TemplateError):
    """The prompt is longer than any that a request may have."""


def load_chat_template(model_dir: Path, manifest: Manifest) -> ChatTemplate | None:
    """The chat template of a model directory, None where it has none.

    Raises:
        ManifestError: a template cannot be read or is no Jinja.
    """
    if manifest.chat_template is None:
        return None
    tool_template = manifest.tool_chat_template
    return ChatTemplate(
        _read(model_dir / manifest.chat_template),
        manifest.special_tokens,
        _read(model_dir / tool_template) if tool_template else None,
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"cannot read the chat template {path}: {error}") from None
