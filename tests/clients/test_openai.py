"""The `openai` package against the real server: what a program that was written for OpenAI sees."""

import base64
import json
import math
import os
import struct
import tempfile
import threading
import time
import unittest
from typing import Literal

import httpx2 as httpx
import openai
from openai import OpenAI
from pydantic import BaseModel

from server import Server

MODEL = "gpt-4o-mini"  # an alias: programs that name no other model
QUESTION = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": "What is the capital of Japan?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


class Person(BaseModel):
    name: str
    age: int
    mood: Literal["good", "bad"]


class Case(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--alias", MODEL, "--api-key", "secret", "--parallel", "2", "--queue", "6")
        cls.client = OpenAI(base_url=cls.server.url + "/v1", api_key="secret", max_retries=0, timeout=120)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        assert cls.server.stop() == 0

    def chat(self, messages=None, **fields):
        return self.client.chat.completions.create(model=MODEL, messages=messages or QUESTION, **fields)


class Chat(Case):
    def test_an_answer(self):
        answer = self.chat(temperature=0, max_tokens=20)
        choice = answer.choices[0]
        self.assertIn("Tokyo", choice.message.content)
        self.assertEqual((answer.object, choice.index, choice.message.role), ("chat.completion", 0, "assistant"))
        usage = answer.usage
        self.assertEqual(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)
        again = self.chat(temperature=0, max_tokens=20)
        self.assertEqual(again.choices[0].message.content, choice.message.content)
        self.assertGreater(again.usage.prompt_tokens_details.cached_tokens, 0)
        self.assertGreater(answer.model_extra["timings"]["predicted_per_second"], 0)

    def test_a_stream_says_the_same(self):
        whole = self.chat(temperature=0, max_tokens=20)
        chunks = list(self.chat(temperature=0, max_tokens=20, stream=True, stream_options={"include_usage": True}))
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        self.assertEqual(text, whole.choices[0].message.content)
        reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
        self.assertEqual(reasons[-1], whole.choices[0].finish_reason)
        self.assertEqual(set(reasons[:-1]), {None})
        self.assertEqual((chunks[-1].choices, chunks[-1].usage.completion_tokens), ([], whole.usage.completion_tokens))
        self.assertEqual(len({chunk.id for chunk in chunks}), 1)

    def test_parts_roles_and_stops(self):
        messages = [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Count: one, two,"}, {"type": "text", "text": " three, four"}]},
        ]
        answer = self.chat(messages, temperature=0, max_completion_tokens=30, stop=["four", "\n\n"])
        self.assertNotIn("four", answer.choices[0].message.content)
        cut = self.chat(temperature=0, max_tokens=2)
        self.assertEqual((cut.choices[0].finish_reason, cut.usage.completion_tokens), ("length", 2))

    def test_seeds_and_choices(self):
        ask = lambda **fields: [choice.message.content for choice in self.chat(temperature=1.5, max_tokens=12, **fields).choices]
        self.assertEqual(ask(seed=7), ask(seed=7))
        several = self.chat(temperature=1.5, max_tokens=12, seed=7, n=3)
        self.assertEqual([choice.index for choice in several.choices], [0, 1, 2])
        self.assertEqual(several.choices[0].message.content, ask(seed=7)[0])
        self.assertGreater(len({choice.message.content for choice in several.choices}), 1)
        streamed = {0: "", 1: ""}
        for chunk in self.chat(temperature=1.5, max_tokens=12, seed=7, n=2, stream=True):
            for choice in chunk.choices:
                streamed[choice.index] += choice.delta.content or ""
        self.assertEqual(list(streamed.values()), [choice.message.content for choice in several.choices][:2])

    def test_log_probabilities(self):
        answer = self.chat(temperature=0, max_tokens=8, logprobs=True, top_logprobs=3)
        tokens = answer.choices[0].logprobs.content
        self.assertEqual("".join(token.token for token in tokens), answer.choices[0].message.content)
        for token in tokens:
            self.assertEqual(len(token.top_logprobs), 3)
            # Greedy: what was chosen is the likeliest.
            self.assertAlmostEqual(token.logprob, token.top_logprobs[0].logprob, places=3)
            self.assertLessEqual(sum(math.exp(top.logprob) for top in token.top_logprobs), 1.001)
            self.assertEqual(bytes(token.bytes).decode(errors="replace"), token.token)

    def test_biases(self):
        tokens = self.client.post("/../tokenize", body={"content": "Tokyo"}, cast_to=httpx.Response)
        banned = {str(token): -100 for token in tokens.json()["tokens"]}
        spaced = self.client.post("/../tokenize", body={"content": " Tokyo"}, cast_to=httpx.Response).json()["tokens"]
        banned |= {str(token): -100 for token in spaced}
        self.assertNotIn("Tokyo", self.chat(temperature=0, max_tokens=20, logit_bias=banned).choices[0].message.content)

    def test_leaving_a_stream_frees_its_place(self):
        with self.chat(max_tokens=1500, stream=True, extra_body={"ignore_eos": True}) as stream:
            next(iter(stream))
        deadline = time.monotonic() + 30
        while (running := httpx.get(self.server.url + "/metrics", headers={"Authorization": "Bearer secret"}).text) and \
                "pocket_llm_requests_running 0" not in running:
            self.assertLess(time.monotonic(), deadline, "the request still runs")
            time.sleep(0.05)


class Formats(Case):
    def test_a_schema_by_parse(self):
        messages = [{"role": "user", "content": "Describe a person."}]
        for temperature in (0, 1, 2):
            answer = self.client.chat.completions.parse(
                model=MODEL, messages=messages, response_format=Person, temperature=temperature, max_tokens=400, seed=3)
            if answer.choices[0].finish_reason == "stop":
                self.assertIsInstance(answer.choices[0].message.parsed, Person)

    def test_an_object(self):
        answer = self.chat(response_format={"type": "json_object"}, temperature=0, max_tokens=300)
        if answer.choices[0].finish_reason == "stop":
            self.assertIsInstance(json.loads(answer.choices[0].message.content), dict)

    def test_a_schema_streamed(self):
        schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
        form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
        chunks = self.chat(response_format=form, temperature=2, stream=True, max_tokens=50)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        self.assertIsInstance(json.loads(text)["ok"], bool)

    def test_a_schema_that_can_not_be_enforced(self):
        schema = {"type": "object", "properties": {"a": {"type": "strange"}}}
        form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
        with self.assertRaises(openai.BadRequestError) as refused:
            self.chat(response_format=form)
        self.assertIn("properties/a", refused.exception.body["message"])


class ToolCalls(Case):
    def calls(self, **fields):
        messages = [{"role": "user", "content": "What is the weather in Paris for two days?"}]
        return self.chat(messages, tools=[WEATHER], max_tokens=200, **fields)

    def check(self, call):
        self.assertEqual(call.function.name, "get_weather")
        arguments = json.loads(call.function.arguments)
        self.assertIn(arguments["city"], ["Paris", "Rome"])
        self.assertTrue(1 <= arguments["days"] <= 7)
        self.assertEqual(set(arguments), {"city", "days"})
        return arguments

    def test_a_round_trip(self):
        for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
            for temperature in (0, 2):
                answer = self.calls(tool_choice=choice, temperature=temperature, parallel_tool_calls=False)
                message = answer.choices[0].message
                self.assertEqual(len(message.tool_calls), 1)
                self.check(message.tool_calls[0])
                self.assertEqual(answer.choices[0].finish_reason, "tool_calls" if choice == "required" else "stop")
        messages = [{"role": "user", "content": "What is the weather?"}, message.model_dump(exclude_none=True),
                    {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "{\"sky\": \"blue\"}"}]
        final = self.chat(messages, tools=[WEATHER], tool_choice="none", max_tokens=20)
        self.assertIsNone(final.choices[0].message.tool_calls)
        self.assertIsInstance(final.choices[0].message.content, str)

    def test_streamed(self):
        name, arguments, identities = None, "", set()
        for chunk in self.calls(tool_choice="required", temperature=1, stream=True, parallel_tool_calls=False):
            for call in chunk.choices[0].delta.tool_calls or []:
                name = name or call.function.name
                arguments += call.function.arguments or ""
                identities |= {call.id} - {None}
        self.assertEqual((name, len(identities)), ("get_weather", 1))
        self.assertIn(json.loads(arguments)["city"], ["Paris", "Rome"])

    def test_what_it_likes(self):
        answer = self.calls(tool_choice="auto", temperature=0)
        for call in answer.choices[0].message.tool_calls or []:
            self.check(call)


    def test_some_are_allowed(self):
        clock = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}}
        reference = {"type": "function", "function": {"name": "clock"}}
        allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [reference]}}
        messages = [{"role": "user", "content": "What is the weather in Paris for two days?"}]
        answer = self.chat(messages, tools=[WEATHER, clock], tool_choice=allowed, temperature=0, max_tokens=200, parallel_tool_calls=False)
        self.assertEqual([call.function.name for call in answer.choices[0].message.tool_calls], ["clock"])


