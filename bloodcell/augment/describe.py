"""The registry for people, as Markdown: the README's short table, and the text of `docs/ops.md`.

All of it is made from the entries of ops, combinators and mixes. `python -m docs` writes it, with the pictures.
"""

import inspect
import sys
from collections.abc import Sequence

from bloodcell.augment.build import COMBINATORS, Combinator
from bloodcell.augment.entry import REGISTRY, Op
from bloodcell.augment.mixing import MIXES, MixOp
from bloodcell.spec import REQUIRED, Param

LEVELS = (0.2, 0.4, 0.6, 0.8, 1.0)  # of an op's full strength, in its picture
PAGE = "docs/ops.md"

_INTRODUCTION = """\
# The augmentations

*Written by `python -m docs` from the entries in `bloodcell/augment`; change those, not this page.*

A policy is a text: `flip | rotate(180) | oneof(gridmask, cutout(0.5))@0.5`. `|` applies from left to right and `@p`
gates what stands before it with probability p for each image. Values are given by position or by name.

- **Strength.** Where an op has one, it is the first parameter. In a policy, either it is drawn anew for each image,
  uniformly between what changes nothing and the value that is given, or it is taken as given; the op's text says which.
  `REGISTRY["rotate"](images, level, seed=seeds)` applies one op at levels 0 (nothing happens) to 1 (full strength), and
  strength is linear in the level.
- **Pictures.** The first cell is the original, then come levels 0.2, 0.4, 0.6, 0.8 and 1.0, all drawn from one seed.
  Ops without a strength are shown with five seeds, and those that draw nothing as three pairs, before and after. The
  cells are rendered, 72 pixels a side: what is given in pixels does less to larger images.
- **Equals** names the independent implementation that a test compares the op with.
- **Runs as** names the primitive: ops of one primitive that exclude each other cost one pass, and neighbouring warps
  are composed and sampled once.
"""

_ACROSS = """\
## Across the batch

What `--mix` and `augment.parse_mix` take: images mix in pairs after the policy, and their labels in the same
proportion. The partner is another image of the batch, so here alone an image's fate depends on its batch-mates.
`oneof`, `@p` and `identity` work as in a policy. The pictures are drawn with alpha 1.
"""


def table() -> str:
    """Returns the README's table: every name that a spec may hold, with a link to its text."""
    rows = ["| kind | names |", "|---|---|"]
    kinds: list[tuple[str, Sequence[str]]] = [(title, [op.name for op in ops]) for title, _, ops in _groups()]
    kinds += [("Policies", list(COMBINATORS)), ("Across the batch (`--mix`)", list(MIXES))]
    rows += [f"| {title} | {' '.join(f'[`{name}`]({PAGE}#{name})' for name in names)} |" for title, names in kinds]
    return "\n".join(rows)


def page() -> str:
    """Returns the text of `docs/ops.md`; its pictures are `ops/NAME.png`, one for each of `pictured()`."""
    parts = [_INTRODUCTION, _contents()]
    for title, about, ops in _groups():
        parts.append(f"## {title}\n\n{about}\n")
        parts += [_op(op) for op in ops]
    parts.append("## Policies\n\nWhat a policy may hold beside ops.\n")
    parts += [_combinator(combinator) for combinator in COMBINATORS.values()]
    parts.append(_ACROSS)
    parts += [_mix(mix) for mix in MIXES.values()]
    return "\n".join(parts)


def pictured() -> tuple[str, ...]:
    """Returns what has a picture: every op, every policy whose name alone is a spec and does something, every mix."""
    policies = [name for name, entry in COMBINATORS.items()
                if name != "identity" and not entry.branches and all(p.default is not REQUIRED for p in entry.params)]
    return (*REGISTRY, *policies, *MIXES)


