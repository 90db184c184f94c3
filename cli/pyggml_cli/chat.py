"""pyggml-cli in conversation: the user's lines in, the model's replies out, until the user has had enough.

Owns reading lines, commands such as /regen, and the loop of a reply.
"""

import functools
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from pyggml.errors import ComputeError, PyggmlError
from pyggml_cli.color import colors
from pyggml_cli.completion_flags import unescape
from pyggml_cli.flags import UsageError, Values
from pyggml_cli.interrupts import on_ctrl_c
from pyggml_cli.line_editor import LineEditor
from pyggml_cli.reply_display import ReplyDisplay
from pyggml_cli.reverse_prompt import reverse_prompts
from pyggml_cli.slots import full, prompt_cache, slot_for
from pyggml_cli.speculation import Guesses, guesses_for
from pyggml_cli.template_flags import template_variables
from pyggml_cli.terminal import text_for
from pyggml_cli.text_files import read_text
from pyggml_cli.verbose_prompt import show_prompt

if TYPE_CHECKING:
    from pyggml.chat import Conversation, PlainDialogue
    from pyggml.runtime.context import Context
    from pyggml.runtime.prompt_cache import PromptCache
    from pyggml.runtime.sequence import Sequence
    from pyggml.runtime.slot import Slot
    from pyggml.sampler import SamplerChain
    from pyggml.tokenizer import Tokenizer
    from pyggml_cli.timings import RunTimings

USUAL_MESSAGE = 32  # tokens; the kernels for so many are compiled while the user types
PROMPT = "> "
COMMANDS = {
    "/clear": "forget the conversation",
    "/regen": "take the last reply back and have another one",
    "/save": "FILE: write the conversation to a file",
    "/load": "FILE: go on with a conversation from a file",
    "/help": "this list",
    "/exit": "end, as Ctrl-D does",
}
WITH_FILE = ("/save", "/load")
SHOWN_MESSAGES = 4  # of a conversation that was loaded
WAYS_OUT = "/save keeps it, /clear begins anew, and with --context-shift the oldest part is forgotten"
HELP = "\n".join(
    [*(f"{name:<8}{text}" for name, text in COMMANDS.items()), "A line that ends in \\ goes on in the next one."]
)
HELP_MULTILINE = "A message ends with a line that ends in \\."


def is_chat(values: Values) -> bool:
    """Whether the flags ask for a conversation: by name, by what only makes sense in one, or by giving no prompt."""
    if without_template(values):
        return True
    if values.conversation is not None:
        return bool(values.conversation)
    asking = ("single_turn", "system", "system_file", "chat_template", "chat_template_file", "multiline")
    prompts = ("prompt", "file", "binary_file")
    if any(name in values.seen for name in asking):
        return True
    return not any(name in values.seen for name in (*prompts, "prompt_cache"))


def without_template(values: Values) -> bool:
    """Whether it shall be a dialogue without a template: text around the user's lines is given, or -i or -if."""
    if values.in_prefix is not None or values.in_suffix is not None or values.in_prefix_bos:
        return True
    templated = ("system", "system_file", "chat_template", "chat_template_file")
    interactive = values.interactive or values.interactive_first
    return bool(interactive) and not values.conversation and not any(name in values.seen for name in templated)


