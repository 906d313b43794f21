#!/usr/bin/env python3
"""Render chats with jinja2 as the publishers' own library does: the reference for tests/templates.rs.

    tools/render_templates.py [--models DIR] [--chats FILE] [--out DIR]     write the expected texts anew
    tools/render_templates.py --check                                       compare them with those that are there

Reads the chat templates of the test models in DIR ($POCKET_LLM_TEST_MODELS, else test-models in the cache that
`make test-models` fills) and renders the chats of tests/fixtures/templates/chats.json with each. Writes one JSON file for
each model beside it: name of the chat → {"text": …}, or {"refused": …} where the template raises an exception. A date that
a template writes is given by its format, in ⟦⟧.

A template that has no system role, or knows no tools, gets the chat in the form that ARCHITECTURE.md describes ("Roles and
tools"): it is written here a second time, so that the server's own can be wrong. One that refuses a chat gets it with user
and assistant in turns.

    tools/render_templates.py --template FILE [--bos TEXT] [--eos TEXT]      any template, to standard output
"""

import argparse
import copy
import importlib.util
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

NEEDS = "jinja2==3.1.6"
if not importlib.util.find_spec("jinja2"):
    if sys.prefix == sys.base_prefix:
        sys.exit(f"not installing {NEEDS} outside of a venv: run tools/setup.sh, then the cache's venv/bin/python {sys.argv[0]}")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", NEEDS], check=True)

