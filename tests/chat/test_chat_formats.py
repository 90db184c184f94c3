"""The chat formats that go by a name, against the stock library."""

import json

import pytest
from peer import Peer

from pyggml.chat.formats import ANY, Rows, built_in, built_in_names

CONVERSATIONS = [
    [("user", "Hello")],
    [("system", " Be brief. "), ("user", " Who are you?\n")],
    [
        ("system", "Be {role}, {Role}."),
        ("user", "Hi"),
        ("assistant", " Hello! \n"),
        ("user", "Bye"),
        ("assistant", "é"),
    ],
    [("user", "a"), ("assistant", "b"), ("user", "c")],
    [
        ("user", "a"),
        ("assistant", "b"),
        ("tool", " c "),
        ("function", "d"),
        ("assistant_tool_call", "e"),
        ("user", "f"),
    ],
    [("user", "\t%x%\v"), ("system", "late"), ("user", "日本")],
    [("assistant", "first"), ("user", "then")],
    [("system", "one"), ("system", "two"), ("user", "three"), ("user", "four")],
]

ASK = """
import ctypes, json, sys
import llama_cpp as lc
quiet = lc.llama_log_callback(lambda *a: None)
lc.llama_log_set(quiet, None)
apply = lc.llama_cpp._lib.llama_chat_apply_template
names = (ctypes.c_char_p * 200)()
n = lc.llama_cpp._lib.llama_chat_builtin_templates(names, ctypes.c_size_t(200))
out = {"names": sorted(x.decode() for x in names[:n])}
buf = ctypes.create_string_buffer(1 << 16)
for name in out["names"]:
    for i, chat in enumerate(json.loads(sys.argv[1])):
        messages = (lc.llama_chat_message * len(chat))()
        for m, (role, content) in zip(messages, chat):
            m.role, m.content = role.encode(), content.encode()
        for reply in (False, True):
            size = apply(name.encode(), messages, ctypes.c_size_t(len(chat)), ctypes.c_bool(reply), buf, 1 << 16)
            assert size >= 0
            out[f"{name} {i} {reply}"] = buf.raw[:size].decode()
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def stock(peer: Peer) -> dict[str, str]:
    return json.loads(peer.run(ASK, json.dumps(CONVERSATIONS)).stdout.splitlines()[-1])


def test_names_equal_the_peers(stock) -> None:
    assert built_in_names() == stock["names"] and built_in("nonsense") is None


@pytest.mark.parametrize("name", built_in_names())
def test_texts_equal_the_peers(name: str, stock) -> None:
    written = built_in(name)
    assert written is not None
    for i, conversation in enumerate(CONVERSATIONS):
        messages = [{"role": role, "content": content} for role, content in conversation]
        for reply in (False, True):
            assert written(messages, reply) == stock[f"{name} {i} {reply}"], (i, reply)


def test_a_wrong_format_is_noticed(stock) -> None:
    """The comparison has teeth: one line feed too many."""
    wrong = Rows({ANY: ("<|im_start|>{role}\n\n", "<|im_end|>\n")}, "<|im_start|>assistant\n")
    assert wrong([{"role": "user", "content": "Hello"}], True) != stock["chatml 0 True"]
