"""`pyggml-cli`: continue a text, or converse (chat.py). Its flags are those of llama.cpp's completion tool (completion_flags.py).

Owns the step from flags to a text and how it is printed. Everything heavy is imported when it is needed, so that --help
and mistakes answer at once.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pyggml.errors import GrammarError, PyggmlError, SamplerError
from pyggml_cli.about import answered
from pyggml_cli.chat import chat, is_chat
from pyggml_cli.color import colors
from pyggml_cli.completion_flags import ABOUT, END, GROUPS, ROWS, unescape
from pyggml_cli.entry import run
from pyggml_cli.environment import VARIABLES
from pyggml_cli.flags import UsageError, Values, help_text, parse
from pyggml_cli.interrupts import on_ctrl_c
from pyggml_cli.reverse_prompt import reverse_prompts
from pyggml_cli.sampling import sampler_params
from pyggml_cli.slots import full, prompt_cache, slot_for
from pyggml_cli.speculation import Guesses, guesses_for
from pyggml_cli.terminal import text_for, visible
from pyggml_cli.text_files import read_bytes, read_text
from pyggml_cli.verbose_prompt import show_prompt

if TYPE_CHECKING:
    from pyggml.grammar import Trigger
    from pyggml.runtime.prompt_cache import PromptCache
    from pyggml.runtime.slot import Slot
    from pyggml.sampler import SamplerChain
    from pyggml.sampler.budget import BudgetParams
    from pyggml.tokenizer import Tokenizer
    from pyggml_cli.timings import RunTimings

EXAMPLES = (
    ('pyggml-cli -p "Hello, my name is" -n 64', "continue a text with the default model"),
    ('pyggml-cli -m model.gguf -cnv -sys "Answer in one sentence."', "converse"),
    (
        "pyggml-cli -f notes.txt -n 100 --temp 0 > more.txt",
        "continue a file, always alike; only the text goes to stdout",
    ),
    ('pyggml-cli -p "Three colors:" -j \'{"type": "array"}\'', "have an answer that is JSON"),
    ('pyggml-cli --rpc 192.168.0.2:50052 -p "Hi"', "compute on another machine, where pyggml-rpc-server runs"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit codes: see entry.run."""
    return run(_command, argv)


def _command(argv: Sequence[str]) -> int:
    values = parse(ROWS, argv, os.environ, VARIABLES)
    if answered(values, lambda: help_text("pyggml-cli [-m FNAME] [-p PROMPT] [flags]", ABOUT, GROUPS, END, EXAMPLES)):
        return 0
    if values.completion_bash:
        print(_bash_script(), end="")
        return 0
    if values.cache_list:
        _list_cached()
        return 0
    named = any(name in values.seen for name in ("prompt", "file", "binary_file"))
    if is_chat(values):
        return chat(values, _prompt(values) if named else None, _chain)
    return _complete(values, _prompt(values) if named or values.prompt_cache is None else None)


def _list_cached() -> None:
    """The default model, by its file, and what -hf has fetched, by the names that it takes."""
    from pyggml.cachedir import cache_dir
    from pyggml_cli.caches import cached_models, hub_folder

    home = Path.home()
    print(f"folders: {cache_dir('models')}, {hub_folder(os.environ, home)}", file=sys.stderr)
    models = sorted(path.name for path in cache_dir("models").glob("*.gguf"))
    models += cached_models(os.environ, home)
    print(
        f"number of models in cache: {len(models)}",
        *(f"{i:4}. {visible(m)}" for i, m in enumerate(models, 1)),
        sep="\n",
    )


def _prompt(values: Values) -> str:
    """The prompt, whichever flag brought it. Raises UsageError."""
    given = [name for name in ("prompt", "file", "binary_file") if name in values.seen]
    if len(given) != 1:
        nothing = "no prompt: give one with -p or -f, or converse with -cnv"
        raise UsageError("give one of -p, -f and -bf" if given else nothing)
    if values.prompt is not None:
        text = values.prompt
    elif values.file is not None:
        text = read_text(values.file, stdin=True).removesuffix("\n")
    else:
        text = read_bytes(values.binary_file, stdin=True).decode("utf-8", "surrogateescape")
    return unescape(text) if values.escape else text


def _chain(
    values: Values,
    tokenizer: "Tokenizer",
    n_ctx: int,
    grammar_trigger: "Trigger | None" = None,
    budget: "BudgetParams | None" = None,
) -> "SamplerChain":
    """The sampler that the flags ask for; a grammar holds from `grammar_trigger` on. Raises UsageError."""
    from pyggml.sampler import SamplerChain

    params = replace(sampler_params(values, tokenizer, n_ctx), grammar_trigger=grammar_trigger, budget=budget)
    try:
        return SamplerChain(params, tokenizer.n_vocab, vocab=tokenizer)
    except (SamplerError, GrammarError) as reason:
        raise UsageError(str(reason)) from None


def _bash_script() -> str:
    names = sorted(name for group in GROUPS.values() for row in group for name in (*row.names, *row.off))
    return f"complete -o default -W '{' '.join(names)}' pyggml-cli\n"