from jinja2 import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Scope
from jinja2.sandbox import ImmutableSandboxedEnvironment

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "templates"
CACHE = Path(os.environ.get("POCKET_LLM_CACHE")
             or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pocket-llm")
MODELS = {
    "gemma3": "gemma3/tokenizer_config.json",
    "llama3.2": "llama3.2/tokenizer_config.json",
    "qwen2.5": "qwen2.5/tokenizer_config.json",
    "qwen3": "qwen3/tokenizer_config.json",
    "smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf",
    "deepseek-r1": FIXTURES / "deepseek-r1.jinja",
}
KNOW_TOOLS = {"llama3.2", "qwen2.5", "qwen3"}
SPECIAL = {"deepseek-r1": {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}}
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
    return f"⟦{form}⟧"


def compile_template(source):
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment.from_string(source)


def as_in_the_library(message, names):
    """A message as the library is given it: arguments are an object."""
    made = {"role": message["role"], "content": message["content"]}
    if calls := message.get("tool_calls"):
        made["tool_calls"] = [
            {"id": call["id"], "type": "function",
             "function": {"name": call["name"], "arguments": json.loads(call["arguments"])}} for call in calls]
    if call_id := message.get("tool_call_id"):
        if call_id in names:
            made["name"] = names[call_id]
        made["tool_call_id"] = call_id
    return made


def functions(tools):
    """The tools as the library is given them, or None."""
    if not tools or tools["choice"] == "none":
        return None
    return [{"type": "function", "function": {key: value for key, value in tool.items() if value is not None}}
            for tool in tools["tools"]]


def joined(*texts):
    return "\n\n".join(text for text in texts if text)


def described(messages, tools, parallel):
    """For a template that knows no tools."""
    made = []
    previous = None
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "tool":
            content = f"<tool_response>\n{content}\n</tool_response>"
            if previous == "tool":
                made[-1]["content"] += "\n" + content
            else:
                made.append({"role": "user", "content": content})
        else:
            calls = [tojson({"name": call["function"]["name"], "arguments": call["function"]["arguments"]})
                     for call in message.get("tool_calls", [])]
            lines = [content] if content else []
            lines += [f"<tool_call>\n{call}\n</tool_call>" for call in calls]
            made.append({"role": role, "content": "\n".join(lines)})
        previous = role
    if tools:
        several = ("You may make several calls, one after the other, each in tags of its own." if parallel
                   else "Make one call at a time.")
        text = "\n".join([
            "# Tools", "",
            "You may call tools to answer the user. Each line between <tools> and </tools> describes one; its parameters "
            "are the JSON Schema of its arguments:",
            "<tools>", *(tojson(tool["function"]) for tool in tools), "</tools>", "",
            "To call a tool, write a JSON object with its name and its arguments between tags, and nothing after them:",
            "<tool_call>", '{"name": "tool name", "arguments": {"argument name": "value"}}', "</tool_call>",
            "You then get the result between <tool_response> and </tool_response>. "
            f"{several} If no tool helps, answer without one."])
        if made[0]["role"] == "system":
            made[0]["content"] = joined(made[0]["content"], text)
        else:
            made.insert(0, {"role": "system", "content": text})
    return made


def system_into_user(messages, later_only):
    made, lead = [], []
    for index, message in enumerate(copy.deepcopy(messages)):
        if message["role"] == "system" and (index > 0 or not later_only):
            lead.append(message["content"])
            continue
        if message["role"] == "user" and lead:
            message["content"] = joined(*lead, message["content"])
            lead = []
        made.append(message)
    if lead:
        made.append({"role": "user", "content": joined(*lead)})
    return made


def one_call_each(messages):
    made, rest = [], list(messages)
    while rest:
        message = rest.pop(0)
        calls = message.get("tool_calls", [])
        if len(calls) < 2:
            made.append(message)
            continue
        results = []
        while rest and rest[0]["role"] == "tool":
            results.append(rest.pop(0))
        for index, call in enumerate(calls):
            content = message["content"] if index == 0 else ""
            made.append({"role": "assistant", "content": content, "tool_calls": [call]})
            own = [result for result in results if result["tool_call_id"] == call["id"]][:1]
            made += own
            results = [result for result in results if result not in own]
        made += results
    return made


def in_turns(messages):
    made = []
    for message in one_call_each(system_into_user(messages, later_only=True)):
        last = made[-1] if made else None
        if last and last["role"] == message["role"] != "tool" and not last.get("tool_calls"):
            last["content"] = joined(last["content"], message["content"])
            if "tool_calls" in message:
                last["tool_calls"] = message["tool_calls"]
        else:
            made.append(message)
    return made


def shows_system(template, special):
    shown = render_once(template, special, [{"role": "system", "content": "INSTRUCTION"},
                                            {"role": "user", "content": "Hello"}], None)
    return "INSTRUCTION" in shown.get("text", "")


def render(template, special, knows_tools, chat):
    if isinstance(chat, list):
        chat = {"messages": chat, "tools": None}
    names = {call["id"]: call["name"] for message in chat["messages"] for call in message.get("tool_calls", [])}
    messages = [as_in_the_library(message, names) for message in chat["messages"]]
    tools = functions(chat["tools"])
    if not knows_tools:
        messages, tools = described(messages, tools, bool(chat["tools"]) and chat["tools"]["parallel"]), None
    if not shows_system(template, special):
        messages = system_into_user(messages, later_only=False)
    first = render_once(template, special, messages, tools)
    if "refused" in first:
        second = render_once(template, special, in_turns(messages), tools)
        return second if "text" in second else first
    return first


def render_once(template, special, messages, tools):
    """`special` has only the tokens that the model has: the others are undefined for a template."""
    try:
        return {"text": template.render(
            messages=messages, tools=tools, documents=None, add_generation_prompt=True, **special)}
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
    if path.suffix == ".jinja":
        return path.read_text(encoding="utf-8"), SPECIAL[path.stem]
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
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--template", type=Path)
    parser.add_argument("--bos")
    parser.add_argument("--eos")
    args = parser.parse_args()
    chats = json.loads(args.chats.read_text(encoding="utf-8"))

    def render_all(source, special, knows_tools):
        template = compile_template(source)
        rendered = {name: render(template, special, knows_tools, chat) for name, chat in chats.items()}
        return json.dumps(rendered, ensure_ascii=False, indent=2) + "\n"

    if args.template:
        special = {"bos_token": args.bos, "eos_token": args.eos}
        source = args.template.read_bytes().decode("utf-8")
        special = {name: text for name, text in special.items() if text is not None}
        sys.stdout.write(render_all(source, special, knows_tools=True))
        return
    stale = []
    for name, path in MODELS.items():
        out = args.out / f"{name}.json"
        text = render_all(*read_model(args.models / path), name in KNOW_TOOLS)
        if not args.check:
            out.write_text(text, encoding="utf-8")
            print(out)
        elif not out.is_file() or out.read_text(encoding="utf-8") != text:
            stale.append(out.name)
    if stale:
        sys.exit(f"{', '.join(stale)} in {args.out} differ from what jinja2 renders: run tools/render_templates.py")


if __name__ == "__main__":
    main()
