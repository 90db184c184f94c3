"""How byte-level BPE vocabularies cut text into words before merging: the values of `tokenizer.ggml.pre`.

Owns the patterns (Oniguruma's syntax) and flags, after llm_tokenizer_bpe and llama_vocab::impl::load in
llama-vocab.cpp. Each pattern cuts the pieces that the one before left, matches and gaps alike.
"""

from typing import NamedTuple

from pyggml.errors import TokenizerError


class PreTokenizer(NamedTuple):
    """patterns   that cut words out; of vocabularies of characters (character_bpe.py) none
    characters    which way of these cuts the text, where merging joins characters and not bytes: "lines", "words" or "spaces"
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False  # a word that is a token needs no merges
    add_bos: bool = False  # where the file says nothing
    default_bos: bool = True  # whether the kind's default BOS id holds
    always_bos: bool = False  # whatever the file says
    add_sep: bool = False  # a SEP token stands between texts that are compared
    characters: str = ""
    newlines: bool = False  # a run of line feeds that is a token needs no merges


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# DeepSeek's letters: those with upper and lower case, of some scripts, as code points in hexadecimal.
_CASED = """
41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A 38C 38E-3A1 3A3-3F5
3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15
1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3
1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139
213C-213F 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B A722-A76F A771-A787
A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2
118A0-118DF 1E900-1E943
"""


def _set(ranges: str) -> str:
    r"""The inside of a character class: "41-5A B5" becomes \x{41}-\x{5A}\x{B5}."""
    return "".join("-".join(rf"\x{{{end}}}" for end in r.split("-")) for r in ranges.split())


# llama.cpp sees white space beyond ASCII as a vertical tab where a pattern names no category: no class but \s has it.
_EAST_ASIAN = rf"[{_set('4E00-9FA5 800-4E00 AC00-D7FF')}&&[^\s]]+"

# Several of llama.cpp's patterns tell upper from lower case, but it knows that only of ASCII: any other letter is both.
_CASE = r"(?:[\p{L}&&[^a-z]]*[\p{L}&&[^A-Z]]+|[\p{L}&&[^a-z]]+[\p{L}&&[^A-Z]]*)"
_CASE_MARKS = r"(?:[[\p{L}\p{M}]&&[^a-z]]*[[\p{L}\p{M}]&&[^A-Z]]+|[[\p{L}\p{M}]&&[^a-z]]+[[\p{L}\p{M}]&&[^A-Z]]*)"
_SLASH_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT4O = rf"[^\r\n\p{{L}}\p{{N}}]?{_CASE}(?:{_CONTRACTIONS})?|\p{{N}}{{1,3}}|{_SLASH_REST}"
_MARKED = rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+(?:{_CONTRACTIONS})?"
_SYMBOLS = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
_SYMBOLS_REST = r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_KANA = rf"[{_set('4E00-9FA5 3040-30FF')}]+"
_PARTS = rf" ?[^(\s|.,!?{_set('2026 3002 FF0C 3001 964 6D4 60C')})]+"
# Digits in threes from the right, what comes before them together with the first: unicode_regex_split_custom_afmoe.
# Each run of digits is looked at to its end once, and no pattern fails after a long way: text of any kind takes linear time.
_THREES = (
    r"[^\p{N}]+\p{N}*|\p{N}+",
    r"\A[^\p{N}]*\p{N}{1,2}(?=(?>(?:\p{N}{3})*)\z)",
    r"[^\p{N}]+\p{N}{0,3}|\p{N}{1,3}",
)
# Cut before each three digits from the right; what stands between two runs belongs to what comes before it.
_ODD_DIGITS = r"(?:[^0-9]+|(?<![0-9])[0-9]{1,2}(?=(?>(?:[0-9]{3})*)(?![0-9])))"
_AFMOE_SCRIPTS = (
    "4E00-9FFF 3400-4DBF 8C48-FAFF 3040-30FF FF65-FF9F 2F00-2FDF E40-E7F E80-EFF 1780-17FF 1000-109F AA60-AA7F A9E0-A9FF "
    "AC00-D7AF 1100-11FF"
)
_YOUTU_SCRIPTS = "|".join(
    f"[{_set(ranges)}]+"
    for ranges in (
        "AC00-D7A3 3131-318E",
        "FF01 2026 201C 201D 2018 2019 2014 FF1A FF1B FF0C 3001-303F FE30-FE4F",
        "3105-312F",
        "4E00-9FA5 3040-30FF",
    )
)
_CASCADE = "|".join(rf"\s{{{n}}}(?!\S)" for n in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2"))

_HAN = _set("4E00-9FFF 3400-4DBF 20000-2A6DF 2A700-2B73F 2B740-2B81F 2B820-2CEAF 2CEB0-2EBEF F900-FAFF 2F800-2FA1F")
# unicode_regex_split_custom_kimi_k2, which takes no marks for letters and knows no cases
_KIMI = (
    rf"[{_HAN}]+|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}&&[^{_HAN}]]+(?:{_CONTRACTIONS})?|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_LLAMA3_WORDS = PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True)

DEFAULT = PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))

_NAMES: list[tuple[str, PreTokenizer]] = [
    ("default", DEFAULT),
    ("llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano", _LLAMA3_WORDS),
    ("dbrx smaug-bpe", PreTokenizer((_LLAMA3,))),
    ("chatglm-bpe", PreTokenizer((_LLAMA3,), default_bos=False)),
    ("glm4 glm5", PreTokenizer((_LLAMA3,), default_bos=False, ignore_merges=True)),
    ("smollm starcoder refact command-r codeshell exaone minerva-7b mellum2", PreTokenizer((r"\p{N}", _GPT2))),
    ("gpt-2 phi-2 mpt olmo jais trillion granite-docling exaone4 gigachat a.x-4.0 mellum", PreTokenizer((_GPT2,))),
    ("jina-es jina-de jina-v2-es jina-v2-de modern-bert", PreTokenizer((_GPT2,))),
    ("jina-v1-en jina-v2-code roberta-bpe", PreTokenizer((_GPT2,), add_sep=True)),
    ("qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2", PreTokenizer((_QWEN2,))),
    ("qwen35", PreTokenizer((_QWEN35,))),
    ("falcon", PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"))),
    (
        "deepseek-llm",
        PreTokenizer(
            (
                r"[\r\n]",
                rf"\s?[{_set(_CASED)}]+",
                rf"\s?[{_set('21-2F 3A-7E FF01-FF0F FF1A-FF5E 2018-201F 3001-3002')}]+",
                r"\s+\z",
                _EAST_ASIAN,
                r"\p{N}+",
            )
        ),
    ),
    (
        "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
        PreTokenizer((r"\p{N}{1,3}", _KANA, f"{_SYMBOLS}|{_SYMBOLS_REST}")),
    ),
    (
        "spark2_5",
        PreTokenizer(
            (r"\p{N}{1,3}", _KANA, rf"{_SYMBOLS}| ?[\p{{P}}\p{{S}}]+|[\r\n]|\s+(?!\S)|\s+", r"\p{N}"),
        ),
    ),
    (
        "jais-2",
        PreTokenizer(
            (
                rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+"
                rf"|{_CASCADE}|\s{{1}}",
            )
        ),
    ),
    ("youtu", PreTokenizer((_YOUTU_SCRIPTS, rf"{_MARKED}|\p{{N}}|{_SLASH_REST}"), ignore_merges=True)),
    ("poro-chat bloom gpt3-finnish", PreTokenizer((_PARTS,))),
    ("viking", PreTokenizer((_PARTS, r"\p{N}"))),
    (
        "tekken",
        PreTokenizer((rf"[^\r\n\p{{L}}\p{{N}}]?{_CASE}|\p{{N}}|{_SLASH_REST}",), ignore_merges=True, add_bos=True),
    ),
    (
        "chameleon",
        PreTokenizer(
            (
                "<sentinel:[0-9]+>",
                "(?:IMGIMG)[A-I]{1,4}Z",
                r"[\t\n]|    |  ",
                r"\p{N}",
                r"[\p{P}!-/:-@\[-`{-~]",
                _GPT2,
            ),
            add_bos=True,
        ),
    ),
    ("gpt-4o llama4 kanana2 talkie minimax-m2", PreTokenizer((_GPT4O,))),
    (
        "granite-embed-multi-97m",
        PreTokenizer(
            (rf"[^\r\n\p{{L}}\p{{N}}]?{_CASE_MARKS}(?:{_CONTRACTIONS})?|\p{{N}}{{1,3}}|{_SLASH_REST}",),
            ignore_merges=True,
        ),
    ),
    ("tiny_aya cohere2moe", PreTokenizer((*_THREES, rf"{_MARKED}|\p{{N}}{{1,3}}|{_SLASH_REST}"))),
    ("superbpe", PreTokenizer((r"\p{N}+", rf"{_ODD_DIGITS}+|[0-9]{{3}}{_ODD_DIGITS}*"))),
    (
        "bailingmoe bailingmoe2 llada-moe",
        PreTokenizer(
            (
                r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
                r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
            )
        ),
    ),
    (
        "seed-coder",
        PreTokenizer(
            (
                rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}"
                r"| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
            )
        ),
    ),
    ("ufakzeka", PreTokenizer((rf"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}",))),
    ("afmoe", PreTokenizer((*_THREES, f"[{_set(_AFMOE_SCRIPTS)}]+", f"{_SYMBOLS}|{_SYMBOLS_REST}"))),
    ("laguna", PreTokenizer((r"[^\n]+|\n+", _QWEN2))),
    (
        "exaone-moe",
        PreTokenizer(
            (
                rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
                r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
            )
        ),
    ),
    (
        "minicpm5",
        PreTokenizer(
            (
                r"\p{N}{1,3}",
                rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}+|{_REST}",
            ),
            ignore_merges=True,
        ),
    ),
    ("kimi-k2", PreTokenizer((_KIMI,))),
    (
        "k2-horizon",
        PreTokenizer(
            (rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}\x{{200C}}\x{{200D}}]+|\p{{N}}{{1,3}}|{_REST}",),
        ),
    ),
    ("gemma4 granite-embed-multi-311m", PreTokenizer((), always_bos=True, characters="lines", newlines=True)),
    ("sarvam-moe", PreTokenizer((), characters="lines")),
    ("mmbert", PreTokenizer((), characters="words", newlines=True)),
    ("whitespace", PreTokenizer((), characters="spaces")),
    ("deepseek-coder", PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _EAST_ASIAN, r"\p{N}"))),
]
PRE_TOKENIZERS = {name: pre for names, pre in _NAMES for name in names.split()}


def pre_tokenizer(name: str) -> PreTokenizer:
    """Raises TokenizerError for a name that is not known."""
    try:
        return PRE_TOKENIZERS[name]
    except KeyError:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise TokenizerError(f"the file's pre-tokenizer {name!r:.40} is not known; supported are: {known}") from None
