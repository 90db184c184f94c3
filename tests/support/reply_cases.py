"""Replies with calls in every format, made from the same arguments: what tests of parsing and of grammars share."""

import json

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find",
            "parameters": {
                "type": "object",
                "properties": {"where": {"type": "string"}, "n": {"type": "integer"}, "tags": {"type": "array"}},
            },
        },
    },
    {"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "properties": {}}}},
]
ARGUMENTS = {"where": 'a "b"\n<c>}', "n": 12, "tags": ["x", {"y": None}]}
AS_JSON = json.dumps(ARGUMENTS)
M3 = "]<]minimax[>["


def _tags(call: str, key: str, end: str, close: str, newline: str = "\n") -> str:
    values = [ARGUMENTS["where"], json.dumps(ARGUMENTS["n"]), json.dumps(ARGUMENTS["tags"])]
    pairs = zip(ARGUMENTS, values, strict=True)
    inside = "".join(f"{key.format(name)}{newline}{value}{newline}{end}\n" for name, value in pairs)
    return f"{call}\n{inside}{close}"


CASES = {  # format -> reasoning's marks, a call of find with ARGUMENTS, one of stop without, or None if the form has one
    "hermes": (
        ("<think>", "</think>\n\n"),
        f'<tool_call>\n{{"name": "find", "arguments": {AS_JSON}}}\n</tool_call>',
        '\n<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>',
    ),
    "qwen3-coder": (
        ("<think>\n", "\n</think>\n\n"),
        f"<tool_call>\n{_tags('<function=find>', '<parameter={}>', '</parameter>', '</function>')}\n</tool_call>",
        "\n<tool_call>\n<function=stop>\n</function>\n</tool_call>",
    ),
    "minimax-m2": (
        ("<think>\n", "\n</think>\n\n"),
        "<minimax:tool_call>\n"
        + _tags('<invoke name="find">', '<parameter name="{}">', "</parameter>", "</invoke>", ""),
        '\n<invoke name="stop">\n</invoke>\n</minimax:tool_call>',
    ),
    "minimax-m3": (
        ("<mm:think>", "</mm:think>"),
        'M<tool_call>\nM<invoke name="find">M<where>'.replace("M", M3)
        + ARGUMENTS["where"]
        + "M</where>M<n>12M</n>M<tags>M<item>xM</item>M<item>M<y>nullM</y>M</item>M</tags>M</invoke>\n".replace(
            "M", M3
        ),
        'M<invoke name="stop">M</invoke>\nM</tool_call>'.replace("M", M3),
    ),
    "muse-glimmer": (
        (" to=self<|message|>", "<|eom|><|start|>assistant"),
        " to=find<|message|><atem:function_calls>\n"
        + _tags('<atem:invoke name="find">', '<atem:parameter name="{}">', "</atem:parameter>", "</atem:invoke>", "")
        + "\n</atem:function_calls>",
        "<|eom|><|start|>assistant to=stop<|message|><atem:function_calls>\n"
        '<atem:invoke name="stop">\n</atem:invoke>\n</atem:function_calls>',
    ),
    "solar-open": (
        ("<|think|>", "<|end|><|begin|>assistant"),
        f"<|tool_calls|><|tool_call:begin|>a1b2c3d4e5<|tool_call:name|>find<|tool_call:args|>{AS_JSON}<|tool_call:end|>",
        "<|tool_call:begin|>0123456789<|tool_call:name|>stop<|tool_call:args|>{}<|tool_call:end|><|calls|>",
    ),
    "hy3": (
        ("<think:opensource>", "</think:opensource>"),
        _tags(
            "<tool_calls:opensource>\n<tool_call:opensource>find<tool_sep:opensource>",
            "<arg_key:opensource>{}</arg_key:opensource>\n<arg_value:opensource>",
            "</arg_value:opensource>",
            "</tool_call:opensource>\n",
            "",
        ),
        "<tool_call:opensource>stop<tool_sep:opensource>\n</tool_call:opensource>\n</tool_calls:opensource>",
    ),
    "glm-4.5": (
        ("<think>", "</think>\n"),
        f"<tool_call>{_tags('find', '<arg_key>{}</arg_key><arg_value>', '</arg_value>', '</tool_call>', '')}",
        "\n<tool_call>stop\n</tool_call>",
    ),
    "kimi-k2": (
        ("<think>", "</think>"),
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.find:0<|tool_call_argument_begin|>"
        f"{AS_JSON}<|tool_call_end|>",
        "<|tool_call_begin|>functions.stop:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
    ),
    "kimi-k3": (
        ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
        '<|open|>tools<|sep|><|open|>call tool="find" index="1"<|sep|>'
        + "".join(
            f'<|open|>argument key="{key}" type="{kind}"<|sep|>{value}<|close|>argument<|sep|>'
            for key, kind, value in zip(
                ARGUMENTS,
                ("string", "number", "array"),
                (ARGUMENTS["where"], "12", json.dumps(ARGUMENTS["tags"])),
                strict=True,
            )
        )
        + "<|close|>call<|sep|>",
        '<|open|>call tool="stop" index="2"<|sep|><|close|>call<|sep|><|close|>tools<|sep|>',
    ),
    "deepseek-v3.1": (
        ("<think>", "</think>"),
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>find<｜tool▁sep｜>{AS_JSON}<｜tool▁call▁end｜>",
        "<｜tool▁call▁begin｜>stop<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "deepseek-r1": (
        ("<think>", "</think>"),
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>find\n```json\n"
        f"{AS_JSON}\n```<｜tool▁call▁end｜>",
        "\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>stop\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "mistral": (("[THINK]", "[/THINK]"), f"[TOOL_CALLS]find[ARGS]{AS_JSON}", "[TOOL_CALLS]stop[ARGS]{}"),
    "mistral-nemo": (
        None,
        f'[TOOL_CALLS][{{"name": "find", "arguments": {AS_JSON}, "id": "abcdefghi"}}',
        ', {"name": "stop", "arguments": {}, "id": "123456789"}]',
    ),
    "gpt-oss": (
        ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant"),
        f"<|start|>assistant<|channel|>commentary to=functions.find <|constrain|>json<|message|>{AS_JSON}<|call|>",
        "<|start|>assistant to=functions.stop<|channel|>commentary json<|message|>{}<|call|>",
    ),
    "command-r7b": (
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        f'<|START_ACTION|>[\n  {{"tool_call_id": "0", "tool_name": "find", "parameters": {AS_JSON}}}',
        ',\n  {"tool_call_id": "1", "tool_name": "stop", "parameters": {}}\n]<|END_ACTION|>',
    ),
    "lfm2": (
        ("<think>", "</think>"),
        f"<|tool_call_start|>[find(where={json.dumps(ARGUMENTS['where'])}, n=12, tags={json.dumps(ARGUMENTS['tags'])})",
        ", stop()]<|tool_call_end|>",
    ),
    "gemma4": (
        ("<|channel>thought\n", "<channel|>"),
        '<|tool_call>call:find{where:<|"|>a "b"\n<c>}<|"|>,n:12,tags:[<|"|>x<|"|>,{y:null}]}<tool_call|>',
        "<|tool_call>call:stop{}<tool_call|>",
    ),
    "granite-3": (
        ("<think>", "</think>"),
        f'<|tool_call|>[{{"name": "find", "arguments": {AS_JSON}}}',
        ', {"name": "stop", "arguments": {}}]',
    ),
    "functionary-3.1": (None, f"<function=find>{AS_JSON}</function>", "<function=stop>{}</function>"),
    "functionary-3.2": (None, f">>>find\n{AS_JSON}", ">>>stop\n{}"),
    "firefunction-2": (
        None,
        f' functools[{{"name": "find", "arguments": {AS_JSON}}}',
        ', {"name": "stop", "arguments": {}}]',
    ),
    "llama-3": (None, f'{{"name": "find", "parameters": {AS_JSON}}}', '; {"name": "stop", "parameters": {}}'),
}
