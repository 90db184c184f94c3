"""Which model writes its replies how, found in the text of its chat template.

Owns the table: a row a format. Reading stops at the first row whose texts are all in the template, so that narrow rows
stand first; after common_chat_template_detect_params_init in llama.cpp's common/chat.cpp, whose other templates are
told apart by comparing what they render.
"""

from dataclasses import dataclass, replace
from typing import Any

from pyggml.chat.reply.addressed import Addressed
from pyggml.chat.reply.gemma_calls import GemmaCalls
from pyggml.chat.reply.harmony import Harmony
from pyggml.chat.reply.json_calls import JsonCalls
from pyggml.chat.reply.marked import Marked
from pyggml.chat.reply.named_calls import NamedCalls
from pyggml.chat.reply.nested_calls import NestedCalls
from pyggml.chat.reply.parser import Form
from pyggml.chat.reply.python_calls import PythonCalls
from pyggml.chat.reply.recipients import Recipients
from pyggml.chat.reply.tagged_calls import TaggedCalls


@dataclass(frozen=True)
class Row:
    """A format: its name, the texts that a template of it holds, and those that it does not."""

    name: str
    texts: tuple[str, ...]
    form: Form
    without: tuple[str, ...] = ()
    thinks: bool = False  # whatever the template says of it

    def fits(self, source: str) -> bool:
        return all(text in source for text in self.texts) and not any(text in source for text in self.without)


def _tagged(section: str, end: str, call: str, key: str, valued: str, close: str, **more: Any) -> TaggedCalls:
    """XML with names in attributes, or after an equals sign."""
    quoted = call.endswith('"')
    return replace(
        TaggedCalls(
            section=(section,) if section else (),
            section_end=end,
            call=call,
            named=('">',) if quoted else (">",),
            key=key,
            keyed=('">',) if quoted else (">",),
            valued=(valued,),
            close=close,
        ),
        **more,
    )


GLM = TaggedCalls(
    section=("<tool_call>",),
    section_end="</tool_call>",
    call="",
    named=("\n",),
    key="<arg_key>",
    keyed=("</arg_key>",),
    between="<arg_value>",
    valued=("</arg_value>",),
    newlines=False,
)
HY = ":opensource"  # what the names of its markers end in
HY3 = TaggedCalls(
    section=(f"<tool_calls{HY}>",),
    section_end=f"</tool_calls{HY}>",
    call=f"<tool_call{HY}>",
    named=(f"<tool_sep{HY}>",),
    key=f"<arg_key{HY}>",
    keyed=(f"</arg_key{HY}>",),
    between=f"<arg_value{HY}>",
    valued=(f"</arg_value{HY}>",),
    close=f"</tool_call{HY}>",
    newlines=False,
)
HORIZON = TaggedCalls(
    section=("<ifm|tool_calls>",),
    section_end="</ifm|tool_calls>",
    call="<ifm|tool_call>",
    named=("\n",),
    key="<ifm|arg_key>",
    keyed=("</ifm|arg_key>",),
    between="<ifm|arg_value>",
    valued=("</ifm|arg_value>",),
    close="</ifm|tool_call>",
    newlines=False,
)


def _dsml(block: str) -> TaggedCalls:
    """DeepSeek V3.2 and V4."""
    mark = "｜DSML｜"
    return TaggedCalls(
        section=(f"<{mark}{block}>",),
        section_end=f"</{mark}{block}>",
        call=f'<{mark}invoke name="',
        named=('">',),
        key=f'<{mark}parameter name="',
        keyed=('" string="true">', '" string="false">', '">'),
        valued=(f"</{mark}parameter>",),
        ends_reasoning=True,
        close=f"</{mark}invoke>",
        newlines=False,
        typed=(('" string="true">', "string"), ('" string="false">', "other")),
    )