class Others(Case):
    def test_completions(self):
        answer = self.client.completions.create(model=MODEL, prompt="The capital of France is", max_tokens=5, temperature=0)
        self.assertIn("Paris", answer.choices[0].text)
        echoed = self.client.completions.create(model=MODEL, prompt=["One, two,", "A, B,"], max_tokens=4, temperature=0, echo=True, logprobs=2)
        for choice, prompt in zip(echoed.choices, ["One, two,", "A, B,"]):
            self.assertTrue(choice.text.startswith(prompt))
            self.assertIsNone(choice.logprobs.token_logprobs[0])
            self.assertEqual("".join(choice.logprobs.tokens), choice.text)
            self.assertEqual(len(choice.logprobs.tokens), len(choice.logprobs.token_logprobs))
        scored = self.client.completions.create(model=MODEL, prompt="One, two,", max_tokens=0, echo=True, logprobs=1)
        self.assertEqual((scored.choices[0].text, scored.usage.completion_tokens), ("One, two,", 0))
        streamed = self.client.completions.create(model=MODEL, prompt="The capital of France is", max_tokens=5, temperature=0, stream=True)
        self.assertEqual("".join(chunk.choices[0].text for chunk in streamed if chunk.choices), answer.choices[0].text)

    def test_from_nothing(self):
        begun = self.client.completions.create(model=MODEL, prompt="", suffix="", max_tokens=5, temperature=0)
        self.assertEqual(begun.usage.prompt_tokens, 1)

    def test_models(self):
        models = self.client.models.list().data
        self.assertTrue(models)
        self.assertEqual(self.client.models.retrieve(models[0].id).id, models[0].id)
        with self.assertRaises(openai.NotFoundError):
            self.client.models.retrieve("no-such-model")

    def test_embeddings(self):
        texts = ["The cat sits on the mat.", "A cat is sitting on a mat.", "Interest rates rose in March."]
        vectors = [item.embedding for item in self.client.embeddings.create(model=MODEL, input=texts, encoding_format="float").data]
        product = lambda a, b: sum(x * y for x, y in zip(a, b))
        for vector in vectors:
            self.assertAlmostEqual(product(vector, vector), 1, places=4)
        self.assertGreater(product(vectors[0], vectors[1]), product(vectors[0], vectors[2]))
        # The client's own default is base64; alone and together are the same.
        alone = self.client.embeddings.create(model=MODEL, input=texts[1])
        self.assertLess(max(abs(a - b) for a, b in zip(alone.data[0].embedding, vectors[1])), 1e-3)
        raw = httpx.post(self.server.url + "/v1/embeddings", headers={"Authorization": "Bearer secret"}, timeout=60,
                         json={"input": texts[1], "encoding_format": "base64"}).json()["data"][0]["embedding"]
        packed = base64.b64decode(raw)
        self.assertEqual(list(struct.unpack(f"<{len(packed) // 4}f", packed)), alone.data[0].embedding)

    def test_responses(self):
        answer = self.client.responses.create(model=MODEL, input="What is the capital of Japan?", instructions=QUESTION[0]["content"],
                                              temperature=0, max_output_tokens=40)
        self.assertIn("Tokyo", answer.output_text)
        kinds, text = [], ""
        with self.client.responses.stream(model=MODEL, input=QUESTION, instructions="Be brief.", temperature=0, max_output_tokens=40) as stream:
            for event in stream:
                kinds.append(event.type)
                text += event.delta if event.type == "response.output_text.delta" else ""
            final = stream.get_final_response()
        self.assertEqual(kinds[:2], ["response.created", "response.in_progress"])
        self.assertIn(kinds[-1], ["response.completed", "response.incomplete"])
        self.assertEqual(text, final.output_text)
        scored = self.client.responses.create(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=8, top_logprobs=2,
                                              include=["message.output_text.logprobs", "reasoning.encrypted_content"])
        part = scored.output[0].content[0]
        self.assertEqual("".join(token.token for token in part.logprobs), part.text)
        self.assertEqual({len(token.top_logprobs) for token in part.logprobs}, {2})
        again = self.client.responses.create(model=MODEL, input=[*QUESTION, *scored.output, {"role": "user", "content": "And of France?"}],
                                             temperature=0, max_output_tokens=8)
        self.assertTrue(again.output_text)
        tool = {"type": "function", "strict": True, **WEATHER["function"]}
        called = self.client.responses.create(model=MODEL, input="The weather in Rome?", tools=[tool], tool_choice="required", max_output_tokens=200)
        call = next(item for item in called.output if item.type == "function_call")
        self.assertIn(json.loads(call.arguments)["city"], ["Paris", "Rome"])
        parsed = self.client.responses.parse(model=MODEL, input="Describe a person.", text_format=Person, max_output_tokens=400)
        if parsed.status == "completed":
            self.assertIsInstance(parsed.output_parsed, Person)


