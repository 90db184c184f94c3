"""Chat templates within their limits, attacks on them, and conversations that keep their tokens."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyggml.chat import ChatError, ChatTemplate, Conversation, prompt_tokens, sandbox
from pyggml.chat.formats import built_in
from pyggml.gguf import GGUFFile
from pyggml.tokenizer import Tokenizer
from pyggml.tokenizer.bpe import BYTE_CHARACTERS

USER = {"role": "user", "content": "Hello"}
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tokenizer(*more: str, merges: tuple[str, ...] = (), **keys: Any) -> Tokenizer:
    """Every byte, "<s>", "</s>" and `more`, all but the bytes being control tokens."""
    tokens = [*BYTE_CHARACTERS, *(m.replace(" ", "") for m in merges), "<s>", "</s>", *more]
    n = len(tokens) - len(more) - 2
    return Tokenizer.from_metadata(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [1] * n + [3] * (len(more) + 2),
            "tokenizer.ggml.merges": list(merges),
            "tokenizer.ggml.bos_token_id": n,
            "tokenizer.ggml.eos_token_id": n + 1,
            **{f"tokenizer.ggml.{key}": value for key, value in keys.items()},
        }
    )


TOKENS = tokenizer("<|im_start|>", "<|im_end|>", merges=("a b", "c d", "ab cd"))


# ---- templates


def test_what_templates_rely_on() -> None:
    """The conventions of transformers and llama.cpp."""

    def text(source: str, *messages: dict[str, Any], **variables: Any) -> str:
        return ChatTemplate(source, "<s>", "</s>").render(messages or [USER], **variables)

    assert text(CHATML) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert text(CHATML, add_generation_prompt=False) == "<|im_start|>user\nHello<|im_end|>\n"
    assert text("{{ bos_token }}x{{ eos_token }}{{ messages[0].content }}") == "<s>x</s>Hello"
    assert text("{%- for i in range(9) -%}\n{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "012"
    assert text("  {% if true %}\nx\n  {% endif %}\ny") == "x\ny"  # trim_blocks and lstrip_blocks
    assert text("{{ {'a': 'é<b>'} | tojson }}{{ tools }}", tools=[1]) == '{"a": "é<b>"}[1]'
    assert text("{{ {'a': 1} | tojson(indent=2) }}") == '{\n  "a": 1\n}'
    assert len(text("{{ strftime_now('%Y-%m-%d') }}")) == 10
    assert text("a{% generation %}b{% endgeneration %}c") == "abc"
    assert (
        text("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}")
        == "1"
    )
    assert text("{{ messages[0].content.strip() }}{{ none_such }}") == "Hello"
    with pytest.raises(ChatError, match=r"^the chat template: roles must take turns$"):
        text("{{ raise_exception('roles must\ntake turns') }}")


def test_messages() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}")
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert template.render([{"role": "user", "content": parts}]) == "user:a\nb;"
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    assert template.render([call]) == "assistant:None;"
    for bad, message in [
        ("x", "message 0 is not a dict"),
        ({"content": "x"}, "message 0 is not a dict with a role"),
        ({"role": "user"}, "message 0 has no content"),
        ({"role": "user", "content": 3}, "its content is a int"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "a part of type 'image_url'"),
        ({"role": "user", "content": "x", "more": {1, 2}}, "cannot be handed to a template"),
    ]:
        with pytest.raises(ChatError, match=message):
            template.render([bad])


ATTACKS = {
    "{{ ''.__class__ }}": "SecurityError",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}": "SecurityError",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}": "SecurityError",
    "{{ messages.__class__ }}": "SecurityError",
    "{{ messages|attr('__class__') }}": "SecurityError",
    "{{ '{0.__class__}'.format(1) }}": "SecurityError",
    "{% include '/etc/passwd' %}": "no loader",
    "{% import 'os' as os %}": "no loader",
    "{% for i in range(10000000) %}{% endfor %}": "[Rr]ange",
    "{{ 'a' * 10 ** 10 }}": "it needs more than|takes too long",
    "{{ 'x'|center(10 ** 11) }}": "it needs more than|takes too long",
    "{{ '%099999999999d' % 1 }}": "it needs more than|takes too long",
    "{% for i in range(90000) %}{{ 'x' * 1000 }}{% endfor %}": "longer than 8388608 characters",
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}": "it needs more|too long",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "calls itself without end",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}": "nested too deeply",
    "{% for x in %}": "line 1: Expected an expression",
    "{{ 1 / 0 }}": "ZeroDivisionError",
    "x" * (1 << 20) + "x": "has 1048577 characters, more than 1048576",
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack[:40])
def test_attacks_end_in_one_line(attack: str) -> None:
    with pytest.raises(ChatError, match=ATTACKS[attack]) as e:
        ChatTemplate(attack).render([USER])
    assert "\n" not in str(e.value) and len(str(e.value)) < 400
    assert ChatTemplate("{{ messages[0].content }}").render([USER]) == "Hello"  # the next one is served


@pytest.mark.slow
def test_endless_loops_end(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox._worker.close()
    monkeypatch.setattr(sandbox, "CPU_SECONDS", 0.5)
    for attack in (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "{{ (7 ** (10 ** 8)) % 3 }}",  # one operation of C
    ):
        with pytest.raises(ChatError, match="takes too long"):
            ChatTemplate(attack).render([USER])
    monkeypatch.undo()
    assert ChatTemplate("{{ messages[0].content }}").render([USER]) == "Hello"


def test_the_process_dies_and_another_one_serves() -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    assert template.render([USER]) == "Hello"
    process = sandbox._worker._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert template.render([USER]) == "Hello" and sandbox._worker._process is not process


def test_the_clock_ends_a_stuck_process(monkeypatch: pytest.MonkeyPatch) -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    template.render([USER])
    process = sandbox._worker._process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    monkeypatch.setattr(sandbox, "SECONDS", 0.2)
    with pytest.raises(ChatError, match="takes too long"):
        template.render([USER])
    monkeypatch.undo()
    assert template.render([USER]) == "Hello"


def test_no_process_is_left_behind() -> None:
    code = (
        "from pyggml.chat import ChatTemplate, sandbox\n"
        "print(ChatTemplate('{{ 1 }}').render([{'role': 'user', 'content': 'x'}]), sandbox._worker._process.pid)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    text, pid = done.stdout.split()
    assert text == "1" and done.stderr == ""
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_importing_is_cheap() -> None:
    code = "import sys, pyggml.chat; sys.exit(any(m in sys.modules for m in ('jinja2', 'numpy', 'tokenizers')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_which_template_counts() -> None:
    metadata = {"tokenizer.chat_template": "plain", "tokenizer.chat_template.tool_use": "with tools"}
    assert ChatTemplate.choose(metadata, TOKENS).render([USER]) == "plain"
    assert ChatTemplate.choose(metadata, TOKENS, tools=True).render([USER]) == "with tools"
    assert (
        ChatTemplate.choose({}, TOKENS).render([USER]) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ChatTemplate.choose(metadata, TOKENS, "vicuna").render([USER]) == "USER: Hello\nASSISTANT:"
    assert ChatTemplate.choose(metadata, TOKENS, "{{ bos_token }}{{ eos_token }}").render([USER]) == "<s></s>"
    with pytest.raises(ChatError, match=r"'nonsense' is neither Jinja nor a known name; known are: bailing.*zephyr"):
        ChatTemplate.choose(metadata, TOKENS, "nonsense")
    with pytest.raises(ChatError, match="must be a string, it is a int"):
        ChatTemplate.choose({"tokenizer.chat_template": 3}, TOKENS)


def test_smollm2s_template(smollm2: Path) -> None:
    with GGUFFile.open(smollm2) as f:
        t = Tokenizer.from_metadata(f.metadata)
        template = ChatTemplate.choose(f.metadata, t)
    system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    text = template.render([USER])
    assert text == system + "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert t.decode(prompt_tokens(t, text), special=True) == text


def test_bos_is_there_once() -> None:
    t = tokenizer(add_bos_token=True, add_eos_token=True)
    x = t.encode("x", add_special=False)
    assert prompt_tokens(t, "x") == prompt_tokens(t, "<s>x") == [t.bos, *x]
    assert prompt_tokens(TOKENS, "x") == TOKENS.encode("x", add_special=False)


# ---- conversations


def conversation(source: str = CHATML, system: str = "", t: Tokenizer = TOKENS) -> Conversation:
    return Conversation(ChatTemplate(source, "<s>", "</s>"), t, system)


def test_turns_bring_only_what_is_new() -> None:
    c = conversation(system="S")
    first = c.add_user("abcd")
    assert first.n_kept == 0 and first.new == first.tokens
    text = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nabcd<|im_end|>\n<|im_start|>assistant\n"
    assert TOKENS.decode(first.tokens, special=True) == text
    said = TOKENS.encode("ab", add_special=False) + TOKENS.encode("cd", add_special=False)  # not as text is cut
    assert said != TOKENS.encode("abcd", add_special=False)
    c.add_assistant(said, "abcd")
    second = c.add_user("x")
    assert second.tokens[: second.n_kept] == [*first.tokens, *said]
    assert (
        TOKENS.decode(second.new, special=True) == "<|im_end|>\n<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"
    )
    assert second.new[0] == TOKENS.vocab.ids["<|im_end|>"]


def test_white_space_that_the_template_takes_from_replies() -> None:
    c = conversation(CHATML.replace("message['content']", "message['content'] | trim"))
    first = c.add_user("q")
    said = TOKENS.encode(" a \n", add_special=False)
    c.add_assistant(said, " a \n")
    second = c.add_user("r")
    assert second.tokens[: second.n_kept] == [*first.tokens, *said]
    assert TOKENS.decode(second.new, special=True).startswith("<|im_end|>\n<|im_start|>user\nr")


def test_replies_that_the_template_shortens() -> None:
    """Thoughts are left out of the history: what is common stays, the rest is computed again."""
    c = conversation(CHATML.replace("message['content']", "message['content'].split('</t>')[-1]"))
    first = c.add_user("q")
    c.add_assistant(TOKENS.encode("hm</t>a", add_special=False), "hm</t>a")
    second = c.add_user("r")
    assert second.n_kept == len(first.tokens)
    assert TOKENS.decode(second.new, special=True).startswith("a<|im_end|>\n")


def test_an_error_changes_nothing() -> None:
    source = "{% if messages|length > 2 %}{{ raise_exception('enough') }}{% endif %}" + CHATML
    c = conversation(source)
    c.add_user("a")
    c.add_assistant([1], "x")
    before = list(c.messages), list(c.tokens)
    with pytest.raises(ChatError, match="enough"):
        c.add_user("b")
    assert (c.messages, c.tokens) == before
    assert c.undo() == "a" and c.messages == [] and c.undo() is None


def test_undo_and_clear() -> None:
    c = conversation(system="S")
    first = c.add_user("a")
    c.add_assistant([5], "x")
    second = c.add_user("b")
    assert c.undo() == "b"
    assert c.add_user("b") == second
    c.add_assistant([6], "y")
    assert c.undo() == "b" and c.undo() == "a"
    assert c.add_user("a").tokens == first.tokens
    c.clear()
    assert c.messages == [{"role": "system", "content": "S"}] and c.tokens == []


def test_save_and_load(tmp_path: Path) -> None:
    c = conversation(system="S")
    c.add_user("äb\ud800")
    c.add_assistant([5], "x")
    c.add_user("left open")
    c.save(tmp_path / "c.json")
    other = conversation()
    other.load(tmp_path / "c.json")
    assert other.messages == c.messages[:-1]
    turn = other.add_user("y")
    assert turn.n_kept == 0 and TOKENS.decode(turn.tokens, special=True).startswith("<|im_start|>system\nS<|im_end|>\n")
    assert other.undo() == "y" and other.undo() == "äb\ud800"
    for text in ("", "[]", '{"messages": 3}', '{"messages": [{"role": "user"}]}', "{", "[" * 100000):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ChatError, match="not a saved conversation") as e:
            other.load(tmp_path / "bad.json")
        assert "\n" not in str(e.value)
    with pytest.raises(ChatError, match="No such file"):
        other.load(tmp_path / "none" / "c.json")
    with pytest.raises(ChatError, match="No such file"):
        c.save(tmp_path / "none" / "c.json")
    assert json.loads((tmp_path / "c.json").read_bytes().decode("utf-8", "surrogatepass"))["messages"] == c.messages


WRITTEN = ["chatml", "llama2-sys", "mistral-v1", "gemma", "vicuna", "llama3", "zephyr", "deepseek3"]


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(WRITTEN),
    exchanges=st.lists(
        st.tuples(st.text("ab cd\né", max_size=8), st.text("ab cd\n", max_size=8)), min_size=1, max_size=4
    ),
    seed=st.integers(0, 99),
)
def test_the_tokens_spell_the_conversation(name: str, exchanges: list[tuple[str, str]], seed: int) -> None:
    """Whatever is said, in whatever pieces: the tokens' text is the template's, but for white space around replies."""
    written = built_in(name)
    assert written is not None
    random_ = random.Random(seed)
    c = Conversation(ChatTemplate(written), TOKENS)
    kept: list[int] = []
    for question, answer in exchanges:
        turn = c.add_user(question)
        assert turn.tokens[: turn.n_kept] == kept[: turn.n_kept]
        if c.template.render(c.messages).replace(" ", "").replace("\n", "") != TOKENS.decode(
            turn.tokens, special=True
        ).replace(" ", "").replace("\n", ""):
            raise AssertionError(TOKENS.decode(turn.tokens, special=True))
        pieces = [answer[i : i + 3] for i in range(0, len(answer), 3)] if random_.random() < 0.5 else [answer]
        said = [token for piece in pieces for token in TOKENS.encode(piece, add_special=False)]
        c.add_assistant(said, answer)
        kept = [*turn.tokens, *said]
        assert c.tokens == kept


def test_a_turn_that_forgot_the_reply_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison has teeth: text taken from the wrong place shows."""
    monkeypatch.setattr("pyggml.chat.conversation._after", lambda prompt, before, reply: prompt[len(before) :])
    with pytest.raises(AssertionError):
        test_turns_bring_only_what_is_new()


def test_what_a_template_appends_to_is_its_own() -> None:
    """Kimi K2's sorts messages into lists; the caller's stay as they are, and the next rendering begins anew."""
    messages = [{"role": "user", "content": "a"}]
    template = ChatTemplate(
        "{%- set _ = messages.append({'content': 'b'}) -%}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    assert [template.render(messages) for _ in range(2)] == ["ab", "ab"]
    assert messages == [{"role": "user", "content": "a"}]