KIMI_K3 = TaggedCalls(
    section=("<|open|>tools<|sep|>",),
    section_end="<|close|>tools<|sep|>",
    call='<|open|>call tool="',
    named=('"',),
    after_name="<|sep|>",
    key='<|open|>argument key="',
    keyed=('"',),
    between="<|sep|>",
    rules=('" type=\\"" [a-z]+ "\\""', '" index=\\"" [0-9]{1,3} "\\""'),
    valued=("<|close|>argument<|sep|>",),
    close="<|close|>call<|sep|>",
    newlines=False,
)
KIMI_K3_MARKS = (
    "<|open|>response<|sep|>",
    "<|close|>response<|sep|>",
    "<|close|>message<|sep|>",
    "<|end_of_msg|>",
)
COHERE = JsonCalls(
    ("<|START_ACTION|>",),
    "<|END_ACTION|>",
    name="tool_name",
    arguments="parameters",
    id="tool_call_id",
    id_rule='"\\"" [0-9]{1,3} "\\""',
    id_first=True,
    in_list=True,
)
COHERE_MARKS = (
    "<|START_RESPONSE|>",
    "<|END_RESPONSE|>",
    "<|START_TEXT|>",
    "<|END_TEXT|>",
    "<|CHATBOT_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
)
COHERE_THINK = ("<|START_THINKING|>", "<|END_THINKING|>")
CODE_BLOCK = JsonCalls(("Action:\n```json\n", "Action: ```json\n"), "```", "tool_name", "parameters", in_list=True)
HERMES = JsonCalls(("<tool_call>",), "</tool_call>")
QWEN_CODER = _tagged(
    "<tool_call>",
    "</tool_call>",
    "<function=",
    "<parameter=",
    "</parameter>",
    "</function>",
    loose=True,
    ends_reasoning=True,
)
SEED = _tagged("<seed:tool_call>", "</seed:tool_call>", "<function=", "<parameter=", "</parameter>", "</function>")
MINIMAX = _tagged(
    "<minimax:tool_call>",
    "</minimax:tool_call>",
    '<invoke name="',
    '<parameter name="',
    "</parameter>",
    "</invoke>",
    newlines=False,
)
M3 = "]<]minimax[>["
MINIMAX_M3 = NestedCalls(M3, f"{M3}<tool_call>", f"{M3}</tool_call>", f'{M3}<invoke name="', f"{M3}</invoke>")
ATEM = _tagged(
    "<atem:function_calls>",
    "</atem:function_calls>",
    '<atem:invoke name="',
    '<atem:parameter name="',
    "</atem:parameter>",
    "</atem:invoke>",
    newlines=False,
)
MINICPM = _tagged("", "", '<function name="', '<param name="', "</param>", "</function>", newlines=False)
DEEPSEEK = NamedCalls(
    call="<｜tool▁call▁begin｜>",
    named=("<｜tool▁sep｜>",),
    close=("<｜tool▁call▁end｜>",),
    section=("<｜tool▁calls▁begin｜>",),
    section_end="<｜tool▁calls▁end｜>",
)
DEEPSEEK_R1 = replace(
    DEEPSEEK,
    named=("\n```json\n",),
    close=("```<｜tool▁call▁end｜>", "\n```<｜tool▁call▁end｜>", "<｜tool▁call▁end｜>"),
    prefix="function<｜tool▁sep｜>",
    header=r"\s*function<｜tool▁sep｜>(?P<name>.*?)\s*",
)
KIMI = NamedCalls(
    call="<|tool_call_begin|>",
    named=("<|tool_call_argument_begin|>",),
    close=("<|tool_call_end|>",),
    section=("<|tool_calls_section_begin|>",),
    section_end="<|tool_calls_section_end|>",
    ends_reasoning=True,
    prefix="functions.",
    suffix='":" [0-9]{1,3}',
    header=r"\s*(?P<id>(?:functions\.)?(?P<name>.*?)(?::\d+)?)\s*",
)
MISTRAL = NamedCalls(
    suffix='("[CALL_ID]" [a-zA-Z0-9]{9})?',
    call="[TOOL_CALLS]",
    named=("[ARGS]",),
    header=r"\s*(?P<name>.*?)\s*(?:\[CALL_ID\]\s*(?P<id>.*?)\s*)?",
)
FUNCTIONARY = NamedCalls(call="<function=", named=(">",), close=("</function>",))