def chat(values: Values, first: str | None, chain_for: Callable[..., "SamplerChain"]) -> int:
    """Converse; `first` is the user's first message, if a flag brought it. The exit code.

    chain_for  (values, tokenizer, n_ctx, when a grammar begins to hold, how long it may reason) -> what chooses tokens
    """
    from pyggml.chat import KEY, ChatTemplate, Conversation, PlainDialogue
    from pyggml.runtime.context import Context
    from pyggml.tokenizer import Tokenizer
    from pyggml_cli.loading import compile_progress, context_arguments, model_for
    from pyggml_cli.timings import RunTimings

    system, template = _text(values, "system", "-sys"), _text(values, "chat_template", "--chat-template")
    timings = RunTimings()
    with compile_progress(), model_for(values) as model:
        tokenizer = Tokenizer.from_metadata(model.file.metadata)
        if model.modules.encodes:
            what = f"a {model.config.architecture} model answers one text, which its encoder reads whole"
            raise UsageError(f"{what}, and holds no conversation: give the text with -p or -f alone")
        conversation: Conversation | PlainDialogue
        if without_template(values):
            prefix, suffix = (_unescape(values, text or "") for text in (values.in_prefix, values.in_suffix))
            conversation = PlainDialogue(tokenizer, first or "", prefix, suffix, values.in_prefix_bos)
        else:
            if template is None and KEY not in model.file.metadata:
                print("note: the file has no chat template, chatml is used", file=sys.stderr)
            chosen = ChatTemplate.choose(model.file.metadata, tokenizer, template)
            told = template_variables(values)
            conversation = Conversation(chosen, tokenizer, system or "", told, values.reasoning_format)
        n_ctx = values.n_ctx or model.config.n_ctx_train
        make_chain = functools.partial(chain_for, values, tokenizer, n_ctx)
        chain = make_chain()
        if n_ctx > model.config.n_ctx_train:
            print(f"warning: the model was trained on {model.config.n_ctx_train} tokens, not {n_ctx}", file=sys.stderr)
        context = Context(model, n_ctx, **context_arguments(values, model))
        timings.loaded()
        try:
            cache = prompt_cache(values, context)
            context.prepare(USUAL_MESSAGE)
            with guesses_for(values, context) as guesses:
                session = ChatSession(
                    values, conversation, tokenizer, context, chain, make_chain, timings, cache, guesses
                )
                session.run(first)
            if session.slot is not None:
                cache.keep_all(session.slot)
        finally:
            context.close()
            if values.perf:
                print("", *timings.lines(), sep="\n", file=sys.stderr)
    return 0


def _text(values: Values, name: str, flag: str) -> str | None:
    """What the flag `name` gives, or the file that its companion names. Raises UsageError, OSError."""
    text, file_name = getattr(values, name), getattr(values, f"{name}_file")
    if text is not None and file_name is not None and len({name, f"{name}_file"} & values.from_environment) == 1:
        text, file_name = (None, file_name) if name in values.from_environment else (text, None)  # the flag counts
    if text is not None and file_name is not None:
        raise UsageError(f"give {flag} or a file, not both")
    if file_name is not None:
        return read_text(file_name).replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")
    return _unescape(values, text) if name == "system" and text is not None else text


def _unescape(values: Values, text: str) -> str:
    return unescape(text) if values.escape else text


class _EndNow(KeyboardInterrupt):
    """A second Ctrl-C while a reply is computed."""


