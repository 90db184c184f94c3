"""The prompts of llama-cpp-python's named chat formats.

Owns one row or function a name, after the formatters of llama_chat_format.py in 0.3.36; llama.cpp's own names are
chat/formats.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = Mapping[str, Any]


@dataclass
class ChatFormatterResponse:
    """A prompt, what ends the answer to it, and whether BOS and the like are written in it already."""

    prompt: str
    stop: str | list[str] | None = None
    stopping_criteria: Any = None
    added_special: bool = False


@dataclass(frozen=True)
class Named:
    """Messages of some roles, each behind its mark.

    roles    role -> mark; messages of other roles are left out
    gap      between a mark and its text
    empty    behind a mark without a text, as that of the answer
    seps     behind a text; two of them take turns
    system   how the first message of the system stands at the beginning; without "{}" it is always the same
    default  the system's message where there is none
    head     behind what stands at the beginning
    asks     whether the mark of the answer ends the prompt
    """

    roles: Mapping[str, str]
    seps: tuple[str, ...]
    gap: str = ""
    empty: str = ""
    system: str = "{}"
    default: str = ""
    head: str = ""
    asks: bool = True
    stop: str | None = None

    def __call__(self, messages: Sequence[Message], **_: Any) -> ChatFormatterResponse:
        system = self.system.replace("{}", system_text(messages) or self.default)
        turns = [(self.roles[m["role"]], text_of(m)) for m in messages if m["role"] in self.roles]
        turns += [(self.roles["assistant"], "")] if self.asks else []
        out = [system + self.head if system or self.gap != "\n" else ""]  # a chatml has no line for nothing
        for i, (mark, text) in enumerate(turns):
            out.append(mark + self.gap + text + self.seps[i % len(self.seps)] if text else mark + self.empty)
        return ChatFormatterResponse("".join(out), self.stop)


def text_of(message: Message) -> str:
    """The text of a message; of parts those that are texts."""
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if part.get("type") == "text")
    return content or ""


def system_text(messages: Sequence[Message]) -> str:
    """The first message of the system, or none."""
    return next((text_of(message) for message in messages if message["role"] == "system"), "")


def _roles(user: str, assistant: str) -> dict[str, str]:
    return {"user": user, "assistant": assistant}


def _lines(user: str, assistant: str, sep: str, **more: Any) -> Named:
    """Mark, text and separator, each of which ends its line."""
    return Named(_roles(user, assistant), (f"{sep}\n",), gap="\n", empty="\n", head=f"{sep}\n", **more)


def _colons(user: str, assistant: str, sep: str, sep2: str | None = None, **more: Any) -> Named:
    """Marks with a colon."""
    more = {"empty": ":", **more}
    return Named(_roles(user, assistant), (sep,) if sep2 is None else (sep, sep2), gap=": ", head=sep, **more)


_ORCA = (
    "You are a helpful assistant. Please answer truthfully and write out your thinking step by step to be sure you get the "
    "right answer. If you make a mistake or encounter an error in your thinking, say so out loud and attempt to correct it. "
    "If you don't know or aren't sure about something, say so clearly. You will act as a professional logician, "
    "mathematician, and physicist. You will also act as the most appropriate type of expert to answer any particular "
    "question or solve the relevant problem; state which expert type your are, if so. Also think of any particular named "
    "expert that would be ideal to answer the relevant question or solve the relevant problem; name and act as them, if "
    "appropriate."
)
_BUDDY = (
    "You are a helpful, respectful and honest INTP-T AI Assistant named Buddy. You are talking to a human User.\n"
    "Always answer as helpfully and logically as possible, while being safe. Your answers should not include any harmful, "
    "political, religious, unethical, racist, sexist, toxic, dangerous, or illegal content. Please ensure that your "
    "responses are socially unbiased and positive in nature.\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering something not "
    "correct. If you don't know the answer to a question, please don't share false information.\n"
    "You can speak fluently in many languages, for example: English, Chinese.\n"
    "You cannot access the internet, but you have vast knowledge, cutoff: 2021-09.\n"
    "You are trained by OpenBuddy team, (https://openbuddy.ai, https://github.com/OpenBuddy/OpenBuddy), you are based on "
    "LLaMA and Falcon transformers model, not related to GPT or OpenAI.\n\n"
)
_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
    "polite answers to the user's questions."
)
_SNOOZY = (
    "The prompt below is a question to answer, a task to complete, or a conversation to respond to; decide which and "
    "write an appropriate response."
)
_LLAMA3 = {role: f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("system", "user", "assistant")}


def _llama2(messages: Sequence[Message], **_: Any) -> ChatFormatterResponse:
    """The system's message stands within the first one."""
    turns = [(m["role"], text_of(m)) for m in messages if m["role"] in ("user", "assistant")]
    system = system_text(messages)
    out = f"[INST] <<SYS>>\n{system}\n<</SYS>> " if system else " "
    for i, (role, text) in enumerate(turns):
        sep = ("</s>", " ")[i % 2 == 0]
        mark = "<s>[INST]" if role == "user" else "[/INST]"
        if system and i == 0:
            out += text + sep
        else:
            out += f"{mark}{text} {sep}" if text else f"{mark} "
    return ChatFormatterResponse(f"{out}[/INST]")