def _groups() -> list[tuple[str, str, list[Op]]]:
    """Returns the ops by the module that registers them: its title, what it is about, its ops."""
    groups: dict[str, list[Op]] = {}
    for op in REGISTRY.values():
        groups.setdefault(op.lower.__module__, []).append(op)
    described = []
    for module, ops in groups.items():
        title, _, about = (inspect.getdoc(sys.modules[module]) or "").partition("\n")[0].partition(": ")
        described.append((title, about[:1].upper() + about[1:], ops))
    return described


def _contents() -> str:
    kinds = [(title, [op.name for op in ops]) for title, _, ops in _groups()]
    kinds += [("Policies", list(COMBINATORS)), ("Across the batch", list(MIXES))]
    return "\n".join(f"- {title}: {', '.join(f'[{name}](#{name})' for name in names)}" for title, names in kinds) + "\n"


def _op(op: Op) -> str:
    lines = [f"### {op.name}\n", f"{op.summary}\n", f"![{_alternative(op)}](ops/{op.name}.png)\n"]
    if op.identity is not None:
        drawn = "drawn between that and the value given" if op.random_strength else "taken as given"
        lines.append(f"Strength: `{op.params[0].name}`, {_strengths(op)} at the levels shown; {op.identity:g} changes "
                     f"nothing. In a policy it is {drawn}.\n")
    lines += [_parameters(op.params), _facts(
        ("Example", f"`{example(op)}`"), ("Label", "kept" if op.keeps_label else "changes with the image"),
        ("Runs as", op.primitive + (", square images only" if op.square else "")), ("Equals", op.reference))]
    return "\n".join(line for line in lines if line)


def example(op: Op) -> str:
    """Returns a policy that uses the op, on half of the images."""
    given = [param for param in op.params[:1] if op.identity is not None or param.default is REQUIRED]
    value = ", ".join(_value(param.default if param.default is not REQUIRED else param.high) for param in given)
    return f"{op.name}({value})@0.5" if value else f"{op.name}@0.5"


def _combinator(entry: Combinator) -> str:
    picture = f"![The original and five samples of {entry.name}](ops/{entry.name}.png)\n"
    lines = [f"### {entry.name}\n", f"{entry.summary}\n", picture if entry.name in pictured() else "",
             _parameters(entry.params), "Then come the policies, one or more.\n" if entry.branches else "",
             _facts(("Example", f"`{entry.example}`"), ("Equals", entry.reference))]
    return "\n".join(line for line in lines if line)


def _mix(mix: MixOp) -> str:
    lines = [f"### {mix.name}\n", f"{mix.summary}\n",
             f"![Two images and four mixtures of them by {mix.name}](ops/{mix.name}.png)\n", _parameters(mix.params),
             _facts(("Example", f"`{mix.name}({_value(mix.params[0].default)})`"),
                    ("Label", "mixed in the proportion of the images' areas or levels"))]
    return "\n".join(line for line in lines if line)


def _alternative(op: Op) -> str:
    if op.identity is not None:
        return f"The original and {op.name} at five levels"
    return f"The original and {op.name} with five seeds" if op.uniforms else f"Three cells before and after {op.name}"


def _strengths(op: Op) -> str:
    values = [op.identity + level * (op.full - op.identity) for level in LEVELS] if op.identity is not None else []
    if op.params[0].kind is int:
        values = [float(round(value)) for value in values]
    return ", ".join(f"{value:.4g}" for value in values)


def _parameters(params: Sequence[Param]) -> str:
    if not params:
        return ""
    rows = ["| parameter | values | default |", "|---|---|---|"]
    for param in params:
        default = "must be given" if param.default is REQUIRED else f"`{_value(param.default)}`"
        rows.append(f"| `{param.name}` | {param.range_text().replace('|', chr(92) + '|')} | {default} |")
    return "\n".join(rows) + "\n"


def _facts(*facts: tuple[str, str]) -> str:
    return " · ".join(f"{name}: {text}" for name, text in facts) + "\n"


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)