def _complete(values: Values, prompt: str | None) -> int:
    """Continue `prompt`; None: what --prompt-cache holds."""
    from pyggml.runtime.context import Context
    from pyggml.tokenizer import Tokenizer
    from pyggml_cli.loading import compile_progress, context_arguments, model_for
    from pyggml_cli.timings import RunTimings

    timings = RunTimings()
    with compile_progress(), model_for(values) as model:
        tokenizer = Tokenizer.from_metadata(model.file.metadata)
        n_ctx = values.n_ctx or model.config.n_ctx_train
        if prompt is not None:
            tokens = _fitting(tokenizer.encode(prompt, add_special=True, parse_special=True), n_ctx)
            if not tokens:
                if tokenizer.bos is None:
                    raise UsageError("the prompt is empty, and the model has no BOS token to begin with")
                tokens = [tokenizer.bos]
        chain = _chain(values, tokenizer, n_ctx)
        if n_ctx > model.config.n_ctx_train:
            print(f"warning: the model was trained on {model.config.n_ctx_train} tokens, not {n_ctx}", file=sys.stderr)
        context = Context(model, n_ctx, **context_arguments(values, model))
        timings.loaded()
        try:
            if context.encodes and values.prompt_cache is not None:
                raise UsageError(
                    "--prompt-cache: an encoder reads this model's prompt whole, no part of it can be kept"
                )
            cache = prompt_cache(values, context)
            if prompt is None:
                tokens = _fitting(cache.tokens, n_ctx)
                if not tokens:
                    raise UsageError(f"no prompt: give one with -p or -f, {cache.path} holds none")
            if values.verbose_prompt:
                show_prompt(tokens, tokenizer)
            with guesses_for(values, context) as guesses, on_ctrl_c(context.abort):
                slot = slot_for(values, context, tokens, tokenizer.add_bos)
                end = _print_text(values, tokens, tokenizer, chain, timings, cache, slot, guesses)
        except KeyboardInterrupt:
            _report("", timings if values.perf else None)
            raise
        except (PyggmlError, OSError):
            _report("", None)
            raise
        finally:
            context.close()
    _report(end, timings if values.perf else None)
    return 0


def _fitting(tokens: list[int], n_ctx: int) -> list[int]:
    from pyggml.runtime.sequence import SPARE

    if n_ctx <= SPARE:
        raise UsageError(f"a context of {n_ctx} is too small: a prompt must leave {SPARE} tokens free")
    if len(tokens) > n_ctx - SPARE:
        raise UsageError(f"the prompt has {len(tokens)} tokens; a context of {n_ctx} takes at most {n_ctx - SPARE}")
    return tokens


def _report(end: str, timings: "RunTimings | None") -> None:
    """What follows the text: a line break if it went to a terminal, why it ended, the timings."""
    if sys.stdout.isatty():
        print(flush=True)
    lines = [end] if end else []
    if timings is not None:
        lines += ["", *timings.lines()]
    for line in lines:
        print(line, file=sys.stderr)


def _print_text(
    values: Values,
    tokens: list[int],
    tokenizer: "Tokenizer",
    chain: "SamplerChain",
    timings: "RunTimings",
    cache: "PromptCache",
    slot: "Slot",
    guesses: Guesses,
) -> str:
    """Print the prompt and what follows it; why it ended, "" for the number of tokens wanted."""
    from pyggml.runtime.generate import generate
    from pyggml.runtime.sequence import Finish
    from pyggml.runtime.sequence import Sequence as Text
    from pyggml.runtime.stops import SLACK, ReversePrompts
    from pyggml.tokenizer import StreamDecoder

    stops = ReversePrompts([text.encode("utf-8", "surrogateescape") for text in reverse_prompts(values)], tokenizer)
    out = sys.stdout
    if hasattr(out, "reconfigure"):
        out.reconfigure(encoding="utf-8", errors="replace", newline="")
    shown, decoder = text_for(out), StreamDecoder(tokenizer, values.special)
    text = Text(
        tokens, chain, tokenizer, special=values.special, max_tokens=values.n_predict, stops=stops, timings=timings,
        drafter=guesses.make(0),
    )  # fmt: skip
    text.answer_to(slot.context.start_token)
    tokens = text.tokens[:]
    if values.display_prompt:
        paint = colors(values.color)
        out.write(f"{paint.prompt}{shown(''.join(map(decoder.push, tokens)))}{paint.reset}")
        out.flush()
    for token in tokens:
        chain.accept(token)
    if stops.begin(tokens, SLACK):
        text.finish = Finish.STOP
    for piece in generate(slot, text, cache=cache, pace=guesses.pace):
        out.write(shown(decoder.push(piece.token)))
        out.flush()
    out.write(shown(decoder.finish()))
    out.flush()
    cache.keep_all(slot)
    ends = {Finish.EOG: "[end of text]", Finish.STOP: "[reverse prompt]", Finish.FULL: full(slot)}
    return ends.get(text.finish or Finish.LENGTH, "")


if __name__ == "__main__":
    sys.exit(main())