def _mistral(messages: Sequence[Message], **_: Any) -> ChatFormatterResponse:
    out = ""
    for message in messages:
        if message["role"] == "user" and message.get("content") is not None:
            out += f"[INST] {text_of(message)}"
        elif message["role"] == "assistant" and message.get("content") is not None:
            out += f" [/INST]{text_of(message)}</s>"
    return ChatFormatterResponse(f"{out} [/INST]", "</s>")


def _saiga(messages: Sequence[Message], **_: Any) -> ChatFormatterResponse:
    turns = [(m["role"], text_of(m)) for m in messages if m["role"] in ("user", "bot", "system")]
    out = "".join(f"<s>{role}\n{text}</s>" if text else f"<s>{role}\n" for role, text in turns)
    return ChatFormatterResponse(f"{out}<s>bot".strip())


CHATML = _lines(
    "<|im_start|>user", "<|im_start|>assistant", "<|im_end|>", system="<|im_start|>system\n{}", stop="<|im_end|>"
)
FORMATS: dict[str, Callable[..., ChatFormatterResponse]] = {
    "llama-2": _llama2,
    "llama-3": Named(_LLAMA3, ("<|eot_id|>",), system="", stop="<|eot_id|>"),
    "alpaca": _colons("### Instruction", "### Response", "\n\n", "</s>", asks=False),
    "qwen": _lines(
        "<|im_start|>user",
        "<|im_start|>assistant",
        "<|im_end|>",
        system="<|im_start|>system\n{}",
        default="You are a helpful assistant.",
        stop="<|endoftext|>",
    ),
    "vicuna": _colons("USER", "ASSISTANT", " ", "</s>", system=_VICUNA),
    "oasst_llama": Named(_roles("<|prompter|>", "<|assistant|>"), ("</s>",), system="[INST] <<SYS>>\n{}\n<</SYS>>\n\n"),
    "baichuan-2": Named(_roles("<reserved_106>", "<reserved_107>"), ("",)),
    "baichuan": Named(_roles("<reserved_102>", "<reserved_103>"), ("",)),
    "openbuddy": _colons("User", "Assistant", "\n", system=_BUDDY),
    "redpajama-incite": _colons("<human>", "<bot>", "\n", stop="<human>"),
    "snoozy": _colons("### Prompt", "### Response", "\n", default=_SNOOZY, stop="###"),
    "phind": _colons(
        "### User Message",
        "### Assistant",
        "\n\n",
        system="### System Prompt\nYou are an intelligent programming assistant.",
    ),
    # there "{system_message}" stands in the prompt as it is
    "intel": _colons("### User:", "### Assistant:", "\n", system="### System:\n{}"),
    # there the messages are left out, as their roles are looked for with capitals
    "open-orca": _colons("User", "Assistant", "<|end_of_turn|>\n", empty=": ", system=_ORCA, stop="User"),
    "mistrallite": Named(_roles("<|prompter|>", "</s>\n<|assistant|>"), (" ",), system="<|system|>{}</s>"),
    "zephyr": _lines("<|user|>\n", "<|assistant|>\n", "</s>", system="<|system|>\n{}", stop="</s>"),
    "pygmalion": _lines("<|user|>", "<|model|>", "\n", system="<|system|>{}", stop="\n"),
    "chatml": CHATML,
    "mistral-instruct": _mistral,
    "chatglm3": Named(_roles("<|user|>", "<|assistant|>"), ("",), gap="\n ", system="<|system|>\n{}", stop="</s>"),
    "openchat": _lines(
        "GPT4 Correct User: ",
        "<|end_of_turn|>GPT4 Correct Assistant: ",
        "<|end_of_turn|>",
        system="{}<|end_of_turn|>",
        stop="<|end_of_turn|>",
    ),
    "saiga": _saiga,
    "gemma": Named(
        _roles("<start_of_turn>user\n", "<start_of_turn>model\n"),
        ("<end_of_turn>\n",),
        system="",
        stop="<end_of_turn>\n",
    ),
}
"""name -> the function that writes `messages` as a prompt."""
