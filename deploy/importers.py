"""Which importers run a NIR graph as it is meant: a table of rules, held against the graph."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import resources
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tser.deploy.conventions import Departure
from tser.deploy.data_files import parse
from tser.deploy.facts import FACTS, TIMED, Facts, differs, of_classes, sums
from tser.export.graph import STATEFUL

Effect = Literal["fails", "differs", "unknown"]
Verdict = Literal["correct", "differs", "fails", "unknown"]
_SEVERITY: tuple[Effect, ...] = ("fails", "differs", "unknown")
_WITH_OPTION = ("sums", "is", "dt_other")


class Rule(BaseModel):
    """A fact about a graph, and what the importer then does."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    when: str
    """Name of a fact, or "sums", "is", "dt_other"."""
    effect: Effect
    """It refuses the graph or breaks, it gives other spikes, or nobody has compared them."""
    why: str
    """In words."""
    least: int | None = Field(default=None, ge=2)
    """For "sums": inputs of one node."""
    classes: tuple[str, ...] = ()
    """For "is": classes of NIR."""
    seconds: float | None = Field(default=None, gt=0)
    """For "dt_other": the only dt it has [s]."""

    @model_validator(mode="after")
    def _known(self) -> Rule:
        if self.when not in (*FACTS, *_WITH_OPTION):
            raise ValueError(f"{self.when!r} is no fact")
        options = {"sums": self.least, "is": self.classes or None, "dt_other": self.seconds}
        for name, value in options.items():
            if (name == self.when) != (value is not None):
                raise ValueError(f"{self.when!r} has an option too few or too many")
        return self


class Importer(BaseModel):
    """A tool that reads NIR."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    name: str
    """Of the tool."""
    version: str
    """That was run."""
    call: str
    """How it imports a graph."""
    reads: tuple[str, ...]
    """Classes of NIR that it knows, beside ports and nested graphs."""
    unread: Effect
    """What happens to the others: it refuses them, or drops them silently."""
    conventions: tuple[Departure, ...] = ()
    """In which points its LIF is not that of NIR's equations in Euler steps."""
    rules: tuple[Rule, ...]
    """Held against the graph."""


class Importers(BaseModel):
    """The table."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: Literal[1]
    importers: tuple[Importer, ...]


@dataclass(frozen=True)
class Judgement:
    """What one importer does with one graph.

    Attributes:
        importer: which.
        verdict: "correct" when no rule applies, else the worst effect.
        reasons: of that effect and the lesser ones, with the nodes.
    """

    importer: Importer
    verdict: Verdict
    reasons: tuple[str, ...]


def load_importers() -> tuple[Importer, ...]:
    """The table that ships with tser.

    Raises:
        InputFileError: it is not valid.
    """
    text = (resources.files("tser.deploy") / "importers.toml").read_text("utf-8")
    return parse(text, Importers, "the table importers.toml").importers


def judge(importer: Importer, facts: Facts) -> Judgement:
    """Hold every rule of ``importer`` against a graph."""
    found: list[tuple[Effect, str]] = []
    known = {"Input", "Output", *importer.reads}
    if unread := of_classes(facts, lambda kind: kind not in known):
        kinds = sorted({facts.graph.nodes[name].kind for name in unread})
        done = {"fails": "does not know", "differs": "drops", "unknown": "was not run with"}
        found.append((importer.unread, f"it {done[importer.unread]} {', '.join(kinds)}"))
    for rule in importer.rules:
        if not (nodes := _applies(rule, facts)):
            continue
        if rule.when in TIMED and math.isnan(facts.graph.dt):
            found.append(("unknown", f"depends on dt, which is not known: {rule.why}"))
        else:
            found.append((rule.effect, f"{rule.why}{named(nodes)}"))
    found.sort(key=lambda reason: _SEVERITY.index(reason[0]))
    verdict: Verdict = found[0][0] if found else "correct"
    return Judgement(importer, verdict, tuple(dict.fromkeys(text for _, text in found)))


def _applies(rule: Rule, facts: Facts) -> list[str]:
    if rule.when == "sums":
        return sums(facts, rule.least or 2)
    if rule.when == "is":
        return of_classes(facts, lambda kind: kind in rule.classes)
    if rule.when == "dt_other":
        timed = [n.name for n in facts.nodes(*STATEFUL)]
        return timed if differs(facts.graph.dt, rule.seconds) else []
    return FACTS[rule.when](facts)


def named(nodes: list[str] | tuple[str, ...], most: int = 3) -> str:
    """Some of the nodes, in brackets, to stand behind a sentence."""
    more = f" and {len(nodes) - most} more" if len(nodes) > most else ""
    return f" ({', '.join(nodes[:most])}{more})"
