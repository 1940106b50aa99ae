# ruff: noqa: INP001 - a script, not a package
"""Writes api.md from the protos: `python docs/generate_api.py`. Needs buf, which is in the dev extra."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

TARGET = Path(__file__).with_name("api.md")
PROTOS = TARGET.parent.parent / "protos"
PACKAGE = "llm_grpc.v1"

HEAD = """\
# The contract

<!-- Written by docs/generate_api.py from protos/: change the comments there. -->

Package `llm_grpc.v1`, as `protos/llm_grpc/v1` declares it and as server reflection shows it. Numbers and
types of fields do not change any more. `optional` fields know whether they were set; others mean by 0, by
the empty text and by the empty list that they were not. The original, package-less `LLMService` is described
in its own file, `protos/llm_grpc/original/llm_service.proto`.

"""

_MESSAGES, _ENUMS, _SERVICES, _PART = 4, 5, 6, 2
"""Numbers of FileDescriptorProto's fields, and of the field or method or value inside of each of these."""


def document() -> str:
    """Return the page."""
    files = [file for file in _built().file if file.package == PACKAGE]
    pages = [_Page(file) for file in files]
    index = ", ".join(f"[{s.name}](#{s.name.lower()})" for page in pages for s in page.file.service)
    parts = [HEAD, f"Services: {index}.\n"]
    for page in pages:
        parts += page.services()
    parts.append("\n## Messages and enums\n")
    kinds = sorted((kind for page in pages for kind in page.kinds()), key=lambda kind: kind[0])
    parts += [text for _, text in kinds]
    return "".join(parts)


def _built() -> FileDescriptorSet:
    buf = Path(sysconfig.get_path("scripts")) / "buf"
    image = subprocess.run(  # noqa: S603 - our own program and arguments
        [buf, "build", PROTOS, "--as-file-descriptor-set", "--output", "-"], check=True, capture_output=True
    )
    return FileDescriptorSet.FromString(image.stdout)


class _Page:
    """What one file of the contract says."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self.file = file
        self._comments = {tuple(at.path): at.leading_comments for at in file.source_code_info.location}

    def services(self) -> Iterator[str]:
        for index, service in enumerate(self.file.service):
            yield f"\n## {service.name}\n\n{self._text(_SERVICES, index)}\n"
            yield from self._methods(index, service)

    def kinds(self) -> Iterator[tuple[str, str]]:
        """Messages and enums by name."""
        for index, message in enumerate(self.file.message_type):
            yield message.name, "".join(self._message(index, message))
        for index, enum in enumerate(self.file.enum_type):
            yield enum.name, "".join(self._enum(index, enum))

    def _methods(self, index: int, service: ServiceDescriptorProto) -> Iterator[str]:
        for number, method in enumerate(service.method):
            stream = "stream " if method.server_streaming else ""
            kinds = f"({_link(method.input_type)}) → {stream}{_link(method.output_type)}"
            yield f"\n### {service.name}.{method.name}\n\n{kinds}\n\n"
            yield f"{self._text(_SERVICES, index, _PART, number)}\n"

    def _message(self, index: int, message: DescriptorProto) -> Iterator[str]:
        yield f"\n### {message.name}\n\n{self._text(_MESSAGES, index)}\n"
        rows = [
            (
                str(field.number),
                f"`{field.name}`",
                _type(field, message),
                self._text(_MESSAGES, index, _PART, at),
            )
            for at, field in enumerate(message.field)
        ]
        yield from _table(("Number", "Field", "Type", "Meaning"), rows)

    def _enum(self, index: int, enum: EnumDescriptorProto) -> Iterator[str]:
        yield f"\n### {enum.name}\n\n{self._text(_ENUMS, index)}\n"
        rows = [
            (str(value.number), f"`{value.name}`", self._text(_ENUMS, index, _PART, at))
            for at, value in enumerate(enum.value)
        ]
        yield from _table(("Number", "Value", "Meaning"), rows)

    def _text(self, *path: int) -> str:
        """A comment as one paragraph."""
        return " ".join(self._comments.get(path, "").split())


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows]
    if lines:
        yield "\n| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|\n"
        yield from lines


def _type(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    for nested in message.nested_type:
        if nested.options.map_entry and field.type_name.endswith(f".{message.name}.{nested.name}"):
            key, value = nested.field
            return f"map of {_name(key)} to {_name(value)}"
    name = _name(field)
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {name}"
    if field.proto3_optional:
        return f"optional {name}"
    if field.HasField("oneof_index"):
        return f"{name}, one of `{message.oneof_decl[field.oneof_index].name}`"
    return name


def _name(field: FieldDescriptorProto) -> str:
    if field.type_name:
        return _link(field.type_name)
    return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def _link(name: str) -> str:
    """A message of the contract as a link, another one by its name."""
    short = name.removeprefix(f".{PACKAGE}.")
    return f"[{short}](#{short.lower()})" if short != name else f"`{name.removeprefix('.')}`"


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
    sys.stdout.write(f"{TARGET.name} is written\n")
