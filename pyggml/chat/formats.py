"""Chat formats that go by a name: how llama.cpp writes a conversation for models whose file brings no template.

Owns one row or function a name, after llm_chat_apply_template in llama-chat.cpp.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

Message = Mapping[str, str]  # "role" and "content"
Format = Callable[[Sequence[Message], bool], str]  # (messages, whether a reply is wanted) -> text

_SPACE = " \t\n\v\f\r"  # isspace of C
_BUILT_IN: dict[str, Format] = {}
ANY = "*"  # a role that has no row of its own


@dataclass(frozen=True)
class Rows:
    """A format that writes each message by itself: what comes before and after the content, by role.

    In both {role} is the role, {Role} begins with a capital, {ROLE} is all capitals. Roles without a row are left out.
    """

    around: Mapping[str, tuple[str, str]]
    reply: str = ""  # where an answer is to begin
    opening: str = ""
    strip: tuple[str, ...] = ()  # roles whose content loses white space at both ends

    def __call__(self, messages: Sequence[Message], reply: bool) -> str:
        out = [self.opening]
        for message in messages:
            role, content = message["role"], message["content"]
            row = self.around.get(role) or self.around.get(ANY)
            if row is not None:
                if role in self.strip or ANY in self.strip:
                    content = content.strip(_SPACE)
                out += [_named(row[0], role), content, _named(row[1], role)]
        return "".join(out) + (self.reply if reply else "")


def _named(text: str, role: str) -> str:
    capitals = "".join(c.upper() if c.isascii() else c for c in role)
    return text.replace("{role}", role).replace("{Role}", capitals[:1] + role[1:]).replace("{ROLE}", capitals)


def built_in_names() -> list[str]:
    """The names that `--chat-template` takes."""
    return sorted(_BUILT_IN)


def built_in(name: str) -> Format | None:
    """The format of this name, if there is one."""
    return _BUILT_IN.get(name)


def _rows(
    name: str, before: str, after: str, reply: str = "", opening: str = "", strip: tuple[str, ...] = (), **roles: str
) -> None:
    """A row for any role; `roles` are rows of single ones, before and after the content parted by a "%"."""
    around = {role: (text.split("%")[0], text.split("%")[1]) for role, text in roles.items()}
    if before or after:
        around[ANY] = (before, after)
    _BUILT_IN[name] = Rows(around, reply, opening, strip)


ALL = (ANY,)
_rows("chatml", "<|im_start|>{role}\n", "<|im_end|>\n", "<|im_start|>assistant\n")
_rows("phi3", "<|{role}|>\n", "<|end|>\n", "<|assistant|>\n")
_rows("phi4", "<|im_start|>{role}<|im_sep|>", "<|im_end|>", "<|im_start|>assistant<|im_sep|>")
_rows("falcon3", "<|{role}|>\n", "\n", "<|assistant|>\n")
_rows("zephyr", "<|{role}|>\n", "<|endoftext|>\n", "<|assistant|>\n")
_rows(
    "llama3",
    "<|start_header_id|>{role}<|end_header_id|>\n\n",
    "<|eot_id|>",
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    strip=ALL,
)
_rows(
    "llama4",
    "<|header_start|>{role}<|header_end|>\n\n",
    "<|eot|>",
    "<|header_start|>assistant<|header_end|>\n\n",
    strip=ALL,
)
_rows("chatglm3", "<|{role}|>\n ", "", "<|assistant|>", opening="[gMASK]sop")
_rows("chatglm4", "<|{role}|>\n", "", "<|assistant|>\n", opening="[gMASK]<sop>")
_rows("glmedge", "<|{role}|>\n", "", "<|assistant|>")
_rows("megrez", "<|role_start|>{role}<|role_end|>", "<|turn_end|>", "<|role_start|>assistant<|role_end|>")
_rows("solar-open", "<|begin|>{role}<|content|>", "<|end|>", "<|begin|>assistant")
_rows("seed_oss", "<seed:bos>{role}\n", "<seed:eos>", "<seed:bos>assistant\n", strip=("assistant",))
_rows(
    "gpt-oss",
    "<|start|>{role}<|message|>",
    "<|end|>",
    "<|start|>assistant",
    assistant="<|start|>assistant<|message|>%<|return|>",
)
_rows("openchat", "GPT4 Correct {Role}: ", "<|end_of_turn|>", "GPT4 Correct Assistant:", system="%<|end_of_turn|>")
_rows("bailing", "<role>{ROLE}</role>", "", "<role>ASSISTANT</role>", user="<role>HUMAN</role>%")
_rows("bailing-think", "<role>{ROLE}</role>", "", "<role>ASSISTANT</role><think>", user="<role>HUMAN</role>%")
_rows(
    "granite",
    "<|start_of_role|>{role}<|end_of_role|>",
    "<|end_of_text|>\n",
    "<|start_of_role|>assistant<|end_of_role|>",
    assistant_tool_call="<|start_of_role|>{role}<|end_of_role|><|tool_call|>%<|end_of_text|>\n",
)
for _name in ("granite-4.0", "granite-4.1"):
    _rows(
        _name,
        "<|start_of_role|>{role}<|end_of_role|>",
        "<|end_of_text|>\n",
        "<|start_of_role|>assistant<|end_of_role|>",
        assistant_tool_call="<|start_of_role|>assistant<|end_of_role|><|tool_call|>%<|end_of_text|>\n",
    )
_BUILT_IN["minicpm"] = Rows({"user": ("<用户>", "<AI>"), ANY: ("", "")}, strip=ALL)
_BUILT_IN["deepseek-ocr"] = Rows({ANY: ("", "")})
for _name, _gap in (("mistral-v7", " "), ("mistral-v7-tekken", "")):
    _rows(
        _name,
        _gap,
        "</s>",
        system=f"[SYSTEM_PROMPT]{_gap}%[/SYSTEM_PROMPT]",
        user=f"[INST]{_gap}%[/INST]",
    )
for _name, _system in (("vicuna", "%\n\n"), ("vicuna-orca", "SYSTEM: %\n")):
    _rows(_name, "", "", "ASSISTANT:", system=_system, user="USER: %\n", assistant="ASSISTANT: %</s>\n")
_rows(
    "deepseek",
    "",
    "",
    "### Response:\n",
    system="%",
    user="### Instruction:\n%\n",
    assistant="### Response:\n%\n<|EOT|>\n",
)
_rows(
    "deepseek2",
    "",
    "",
    "Assistant:",
    system="%\n\n",
    user="User: %\n\n",
    assistant="Assistant: %<｜end▁of▁sentence｜>",
)
_rows(
    "deepseek3",
    "",
    "",
    "<｜Assistant｜>",
    system="%\n\n",
    user="<｜User｜>%",
    assistant="<｜Assistant｜>%<｜end▁of▁sentence｜>",
)
_rows(
    "command-r",
    "",
    "",
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    strip=ALL,
    system="<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>%<|END_OF_TURN_TOKEN|>",
    user="<|START_OF_TURN_TOKEN|><|USER_TOKEN|>%<|END_OF_TURN_TOKEN|>",
    assistant="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>%<|END_OF_TURN_TOKEN|>",
)
_EXAONE = {
    "system": "[|system|]%[|endofturn|]\n",
    "user": "[|user|]%\n",
    "assistant": "[|assistant|]%[|endofturn|]\n",
}
_rows("exaone3", "", "", "[|assistant|]", strip=ALL, **_EXAONE)
_rows("exaone4", "", "", "[|assistant|]", strip=ALL, tool="[|tool|]%[|endofturn|]\n", **_EXAONE)
_rows(
    "exaone-moe",
    "",
    "",
    "<|assistant|>\n",
    strip=ALL,
    **{role: f"<|{role}|>\n%<|endofturn|>\n" for role in ("system", "user", "assistant", "tool")},
)
_rows("yandex", "", "", " Ассистент:[SEP]", user=" Пользователь: %\n\n", assistant=" Ассистент: %\n\n")
_rows(
    "smolvlm",
    "Assistant: ",
    "<end_of_utterance>\n",
    "Assistant:",
    opening="<|im_start|>",
    system="%\n\n",
    user="User: %<end_of_utterance>\n",
)
_rows(
    "hunyuan-moe",
    "<|startoftext|>",
    "<|extra_0|>",
    system="<|startoftext|>%<|extra_4|>",
    assistant="%<|eos|>",
)
_rows(
    "kimi-k2",
    "",
    "<|im_end|>",
    "<|im_assistant|>assistant<|im_middle|>",
    system="<|im_system|>system<|im_middle|>%<|im_end|>",
    user="<|im_user|>user<|im_middle|>%<|im_end|>",
    assistant="<|im_assistant|>assistant<|im_middle|>%<|im_end|>",
    tool="<|im_system|>tool<|im_middle|>%<|im_end|>",
)
_rows(
    "grok-2",
    "",
    "",
    "Assistant:",
    strip=("system", "user"),
    system="System: %<|separator|>\n\n",
    user="Human: %<|separator|>\n\n",
    assistant="Assistant: %<|separator|>\n\n",
)


# Formats in which a message's text depends on its neighbours


def _format(*names: str) -> Callable[[Callable[..., str]], Callable[..., str]]:
    """Register a function of (messages, reply, name) under these names."""

    def register(function: Callable[..., str]) -> Callable[..., str]:
        for name in names:
            _BUILT_IN[name] = lambda messages, reply, name=name: function(messages, reply, name)  # type: ignore[misc]
        return function

    return register


@_format("mistral-v1", "mistral-v3", "mistral-v3-tekken")
def _mistral(messages: Sequence[Message], reply: bool, name: str) -> str:
    lead = " " if name == "mistral-v1" else ""
    trail = "" if name == "mistral-v3-tekken" else " "
    out, inside = "", False
    for message in messages:
        role, content = message["role"], message["content"]
        if not inside:
            out += f"{lead}[INST]{trail}"
            inside = True
        if role == "system":
            out += f"{content}\n\n"
        elif role == "user":
            out += f"{content}{lead}[/INST]"
        else:
            out += f"{trail}{content.strip(_SPACE) if name == 'mistral-v3' else content}</s>"
            inside = False
    return out


@_format("llama2", "llama2-sys", "llama2-sys-bos", "llama2-sys-strip")
def _llama2(messages: Sequence[Message], reply: bool, name: str) -> str:
    out, inside = "[INST] ", True
    for message in messages:
        role = message["role"]
        content = message["content"].strip(_SPACE) if name == "llama2-sys-strip" else message["content"]
        if not inside:
            out += "<s>[INST] " if name == "llama2-sys-bos" else "[INST] "
            inside = True
        if role == "system":
            out += f"{content}\n" if name == "llama2" else f"<<SYS>>\n{content}\n<</SYS>>\n\n"
        elif role == "user":
            out += f"{content} [/INST]"
        else:
            out += f"{content}</s>"
            inside = False
    return out


@_format("monarch")
def _monarch(messages: Sequence[Message], reply: bool, name: str) -> str:
    written = [f"{message['role']}\n{message['content']}</s>\n" for message in messages]
    return "<s>".join(written) + ("<s>assistant\n" if reply else "")


@_format("gemma")
def _gemma(messages: Sequence[Message], reply: bool, name: str) -> str:
    out = system = ""
    for message in messages:
        role, content = message["role"], message["content"].strip(_SPACE)
        if role == "system":
            system += content
            continue
        role = "model" if role == "assistant" else role
        out += f"<start_of_turn>{role}\n"
        if system and role != "model":
            out += f"{system}\n\n"
            system = ""
        out += f"{content}<end_of_turn>\n"
    return out + ("<start_of_turn>model\n" if reply else "")


@_format("orion")
def _orion(messages: Sequence[Message], reply: bool, name: str) -> str:
    out = system = ""
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "system":
            system += content
        elif role == "user":
            out += f"Human: {system}\n\n{content}" if system else f"Human: {content}"
            out += "\n\nAssistant: </s>"
            system = ""
        else:
            out += f"{content}</s>"
    return out


@_format("rwkv-world")
def _rwkv(messages: Sequence[Message], reply: bool, name: str) -> str:
    names = {"system": "System", "user": "User", "assistant": "Assistant"}
    out = "".join(
        f"{names[message['role']]}: {message['content'].strip(_SPACE)}\n\n"
        for message in messages
        if message["role"] in names
    )
    return out + ("Assistant:" if messages and messages[-1]["role"] == "user" else "")


@_format("gigachat")
def _gigachat(messages: Sequence[Message], reply: bool, name: str) -> str:
    out, rest = "<s>", list(messages)
    if rest and rest[0]["role"] == "system":
        out += f"{rest.pop(0)['content']}<|message_sep|>"
    for message in rest:
        if message["role"] == "user":
            out += (
                f"user<|role_sep|>{message['content']}<|message_sep|>available functions<|role_sep|>[]<|message_sep|>"
            )
        elif message["role"] == "assistant":
            out += f"assistant<|role_sep|>{message['content']}<|message_sep|>"
    return out + ("assistant<|role_sep|>" if reply else "")


@_format("bailing2")
def _bailing2(messages: Sequence[Message], reply: bool, name: str) -> str:
    rows = Rows(
        {"user": ("<role>HUMAN</role>", "<|role_end|>"), ANY: ("<role>{ROLE}</role>", "<|role_end|>")},
        "<role>ASSISTANT</role>",
    )
    has_system = bool(messages) and messages[0]["role"] == "system"
    return ("" if has_system else "<role>SYSTEM</role>detailed thinking off<|role_end|>") + rows(messages, reply)


@_format("hunyuan-dense", "hunyuan-vl")
def _hunyuan(messages: Sequence[Message], reply: bool, name: str) -> str:
    dense = name == "hunyuan-dense"
    rows = Rows(
        {
            "user": ("<｜hy_User｜>", "<｜hy_Assistant｜>") if dense else ("", "<｜hy_User｜>"),
            "assistant": ("<｜hy_Assistant｜>", "<｜hy_place▁holder▁no▁2｜>") if dense else ("", "<｜hy_Assistant｜>"),
        },
        opening="" if dense else "<｜hy_begin▁of▁sentence｜>",
    )
    system, rest = "", list(messages)
    if rest and rest[0]["role"] == "system":
        system = f"{rest.pop(0)['content']}<｜hy_place▁holder▁no▁3｜>"
    return rows.opening + system + replace(rows, opening="")(rest, reply)


@_format("pangu-embedded")
def _pangu(messages: Sequence[Message], reply: bool, name: str) -> str:
    names = {"system": "系统", "user": "用户", "assistant": "助手", "tool": "工具", "function": "方法"}
    rows = Rows({role: (f"[unused9]{text}：", "[unused10]") for role, text in names.items()}, "[unused9]助手：")
    has_system = not messages or messages[0]["role"] == "system"
    return ("" if has_system else "[unused9]系统：[unused10]") + rows(messages, reply)
