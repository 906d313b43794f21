#!/usr/bin/env python3
"""Render chats with jinja2 as the publishers' own library does: the reference for tests/templates.rs.

    pip install jinja2
    tools/render_templates.py [--models DIR] [--chats FILE] [--out DIR]

Reads the chat templates of the test models in DIR ($POCKET_LLM_TEST_MODELS, else test-models in the cache that
`make test-models` fills) and renders the chats of tests/fixtures/templates/chats.json with each. Writes one JSON file for
each model beside it: name of the chat → {"text": …}, or {"refused": …} where the template raises an exception.

    tools/render_templates.py --template FILE [--bos TEXT] [--eos TEXT]      any template, to standard output
"""

import argparse
import datetime
import json
import os
import struct
import sys
from pathlib import Path

from jinja2 import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Scope
from jinja2.sandbox import ImmutableSandboxedEnvironment

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "templates"
CACHE = Path(os.environ.get("POCKET_LLM_CACHE")
             or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pocket-llm")
MODELS = {
    "gemma3": "gemma3/tokenizer_config.json",
    "qwen2.5": "qwen2.5/tokenizer_config.json",
    "smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf",
}
# struct's letters for the fixed-size value types of GGUF; 8 is a string, 9 an array.
GGUF_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class Refused(Exception):
    """A template called raise_exception."""


class Generation(Extension):
    """`{% generation %}`: marks what a model is trained on; when it is asked, just a scope."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def raise_exception(message):
    raise Refused(str(message))


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def strftime_now(form):
    return datetime.datetime.now(datetime.timezone.utc).strftime(form)


def compile_template(source):
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment.from_string(source)


def render(template, special, messages):
    """`special` has only the tokens that the model has: the others are undefined for a template."""
    try:
        return {"text": template.render(
            messages=messages, tools=None, documents=None, add_generation_prompt=True, **special)}
    except Refused as refused:
        return {"refused": str(refused)}
    except TemplateError as error:
        return {"failed": str(error)}


def read_gguf(path):
    """The metadata of a GGUF file, version 3, little endian."""
    with open(path, "rb") as file:
        def scalar(letter):
            return struct.unpack("<" + letter, file.read(struct.calcsize("<" + letter)))[0]

        def value(kind):
            if kind == 8:
                return file.read(scalar("Q")).decode("utf-8")
            if kind == 9:
                item, count = scalar("I"), scalar("Q")
                return [value(item) for _ in range(count)]
            return scalar(GGUF_SCALARS[kind])

        if file.read(4) != b"GGUF" or scalar("I") != 3:
            sys.exit(f"{path} is no GGUF file of version 3")
        _tensors, count = scalar("Q"), scalar("Q")
        return {value(8): value(scalar("I")) for _ in range(count)}


def read_model(path):
    """The template and the special tokens of a GGUF file or a tokenizer_config.json."""
    special = {}
    if path.suffix == ".gguf":
        metadata = read_gguf(path)
        for name in ("bos", "eos"):
            token = metadata.get(f"tokenizer.ggml.{name}_token_id")
            if token is not None:
                special[f"{name}_token"] = metadata["tokenizer.ggml.tokens"][token]
        return metadata["tokenizer.chat_template"], special
    config = json.loads(path.read_text(encoding="utf-8"))
    for name in ("bos_token", "eos_token"):
        token = config.get(name)
        if token is not None:
            special[name] = token["content"] if isinstance(token, dict) else token
    return config["chat_template"], special


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path,
                        default=os.environ.get("POCKET_LLM_TEST_MODELS") or CACHE / "test-models")
    parser.add_argument("--chats", type=Path, default=FIXTURES / "chats.json")
    parser.add_argument("--out", type=Path, default=FIXTURES)
    parser.add_argument("--template", type=Path)
    parser.add_argument("--bos")
    parser.add_argument("--eos")
    args = parser.parse_args()
    chats = json.loads(args.chats.read_text(encoding="utf-8"))

    def render_all(source, special):
        template = compile_template(source)
        rendered = {name: render(template, special, messages) for name, messages in chats.items()}
        return json.dumps(rendered, ensure_ascii=False, indent=2) + "\n"

    if args.template:
        special = {"bos_token": args.bos, "eos_token": args.eos}
        source = args.template.read_bytes().decode("utf-8")
        sys.stdout.write(render_all(source, {name: text for name, text in special.items() if text is not None}))
        return
    for name, path in MODELS.items():
        out = args.out / f"{name}.json"
        out.write_text(render_all(*read_model(args.models / path)), encoding="utf-8")
        print(out)


if __name__ == "__main__":
    main()
