"""Comparisons: several recipes on one input, each a job of its own, all of them inserted in one transaction or none.

    {"input": id, "recipes": ["w4a16", {"steps": [..]}, {"name": "ours", "recipe": {"steps": [..]}, "output": {"format": "packed"}}], "calibration": id, ..}

A recipe is a preset's name, a recipe, or an object with `preset` or `recipe`, and `name`, `budget`, `output` and `gates` of its own. Everything else of a job's body
is given once and counts for all. The jobs run one after another (`app.jobs.claim`).
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from sqlalchemy.orm import Session

from app import audit
from app.errors import InvalidJobSpec, ModelpressError, Unprocessable
from app.job_spec import COMPANIONS, JobSpec, Tag
from app.models import Comparison, Job, new_id
from app.storage import Storage
from app.strict import Id, Strict, validate
from app.submission import Submission, prepare

MAX_RECIPES = 32
_OWN = ("name", "preset", "recipe", "budget", "output", "gates")
SHARED = tuple(f for f in JobSpec.model_fields if f not in ("recipe", "budget"))


class _Body(Strict):
    """What is held against the body itself; each job's part is held against `JobSpec`."""

    input: Id
    recipes: Annotated[list[Any], Field(min_length=1, max_length=MAX_RECIPES)]


class _Named(Strict):
    name: Tag


def bodies(body: Any) -> list[tuple[str, dict[str, Any]]]:
    """The bodies of the jobs that a comparison's body asks for, each with the name of its line.

    Raises:
        InvalidJobSpec: with a pointer into it.
    """
    if not isinstance(body, dict):
        raise InvalidJobSpec("the body must be an object with input and recipes")
    if unknown := [f for f in body if f != "recipes" and f not in SHARED]:
        pointer = "/" + str(unknown[0]).replace("~", "~0").replace("/", "~1")
        raise InvalidJobSpec(f"a comparison has recipes and {', '.join(SHARED)}; what belongs to one recipe stands with it", pointer=pointer)
    recipes = validate(_Body, {k: body[k] for k in ("input", "recipes") if k in body}).recipes
    shared = {k: v for k, v in body.items() if k != "recipes"}
    made = [(name, shared | own) for name, own in (_one(i, item) for i, item in enumerate(recipes))]
    count = {name: sum(n == name for n, _ in made) for name, _ in made}
    return [(f"{name} ({i})" if count[name] > 1 else name, asked) for i, (name, asked) in enumerate(made)]


def _one(i: int, item: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(item, str):
        return item, {"preset": item}
    if not isinstance(item, dict):
        raise InvalidJobSpec("a recipe is a preset's name, an object with steps, or one with preset or recipe", pointer=f"/recipes/{i}")
    if "steps" in item:
        return label(item), {"recipe": item}
    if unknown := [k for k in item if k not in _OWN]:
        raise InvalidJobSpec(f"{str(unknown[0])[:100]!r} is none of steps, {', '.join(_OWN)}; the rest is given once, for all", pointer=f"/recipes/{i}")
    own = {k: v for k, v in item.items() if k != "name"}
    if "name" in item:
        return validate(_Named, {"name": item["name"]}, f"/recipes/{i}").name, own
    return str(own["preset"])[:100] if "preset" in own else label(own.get("recipe")), own


def label(recipe: Any) -> str:
    """A recipe in few words, such as `prune fisher 0.5, quantize gradient 4`. What is wrong with it is not said here."""
    steps = recipe.get("steps") if isinstance(recipe, dict) else None
    words = []
    for step in steps if isinstance(steps, list) else ():
        if isinstance(step, dict):
            told = (step.get(k) for k in ("method", "saliency", "mask_structure", "sparsity", "mapping", "type", "num_bits", "avg_bits", "group_size", "scale_bits"))
            words.append(" ".join(str(v) for v in told if isinstance(v, (str, int, float)) and str(v).isprintable()))
            if isinstance(step.get("recover"), dict):
                words[-1] += f" recover {step['recover'].get('steps')}"
    return ", ".join(words)[:100] or "recipe"


def prepared(body: Any, owner: str, storage: Storage, customer_key: bytes | None = None) -> list[tuple[str, Submission]]:
    """What is to be inserted, by the names of the lines.

    Raises:
        ModelpressError: as a job of that body would, pointing into the comparison's (`/recipes/2/steps/0/num_bits`).
    """
    out = []
    for i, (name, asked) in enumerate(bodies(body)):
        try:
            out.append((name, prepare(asked, owner, storage, customer_key)))
        except ModelpressError as e:
            raise _pointed(e, i, body["recipes"][i]) from None
    return out


def _pointed(error: ModelpressError, i: int, item: Any) -> ModelpressError:
    """The same, pointing into the comparison's body."""

    def place(pointer: str | None) -> str | None:
        for field in ("/recipe", "/preset", "/budget", "/output", "/gates"):
            if pointer is not None and (pointer == field or pointer.startswith(field + "/")):
                of_recipe = field in ("/recipe", "/preset", "/budget")
                if isinstance(item, str) or "steps" in item:
                    return f"/recipes/{i}{pointer.removeprefix(field)}" if of_recipe else pointer
                return f"/recipes/{i}{pointer}" if of_recipe or field[1:] in item else pointer
        return pointer

    if error.pointer is None and isinstance(error, Unprocessable):
        error.pointer = "/recipe"
    error.pointer = place(error.pointer)
    if "errors" in error.extra:
        error.extra["errors"] = [e | {"pointer": place(e.get("pointer"))} for e in error.extra["errors"]]
    if isinstance(error, InvalidJobSpec) and (error.pointer or "").split("/")[1:2] in ([f] for f in ("output", "gates", *COMPANIONS)):
        error.detail = f"recipe {i}: {error.detail}"  # what is given once for all does not fit this one
    return error


def insert(s: Session, owner: str, lines: list[tuple[str, Submission]], ident: str) -> tuple[Comparison, list[Job]]:
    """All jobs and what holds them together.

    Raises:
        NotFound, TooManyJobs: then the caller's transaction is to be rolled back.
    """
    first = lines[0][1]
    audit.record(s, "comparison.submit", owner, ident)
    idents = sorted(new_id() for _ in lines)  # jobs of one moment are taken in the order of their ids
    made = [line.insert(s, i, ident) for (_, line), i in zip(lines, idents, strict=True)]
    told = [{"name": name, "recipe": line.document["recipe"], "output_format": line.document["output"]["format"]} for name, line in lines]
    spec = {role: first.document.get(role) for role in ("input", *COMPANIONS)} | {"recipes": told}
    s.add(comparison := Comparison(id=ident, owner=owner, spec=spec, jobs=idents))
    s.flush()
    return comparison, made