class ChatSession:
    """One conversation of a user with a model that is loaded."""

    def __init__(
        self,
        values: Values,
        conversation: "Conversation | PlainDialogue",
        tokenizer: "Tokenizer",
        context: "Context",
        chain: "SamplerChain",
        make_chain: "Callable[..., SamplerChain]",
        timings: "RunTimings",
        cache: "PromptCache",
        guesses: Guesses,
    ) -> None:
        self.values = values
        self.drafter, self.pace = guesses.make(0), guesses.pace
        self.cache = cache
        self.conversation = conversation
        self.tokenizer = tokenizer
        self.context = context
        self.chain = chain
        self._make_chain = make_chain  # of a trigger of the grammar and a budget
        self.timings = timings
        self.slot: Slot | None = None  # from the first turn on
        self.reverse = reverse_prompts(values)
        self.shown = False  # --verbose-prompt: the first one
        self.plain = without_template(values)
        self.prefix, self.suffix = PROMPT, ""
        if self.plain:
            self.prefix, self.suffix = (_unescape(values, text or "") for text in (values.in_prefix, values.in_suffix))
        self.colors = colors(values.color)
        self.asks = sys.stdin.isatty()
        self.editor: LineEditor | None = None
        if self.asks and sys.stdout.isatty() and not values.simple_io:
            self.editor = LineEditor(tuple(COMMANDS), WITH_FILE)
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(encoding="utf-8", errors="replace", newline="")

    def run(self, first: str | None) -> None:
        """Until the user ends it, or after one reply with -st. Errors end it too, unless there is someone to read."""
        if self.asks and not self.values.single_turn:
            print("Ctrl-C stops a reply, Ctrl-D ends; /help lists commands", file=sys.stderr)
        if self.plain and first and self.values.display_prompt:
            sys.stdout.write(f"{self.colors.prompt}{text_for(sys.stdout)(first)}{self.colors.reset}")
            sys.stdout.flush()
        if first is not None and not (self.plain and self.values.interactive_first):
            self._turn(None if self.plain else first, command=False)
            if self.values.single_turn:
                return
        try:
            self._converse()
        finally:
            if self.editor is not None:
                self.editor.close()

    def _converse(self) -> None:
        """Line by line. In a terminal Ctrl-C takes back the line that stands there; only the next one ends it all."""
        warned = False
        while True:
            try:
                text = self._read()
                warned = False
                if text is None:
                    return
                if (text or self.plain) and (not self._turn(text) or self.values.single_turn):
                    return
            except KeyboardInterrupt as pressed:
                half_typed = self.editor is not None and self.editor.left_over.strip()
                if not self.asks or isinstance(pressed, _EndNow) or (warned and not half_typed):
                    raise
                warned = True
                print("\nCtrl-C again, or Ctrl-D, ends", file=sys.stderr)

    def _read(self) -> str | None:
        """The next message, None at the end of the input. Lines that go on are put together."""
        lines: list[str] = []
        while True:
            line = self._line(self.prefix if not lines else "  ")
            if line is None:
                return "\n".join(lines) if lines else None
            goes_on = line.endswith("\\") != bool(self.values.multiline)
            lines.append(line.removesuffix("\\"))
            if not goes_on:
                return "\n".join(lines)

    def _line(self, prompt: str) -> str | None:
        if self.editor is not None:
            try:
                return self.editor.read(prompt + (f"\x01{self.colors.typed}\x02" if self.colors.typed else "")).rstrip(
                    "\n"
                )
            except EOFError:
                print(flush=True)
                return None
            finally:
                print(self.colors.reset, end="", flush=True)
        if self.plain:
            print(prompt, end="", flush=True)
        elif self.asks:
            print(prompt, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        return line.removesuffix("\n") if line else None

    def _turn(self, text: str | None, command: bool = True) -> bool:
        """Answer a message (None: go on with the prompt), or carry out a command; whether to go on."""
        try:
            return self._command(text) if text and command and _is_command(text) else self._answer(text)
        except PyggmlError as reason:
            if not self.asks or self.values.single_turn:
                raise
            print(f"error: {' '.join(str(reason).split())}", file=sys.stderr)
            return True

    def _command(self, text: str) -> bool:
        name, _, rest = text.strip().partition(" ")
        rest = rest.strip()
        if name not in COMMANDS:
            raise UsageError(f"unknown command {name}; /help lists them")
        if name in WITH_FILE and not rest:
            raise UsageError(f"{name} needs a file name")
        if rest and name not in WITH_FILE:
            raise UsageError(f"{name} takes no argument")
        if name == "/exit":
            return False
        if name == "/regen":
            question = self.conversation.undo()
            if question is None:
                raise UsageError("/regen: there is no reply yet")
            return self._answer(question)
        if name == "/clear":
            self.conversation.clear()
            said = "forgotten"
        elif name == "/save":
            self.conversation.save(rest)
            said = f"saved: {len(self.conversation.messages)} messages"
        elif name == "/load":
            self.conversation.load(rest)
            said = f"loaded: {len(self.conversation.messages)} messages"
        else:
            said = f"{HELP}\n{HELP_MULTILINE}" if self.values.multiline else HELP
        print(said if name == "/help" else f"[{said}]", file=sys.stderr)
        if name == "/load":
            print(*self._last_messages(), sep="\n", file=sys.stderr)
        return True

    def _last_messages(self) -> list[str]:
        """A line for each of the last ones, so that one knows where one is."""
        import textwrap

        shown = self.conversation.messages[-SHOWN_MESSAGES:]
        more = ["  ..."] if len(shown) < len(self.conversation.messages) else []
        lines = [(m["role"], " ".join(m["content"].split())) for m in shown]
        return more + [f"  {role}: {textwrap.shorten(text, 72, placeholder=' ...')}" for role, text in lines]

    def _answer(self, question: str | None) -> bool:
        from pyggml.runtime.sequence import SPARE, Finish

        if question and self.suffix:
            print(self.suffix, end="", flush=True)
        turn = self.conversation.add_user(question or "")
        room = self.context.n_ctx - SPARE
        if len(turn.tokens) > room and not (self.slot and self.slot.shifts):
            self.conversation.undo()
            raise UsageError(
                f"the conversation would have {len(turn.tokens)} tokens; a context of {self.context.n_ctx} takes at most "
                f"{room}: {WAYS_OUT}"
            )
        if self.values.verbose_prompt and not self.shown:
            show_prompt(turn.tokens, self.tokenizer)
            self.shown = True
        self._reset_chain()
        for token in turn.new:
            self.chain.accept(token)
        end = ""
        with _Interruptible(self._abort) as watched:
            interrupted = watched.event
            reply = self._sequence(turn.tokens, interrupted, asks_at_once=question != "")
            parser = None if self.values.skip_parsing else self.conversation.parser()
            display = ReplyDisplay(sys.stdout, self.colors, parser)
            try:
                self._print_reply(reply, display)
            except PyggmlError as reason:
                if not (isinstance(reason, ComputeError) and interrupted.is_set()):
                    self.conversation.undo()
                    raise
            if interrupted.is_set():
                end = "[interrupted]"
            elif reply.finish is Finish.FULL and self.slot is not None:
                end = full(self.slot)
            display.finish()
            self.conversation.add_assistant(reply.answer, display.content, display.reasoning, display.written)
            if not (self.plain and reply.finish is Finish.STOP):
                sys.stdout.write("\n")
                if (
                    self.plain and reply.finish is Finish.EOG and self.reverse
                ):  # whose turn it is now must be in the text
                    sys.stdout.write(self.reverse[0])
                    first = self.tokenizer.encode(self.reverse[0], add_special=False, parse_special=True)
                    self.conversation.add_assistant(first, "")
            sys.stdout.flush()
            if end:
                print(end, file=sys.stderr, flush=True)
        return True

    def _reset_chain(self) -> None:
        """As newly made; a grammar begins to hold after reasoning that the prompt has opened, which has its budget."""
        from pyggml.sampler.budget import budget_of

        values, params = self.values, self.chain.params
        trigger = self.conversation.grammar_trigger if params.grammar else None
        said = self.tokenizer.encode(values.reasoning_budget_message, add_special=False, parse_special=True)
        budget = budget_of(self.conversation.reasoning_tokens, values.reasoning_budget, said)
        if (params.grammar_trigger, params.budget) != (trigger, budget):
            self.chain = self._make_chain(trigger, budget)
        self.chain.reset()

    def _abort(self) -> None:
        from pyggml import jit

        self.context.abort()
        jit.interrupt()  # where it waits for kernels

    def _sequence(self, tokens: list[int], interrupted: threading.Event, asks_at_once: bool) -> "Sequence":
        """The reply to `tokens`. `asks_at_once`: there is none where a plain dialogue ends with a reverse prompt already."""
        from pyggml.runtime.sequence import Finish, Sequence
        from pyggml.runtime.stops import ReversePrompts

        values = self.values
        stops = ReversePrompts([text.encode("utf-8", "surrogateescape") for text in self.reverse], self.tokenizer)
        reply = Sequence(
            tokens,
            self.chain,
            self.tokenizer,
            special=values.special or self.conversation.shown,
            max_tokens=values.n_predict,
            stops=stops,
            timings=self.timings,
            cancelled=interrupted,
            drafter=self.drafter,
        )
        if stops.begin(tokens if self.plain else []) and asks_at_once:
            reply.finish = Finish.STOP
        return reply

    def _print_reply(self, reply: "Sequence", display: ReplyDisplay) -> None:
        from pyggml.runtime.generate import NoRoomError, generate
        from pyggml.runtime.sequence import Finish

        first = self.slot is None
        if self.slot is None:
            self.slot = slot_for(self.values, self.context, reply.tokens, self.tokenizer.add_bos)
        try:
            for piece in generate(self.slot, reply, cache=self.cache if first else None, pace=self.pace):
                if piece.finish is not Finish.EOG or self.values.special:
                    display.feed(piece.data)
        except NoRoomError as reason:
            raise UsageError(f"{reason}: {WAYS_OUT}") from None


def _is_command(text: str) -> bool:
    """A line that begins with a slash and a word of letters; "/usr/bin" and "/ 2" are messages."""
    word = text.strip().split(" ")[0]
    return "\n" not in text and word[:1] == "/" and word[1:].isalpha()


class _Interruptible(on_ctrl_c):
    """While this lasts, Ctrl-C sets the event and ends the computation; pressed again it ends the program."""

    def __init__(self, abort: Callable[[], None]) -> None:
        super().__init__(self._stop, self._pressed)
        self.event = threading.Event()
        self._abort = abort
        self._presses = 0

    def _stop(self) -> None:
        self.event.set()
        self._abort()

    def _pressed(self) -> None:
        self._presses += 1
        self.event.set()
        if self._presses > 1:
            raise _EndNow
