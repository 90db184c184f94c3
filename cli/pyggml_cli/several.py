"""Which models `pyggml-server` has where it has several: those of a folder, of the caches, of a file of presets; and the values that
each is loaded with.

Owns their order: what the command line says counts for most, then a model's section, then [*], then the environment
(llama.cpp: tools/server/server-models.cpp, load_models).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pyggml_cli import hub
from pyggml_cli.caches import cached_models
from pyggml_cli.flags import UsageError, Values, parse
from pyggml_cli.presets import ALL, OF_THE_SERVER, Preset, Section, preset_of, sections
from pyggml_cli.server_flags import ROWS, VARIABLES
from pyggml_cli.speculation import wanted_types

if TYPE_CHECKING:
    from pyggml_server.models import Found


def of_several(values: Values) -> str:
    """The flag that asks for several models; empty: one is served."""
    if values.models_dir is not None:
        return "--models-dir"
    return "--models-preset" if values.models_preset is not None else "--models-cache" if values.models_cache else ""


class Several:
    """`notes` are about what the file of presets says in vain."""

    def __init__(self, values: Values, argv: Sequence[str], environ: Mapping[str, str]) -> None:
        self._values, self._argv, self._environ = values, argv, environ
        self._named = values.seen - values.from_environment
        cache = values.models_cache
        self._cache = values.models_preset is not None if cache is None else bool(cache)
        self.notes: list[str] = []

    @property
    def where(self) -> str:
        """Where the models come from."""
        values = self._values
        places = [*filter(None, (values.models_dir, values.models_preset)), *(["the caches"] if self._cache else [])]
        return ", ".join(places)

    @property
    def nothing(self) -> str:
        """Why there is no model."""
        if self._values.models_preset is None and not self._cache:
            return f"--models-dir {self.where}: there is no GGUF file in it, nor in a folder of it"
        return f"{self.where}: there is no model"

    def listed(self) -> "dict[str, Found]":
        """The models that there are, by name. Raises UsageError for a file of presets that is wrong, OSError."""
        from pyggml_server.models import Found, listed_in

        values, found = self._values, dict[str, Found]()
        if self._cache:
            found |= {name: Found(path, "cache") for name, path in cached_models(self._environ, Path.home()).items()}
        if values.models_dir is not None:
            found |= listed_in(Path(values.models_dir))
        given = {ALL: Section("")} if values.models_preset is None else sections(values.models_preset)
        of_all, made, notes, hidden = given.pop(ALL), dict[str, Found](), dict[str, None](), set[str | None]()
        for name in sorted({*found, *given}):
            section = given.get(name, Section(of_all.where))
            preset = preset_of((of_all, section), ROWS, VARIABLES, self._named)
            own = self._own(preset, section.where, name in found)
            notes.update(dict.fromkeys((*preset.notes, *(f"{note}: {section.where}" for note in own.notes))))
            base = found.get(name, Found(None, "preset"))
            path = Path(own.model) if own.model is not None else None if own.hf_repo is not None else base.path
            tags = values.tags if "tags" in self._named or own.tags is None else own.tags
            made[name] = Found(
                path,
                base.source,
                preset.flags,
                tuple(own.alias or ()),
                tuple(tags or ()),
                preset.at_start,
                preset.patience,
            )
            if preset.hides_cached:
                hidden.update(_cached_name(found, *repo) for repo in _repositories(own))
        made = {name: replace(one, hidden=name in hidden) for name, one in made.items()}
        _check_names(made)
        self.notes = list(notes)
        return made

    def _own(self, preset: Preset, where: str, known: bool) -> Values:
        """What a section says, checked as far as it can be without a model. Raises UsageError."""
        try:
            own = parse(ROWS, preset.flags)
            wanted_types(own)
            if own.model is not None and own.hf_repo is not None:
                raise UsageError("model names a file, hf-repo a repository: give one of them")
            if not known and own.model is None and own.hf_repo is None:
                raise UsageError("there is no model of this name, so that it needs model or hf-repo")
            if own.sleep_after is not None:
                raise UsageError(
                    "sleep-idle-seconds: not of one of several models, of which the least used are unloaded"
                )
        except UsageError as reason:
            raise UsageError(f"{where}: {reason}") from None
        return own

    def values_of(self, name: str, found: "Found") -> Values:
        """What the model is loaded with. Raises UsageError."""
        own = parse(ROWS, [*found.flags, *self._argv], self._environ, VARIABLES)
        whole = {dest: self._values.given[dest] for dest in OF_THE_SERVER}
        given = {**own.given, **whole, "alias": [name], "tags": list(found.tags)}
        if found.path is not None:
            given |= {"model": str(found.path), "hf_repo": None, "hf_file": None}
        return replace(own, given=given)


def _repositories(own: Values) -> list[tuple[hub.Repo, str | None]]:
    """Those of a model and of the smaller one that guesses, each with the file that is named in it."""
    found = [(own.hf_repo, own.hf_file), (own.draft_repo, None)]
    return [(repo, file) for repo, file in found if repo is not None]


def _cached_name(found: "Mapping[str, Found]", wanted: hub.Repo, file: str | None) -> str | None:
    """What the cache calls the model of a repository."""
    repo, quant = wanted
    files = {
        one.path.name: name
        for name, one in found.items()
        if one.source == "cache" and one.path is not None and name.rpartition(":")[0] == repo
    }
    chosen = file if file is not None else hub.choose(list(files), quant)
    return None if chosen is None else files.get(chosen)


def _check_names(made: "Mapping[str, Found]") -> None:
    """Raises UsageError where a name would be two models'."""
    owner: dict[str, str] = {name: name for name in made}
    for name, one in made.items():
        for alias in one.aliases:
            if owner.setdefault(alias, name) != name:
                raise UsageError(f"alias {alias} of {name}: a name of {owner[alias]} too")