SOLAR = NamedCalls(
    call="<|tool_call:begin|>",
    named=("<|tool_call:args|>",),
    close=("<|tool_call:end|>",),
    section=("<|tool_calls|>",),
    section_end="<|calls|>",
    id_rule="[a-z0-9]{10}",
    prefix="<|tool_call:name|>",
    header=r"\s*(?P<id>.*?)\s*<\|tool_call:name\|>\s*(?P<name>.*?)\s*",
)
SOLAR_AGAIN = "<|begin|>assistant"

ROWS = [
    Row("ministral", ("[SYSTEM_PROMPT]", "[TOOL_CALLS]", "[ARGS]"), Marked(("[THINK]", "[/THINK]"), MISTRAL)),
    Row("mistral", ("[TOOL_CALLS]", "[ARGS]"), Marked(("[THINK]", "[/THINK]"), MISTRAL)),
    Row("mistral-nemo", ("[TOOL_CALLS]",), Marked(None, JsonCalls(("[TOOL_CALLS]",), id="id", in_list=True))),
    Row("gpt-oss", ("<|channel|>",), Harmony()),
    Row("muse-glimmer", ("<atem:function_calls>", "<|eom|>"), Addressed(ATEM)),
    Row("functionary-3.2", (">>>all", ">>>${recipient}"), Recipients()),
    Row(
        "kimi-k2",
        ("<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
        Marked(("<think>", "</think>"), KIMI),
        thinks=True,
    ),
    Row(
        "solar-open",
        ("<|tool_call:begin|>", "<|think|>", "<|calls|>"),
        Marked(
            ("<|think|>", "<|end|>"),
            SOLAR,
            (SOLAR_AGAIN, "<|content|>", "<|end|>"),
            tight=True,
            again=SOLAR_AGAIN,
            answer="<|content|>",
        ),
        thinks=True,
    ),
    Row("hy3", ("<tool_sep{}>", f"'{HY}'"), Marked((f"<think{HY}>", f"</think{HY}>"), HY3), thinks=True),
    Row("k2-horizon", ("<ifm|tool_calls>",), Marked(("<ifm|think>", "</ifm|think>"), HORIZON)),
    Row(
        "kimi-k3",
        ("<|open|>", "<|close|>", "<|end_of_msg|>"),
        Marked(("<|open|>think<|sep|>", "<|close|>think<|sep|>"), KIMI_K3, KIMI_K3_MARKS),
        thinks=True,
    ),
    Row(
        "ling-3",
        ("<role>ASSISTANT</role>", "<arg_key>"),
        Marked(("<think>", "</think>"), replace(GLM, ends_reasoning=True), ("<|role_end|>",)),
    ),
    Row("cohere2moe", ("<|START_TEXT|>", "<|START_ACTION|>"), Marked(COHERE_THINK, COHERE, COHERE_MARKS)),
    Row("command-r7b", ("<|START_ACTION|>",), Marked(COHERE_THINK, COHERE, COHERE_MARKS)),
    Row("command-r-plus", ("Action:", "tool_name", "<|CHATBOT_TOKEN|>"), Marked(None, CODE_BLOCK, COHERE_MARKS)),
    Row(
        "lfm2",
        ("<|tool_list_start|>",),
        Marked(("<think>", "</think>"), PythonCalls(("<|tool_call_start|>",), "<|tool_call_end|>")),
    ),
    Row(
        "lfm2.5",
        ("List of tools: [",),
        Marked(("<think>", "</think>"), PythonCalls(("<|tool_call_start|>",), "<|tool_call_end|>")),
    ),
    Row(
        "gigachat-3.1",
        ("<|function_call|>", "<|role_sep|>"),
        Marked(None, JsonCalls(("<|function_call|>",))),
    ),
    Row(
        "gigachat-3",
        ("<|role_sep|>", "<|message_sep|>"),
        Marked(None, JsonCalls(("<|message_sep|>\n\nfunction call<|role_sep|>\n",))),
    ),
    Row(
        "minimax-m3",
        (M3, "<tool_call>", "<invoke name="),
        Marked(("<mm:think>", "</mm:think>"), MINIMAX_M3, tight=True),
    ),
    Row("deepseek-v3.2", ("dsml_token", "function_calls"), Marked(("<think>", "</think>"), _dsml("function_calls"))),
    Row("deepseek-v4", ("dsml_token", "tool_calls"), Marked(("<think>", "</think>"), _dsml("tool_calls"))),
    Row("gemma4", ("<|tool_call>call:",), Marked(("<|channel>thought", "<channel|>"), GemmaCalls(), ("<|channel>",))),
    Row("minicpm5", ('<function name="', '<param name="'), Marked(("<think>", "</think>"), MINICPM)),
    Row("seed-oss", ("<seed:tool_call>",), Marked(("<seed:think>", "</seed:think>"), SEED)),
    Row("minimax-m2", ("<minimax:tool_call>",), Marked(("<think>", "</think>"), MINIMAX)),
    Row("qwen3-coder", ("<tool_call>", "<function=", "<parameter="), Marked(("<think>", "</think>"), QWEN_CODER)),
    Row("glm-4.5", ("<tool_call>", "<arg_key>", "<arg_value>"), Marked(("<think>", "</think>"), GLM)),
    Row(
        "deepseek-v3.1",
        ("<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>"),
        Marked(("<think>", "</think>"), DEEPSEEK),
        without=("```json",),
    ),
    Row("deepseek-r1", ("<｜tool▁calls▁begin｜>", "```json"), Marked(("<think>", "</think>"), DEEPSEEK_R1)),
    Row("functionary-3.1", ("<function=", "</function>"), Marked(None, FUNCTIONARY)),
    Row("firefunction-2", ("functools",), Marked(None, JsonCalls((" functools[", "functools["), "]"))),
    Row(
        "apertus",
        ("<|tools_prefix|>",),
        Marked(
            ("<|inner_prefix|>", "<|inner_suffix|>"),
            JsonCalls(("<|tools_prefix|>",), "<|tools_suffix|>", name="", in_list=True),
        ),
    ),
    Row(
        "nemotron-v2",
        ("<TOOLCALL>",),
        Marked(("<think>", "</think>"), JsonCalls(("<TOOLCALL>",), "</TOOLCALL>", in_list=True)),
    ),
    Row(
        "apriel",
        ("<tool_calls>", "[BEGIN FINAL RESPONSE]"),
        Marked(
            ("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
            JsonCalls(("<tool_calls>",), "</tool_calls>", in_list=True),
            ("[END FINAL RESPONSE]",),
        ),
    ),
    Row(
        "tool-calls-list",
        ("<tool_calls>",),
        Marked(("<think>", "</think>"), JsonCalls(("<tool_calls>",), "</tool_calls>")),
    ),
    Row("hermes", ("<tool_call>",), Marked(("<think>", "</think>"), HERMES)),
    Row(
        "granite-3",
        ("<|tool_call|>",),
        Marked(("<think>", "</think>"), JsonCalls(("<|tool_call|>",), in_list=True)),
    ),
    Row(
        "llama-3",
        ("<|start_header_id|>", '"parameters"'),
        Marked(None, JsonCalls(("<|python_tag|>",), arguments="parameters"), bare=True),
    ),
]
GENERIC = Row("generic", (), Marked(("<think>", "</think>"), replace(HERMES), bare=True))
"""Where no row fits: Hermes' markers, which most models know, and objects without markers."""


def form_of(source: str) -> Row:
    """The row of a template's text; without reasoning where the template has no mark of it."""
    row = next((row for row in ROWS if row.fits(source)), GENERIC)
    form = row.form
    if (
        not row.thinks
        and isinstance(form, Marked)
        and form.think is not None
        and not any(mark in source for mark in form.think)
    ):
        return replace(row, form=replace(form, think=None))
    return row