class Errors(Case):
    def test_each_kind_has_its_exception(self):
        wrong = OpenAI(base_url=self.server.url + "/v1", api_key="wrong", max_retries=0)
        with self.assertRaises(openai.AuthenticationError):
            wrong.models.list()
        with self.assertRaises(openai.NotFoundError) as missing:
            self.client.chat.completions.create(model="no-such-model", messages=QUESTION)
        self.assertEqual(missing.exception.code, "model_not_found")
        for fields, parameter in [({"temperature": 9}, "temperature"), ({"top_p": "x"}, "top_p"), ({"n": 0}, "n"), ({"stop": [1]}, "stop")]:
            with self.assertRaises(openai.BadRequestError) as bad:
                self.chat(**fields)
            self.assertEqual(bad.exception.param, parameter)
        with self.assertRaises(openai.BadRequestError) as long:
            self.chat([{"role": "user", "content": "word " * 20_000}])
        self.assertEqual(long.exception.code, "context_length_exceeded")

    def test_a_time_out_ends_the_request(self):
        with self.assertRaises(openai.APITimeoutError):
            self.client.with_options(timeout=0.3).chat.completions.create(
                model=MODEL, messages=QUESTION, max_tokens=1500, extra_body={"ignore_eos": True})

    def test_too_many_at_once_are_served_by_retries(self):
        told, answers = [], []
        retrying = self.client.with_options(max_retries=40)  # on a busy machine each answer takes seconds

        def ask():
            try:
                answers.append(retrying.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=4))
            except openai.OpenAIError as error:
                told.append(error)

        threads = [threading.Thread(target=ask) for _ in range(16)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        self.assertEqual((len(answers), told), (16, []))


class KeyFile(unittest.TestCase):
    def test_keys_can_be_exchanged(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "keys")
            with open(path, "w") as file:
                file.write("old\n")
            server = Server("--api-key-file", path)
            try:
                client = lambda key: OpenAI(base_url=server.url + "/v1", api_key=key, max_retries=0)
                self.assertTrue(client("old").models.list().data)
                with open(path, "w") as file:
                    file.write("# from today on\nnew\n")
                deadline = time.monotonic() + 30
                while True:
                    try:
                        client("new").models.list()
                        break
                    except openai.AuthenticationError:
                        self.assertLess(time.monotonic(), deadline)
                        time.sleep(0.1)
                with self.assertRaises(openai.AuthenticationError):
                    client("old").models.list()
            finally:
                server.stop()
