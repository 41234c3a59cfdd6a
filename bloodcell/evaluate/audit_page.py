"""audit.html: what an audit found, for people, as one page that needs nothing else.

The words and galleries are plain HTML; `pages/audit.js` draws the maps and collects what the user wants to keep.
Finding things belongs to `data.audit`; how pages look and are framed to `pages`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bloodcell.data.audit.result import Audit, Finding, Pair
from bloodcell.evaluate import audit_groups, pages, thumbnails
from bloodcell.evaluate.audit_groups import Group
from bloodcell.evaluate.pages import Markup, escape
from bloodcell.evaluate.thumbnails import Coding

MOST = 48  # pictured, of each rule or kind of pair
AT_ONCE = 18  # of those, shown before "more" is clicked
COPIES = ("conflicts", "duplicates", "near_duplicates")  # rules whose findings are the pairs
MOST_LISTED = 2000  # removed groups without a picture, listed in words
EXAMPLES = 4  # pictures of a group whose pictures differ
GRID = 65535  # positions on a map are whole numbers up to this

# Bytes as they stand in the page. Course file: 9.5 MB of thumbnails, of 64 pixels at quality 60.
MAP_BUDGET, GALLERY_BUDGET = 10_500_000, 2_500_000
MAP_CODINGS = (Coding(96, 75), Coding(64, 75), Coding(64, 60), Coding(64, 45), Coding(48, 75), Coding(48, 50),
               Coding(32, 50), Coding(24, 30), Coding(16, 20))
GALLERY_CODINGS = (Coding(160, 80), Coding(96, 80), Coding(96, 60), Coding(96, 35), Coding(64, 35), Coding(48, 20))


@dataclasses.dataclass(frozen=True, eq=False)
class Map:
    """Images as points of a plane.

    Attributes:
      index: int64 [M], ascending: which images.
      xy: float [M, 2], where they are, finite, in any unit; both axes are drawn to one scale.
    """

    index: np.ndarray
    xy: np.ndarray

    def __post_init__(self) -> None:
        if self.index.ndim != 1 or (np.diff(self.index) <= 0).any():
            raise ValueError(f"index: expected ascending [M], received {self.index.shape}")
        if self.xy.shape != (len(self.index), 2) or not np.isfinite(self.xy).all():
            raise ValueError(f"xy: expected finite [{len(self.index)}, 2], received {self.xy.shape}")


def page(audit: Audit, images: Any, maps: Mapping[str, Map], *, written: Sequence[str]) -> str:
    """Lays out the page.

    Args:
      audit: what was found. Within a rule, suspects are shown by falling score.
      images: uint8 [N, H, W, 3] of the audited set, anything that gives an array for an array of indices; it is asked
        only for what is drawn.
      maps: the maps by name, in order; each point's thumbnail is in the page.
      written: names of the files written beside the page.

    Returns:
      The whole file, under 15 MB for up to 14,000 points.
    """
    removed = _by_rule(audit, audit_groups.groups(audit.removed, images, audit.pictures))
    suspects = {rule: sorted(found, key=lambda finding: -finding.score) for rule, found in _by_rule(
        audit, [finding for finding in audit.suspects if finding.rule not in COPIES]).items()}
    conflicting = set(audit.conflicts)
    pairs = {"Label conflicts": audit.conflicts,
             "Duplicates": tuple(pair for pair in audit.duplicates if pair not in conflicting),
             "Near-duplicates": tuple(pair for pair in audit.near_duplicates if pair not in conflicting)}
    groups = [group for found in removed.values() for group in found[:MOST]]
    pictured = {index for group in groups for index in group.pictures[:EXAMPLES]}
    pictured.update(finding.index for found in suspects.values() for finding in found[:MOST])
    pictured.update(index for found in pairs.values() for pair in found[:MOST]
                    for index in (pair.first, pair.second))
    pictured.update(audit.asked_to_keep[:MOST])
    wanted = np.array(sorted(pictured), np.int64)
    coding = thumbnails.choose(images, wanted, GALLERY_CODINGS, GALLERY_BUDGET)
    shown = _Shown(audit, thumbnails.single(images, wanted, coding),
                   {group.indices: number for number, group in enumerate(groups)},
                   frozenset(finding.index for finding in audit.removed))

    sections = {"classes": ("Classes", _classes(audit)), "rules": ("Rules", _rules(audit)),
                "removed": ("Removed", _removed(shown, removed)), "pairs": ("Copies", _pairs(shown, pairs)),
                "suspects": ("Suspects", _suspects(shown, suspects)), "maps": ("Maps", _maps(audit, maps))}
    if audit.asked_to_keep:
        sections["kept"] = ("Kept because you asked", _asked(shown))
    sections["files"] = ("Files", _files(audit, written))
    links = " ".join(f'<a href="#{name}">{title}</a>' for name, (title, _) in sections.items())
    body = "\n".join(f'<section id="{name}"><h2>{title}</h2>\n{content}</section>'
                     for name, (title, content) in sections.items())
    return pages.document(f"bloodcell audit: {audit.origin}", f"""<h1>Audit of {escape(audit.origin)}</h1>
<p class="sub">{len(audit.labels):,} images of {audit.shape[2]} x {audit.shape[1]} pixels in {len(audit.class_names)}
classes; features: {escape(audit.features or "none")}</p>
<p class="note">Not for clinical use. An audit finds what is improbable, not what is wrong:
look before you trust it.</p>
{_headline(audit)}
<nav>{links}</nav>
{body}
{_OVERRULE}
""", styles=("audit.css",), script="audit.js", data=_data(audit, images, maps, groups))


@dataclasses.dataclass(frozen=True)
class _Shown:
    """What the galleries draw from."""

    audit: Audit
    uris: Mapping[int, str]
    numbers: Mapping[tuple[int, ...], int]  # of a group in the script's data
    removed: frozenset[int]

    def label(self, index: int) -> str:
        return _name(self.audit.class_names[self.audit.labels[index]])

    def picture(self, index: int) -> Markup:
        return Markup(f'<img class="shot" alt="image {index}" src="{self.uris[index]}">')

    def caption(self, index: int) -> Markup:
        return Markup(f'<button type="button" class="go" data-index="{index}">#{index}</button> '
                      f'{escape(self.label(index))}{" (removed)" if index in self.removed else ""}')


def _name(class_name: str) -> str:
    return class_name.replace("_", " ")


def _by_rule(audit: Audit, found: Sequence[Any]) -> dict[str, list[Any]]:
    """Findings or groups by rule, in the order of the rules; a rule that found nothing is left out."""
    result: dict[str, list[Any]] = {rule.name: [] for rule in audit.rules}
    for each in found:
        result.setdefault(each.rule, []).append(each)
    return {rule: some for rule, some in result.items() if some}


def _headline(audit: Audit) -> Markup:
    return pages.figures((
        (f"{len(audit.labels):,}", "images"), (f"{len(audit.kept):,}", "kept"), (f"{len(audit.removed):,}", "removed"),
        (f"{len({finding.index for finding in audit.suspects}):,}", "suspects, kept"),
        (f"{len(audit.conflicts):,}", "label conflicts"), (f"{len(audit.duplicates):,}", "duplicate pairs"),
        (f"{len(audit.near_duplicates):,}", "near-duplicate pairs"), (f"{audit.seconds:,.0f} s", "of work")))


def _classes(audit: Audit) -> str:
    number = len(audit.class_names)
    before = np.bincount(audit.labels, minlength=number)
    after = np.bincount(audit.labels[audit.kept], minlength=number)
    most = max(int(before.max(initial=0)), 1)

    def bar(old: int, new: int) -> Markup:
        return Markup(f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
                      f'<rect class="out" width="{100 * old / most:.2f}" height="10"></rect>'
                      f'<rect width="{100 * new / most:.2f}" height="10"></rect></svg>')

    rows = [(_name(name), f"{old:,}", f"{new:,}", f"{old - new:,}", bar(old, new)) for name, old, new in zip(
        audit.class_names, before.tolist(), after.tolist(), strict=True)]
    rows.append(("all", f"{before.sum():,}", f"{after.sum():,}", f"{before.sum() - after.sum():,}", Markup("")))
    return pages.table(("class", "before", "after", "removed", ""), rows, kind="classes") + Markup(
        '<p class="dim">Bars: what is kept, and in pale what was removed.</p>')


def _rules(audit: Audit) -> Markup:
    action = {"remove": "removes", "report": "reports"}
    return pages.table(("rule", "looks for", "action", "found", "note"), [
        (Markup(f"<code>{escape(rule.spec)}</code>"), rule.summary, action.get(rule.action, rule.action),
         f"{rule.found:,}", rule.note) for rule in audit.rules], kind="words")


def _removed(shown: _Shown, removed: Mapping[str, Sequence[Group]]) -> str:
    if not removed:
        return "<p>Nothing was removed.</p>"
    parts = ['<p>Every image that was left out, by rule and by picture. To overrule, click <b>keep</b> here or at a '
             'point of the maps: the flag to run again with is put together at the foot of the page.</p>']
    for rule, found in removed.items():
        number = sum(len(group.findings) for group in found)
        parts.append(f'<h3>{escape(rule)}: {_count(number, "image")}, {_count(len(found), "picture")}</h3>'
                     f'{_summary(shown.audit, rule)}'
                     f'{_fold([_group(shown, group) for group in found[:MOST]], "groups")}')
        rest, unlisted = found[MOST:][:MOST_LISTED], found[MOST:][MOST_LISTED:]
        if rest:
            more = f"; {_count(len(unlisted), 'more picture')} in audit.json" if unlisted else ""
            rows = [(audit_groups.range_text(indices), reason, _scores(group), _labels(shown, indices))
                    for group in rest for reason, indices in group.reasons.items()]
            parts.append(f"<details><summary>{_count(len(rest), 'more picture')}, listed{more}</summary>"
                         f"{pages.table(('index', 'reason', 'score', 'label'), rows, kind='words')}</details>")
    return "\n".join(parts)


def _group(shown: _Shown, group: Group) -> str:
    count = len(group.findings)
    different = len(group.pictures)
    several = f'<p class="many">&times; {count:,}</p>' if count > 1 else ""
    variants = f" of {different:,} that differ in some pixel" if different > EXAMPLES else ""
    note = f'<p class="dim">{min(different, EXAMPLES)} pictures{variants}</p>' if different > 1 else ""
    reasons = list(group.reasons.items())
    words = f'<p class="why">{escape(reasons[0][0])}</p>'
    if len(reasons) > 1:
        lines = "".join(f"<li>{escape(audit_groups.range_text(found))}: {escape(reason)}</li>"
                        for reason, found in reasons)
        words += f"<details><summary>{len(reasons):,} reasons</summary><ul>{lines}</ul></details>"
    where = audit_groups.range_text(group.indices)
    if len(where) > 60:
        where = f"<details><summary>indices</summary><p>{where}</p></details>"
    else:
        where = f'<p class="dim">index {where}</p>'
    pictures = "".join(shown.picture(index) for index in group.pictures[:EXAMPLES])
    number = shown.numbers[group.indices]
    buttons = (f'<button type="button" class="keep" aria-pressed="false" data-group="{number}">keep</button> '
               f'<button type="button" class="go" data-index="{group.indices[0]}">on the map</button>')
    return (f'<article class="group"><div class="shots">{pictures}</div><div>{several}{words}{note}'
            f'<p class="dim">score {_scores(group)}</p><p>{_labels(shown, group.indices)}</p>{where}<p>{buttons}</p>'
            "</div></article>")


def _scores(group: Group) -> str:
    scores = sorted({f"{finding.score:.4g}" for finding in group.findings}, key=float)
    return scores[0] if len(scores) == 1 else f"{scores[0]} to {scores[-1]}"


def _labels(shown: _Shown, indices: Sequence[int]) -> Markup:
    labels, counts = np.unique(shown.audit.labels[list(indices)], return_counts=True)
    many = len(indices) > 1
    return Markup(", ".join(escape(_name(shown.audit.class_names[label])) + (f" &times; {count:,}" if many else "")
                            for label, count in zip(labels.tolist(), counts.tolist(), strict=True)))


def _pairs(shown: _Shown, pairs: Mapping[str, Sequence[Pair]]) -> str:
    if not any(pairs.values()):
        return "<p>No two images are copies of each other, but for those that were removed as repeats.</p>"
    meaning = {"Label conflicts": "One picture under two labels: at least one of them is wrong.",
               "Duplicates": "Equal pixels, equal label.",
               "Near-duplicates": "One picture but for encoding, a small shift or colours, and an equal label."}
    parts = []
    for title, found in pairs.items():
        if not found:
            continue
        kind = "pairs conflict" if title == "Label conflicts" else "pairs"
        cards = [f'<figure>{_side(shown, pair.first)}{_side(shown, pair.second)}<figcaption>{_likeness(pair)}'
                 "</figcaption></figure>" for pair in found[:MOST]]
        parts.append(f'<h3>{title}: {_count(len(found), "pair")}</h3><p class="dim">{meaning[title]}</p>'
                     f"{_fold(cards, kind)}{_more(found)}")
    return "\n".join(parts)


def _side(shown: _Shown, index: int) -> str:
    return f"<div>{shown.picture(index)}<p>{shown.caption(index)}</p></div>"


def _likeness(pair: Pair) -> str:
    return "equal pixels" if pair.similarity == 1 else f"similarity {_rounded(pair):.3f}"


def _rounded(pair: Pair) -> float:
    """The similarity to three digits, 1 for equal pixels alone."""
    return 1.0 if pair.similarity == 1 else min(round(pair.similarity, 3), 0.999)


def _suspects(shown: _Shown, suspects: Mapping[str, Sequence[Finding]]) -> str:
    if not suspects:
        return "<p>No other image that was kept is suspect.</p>"
    parts = ["<p>These images are kept; somebody should look at them, as at the copies above.</p>"]
    for rule, found in suspects.items():
        cards = [f'<figure>{shown.picture(finding.index)}<figcaption>{shown.caption(finding.index)}'
                 f'<p class="why">{escape(finding.reason)}</p><p class="dim">score {finding.score:.4g}</p>'
                 "</figcaption></figure>" for finding in found[:MOST]]
        parts.append(f'<h3>{escape(rule)}: {_count(len(found), "image")}</h3>{_summary(shown.audit, rule)}'
                     f'{_fold(cards, "gallery")}{_more(found)}')
    return "\n".join(parts)


def _asked(shown: _Shown) -> str:
    asked = shown.audit.asked_to_keep
    cards = [f"<figure>{shown.picture(index)}<figcaption>{shown.caption(index)}</figcaption></figure>"
             for index in asked[:MOST]]
    return (f"<p>A rule would have removed {_count(len(asked), 'image')} that --audit_keep names: "
            f'{audit_groups.range_text(asked)}.</p>{_fold(cards, "gallery")}{_more(asked)}')


def _summary(audit: Audit, rule: str) -> str:
    return "".join(f'<p class="dim">{escape(each.summary)}</p>' for each in audit.rules if each.name == rule)


def _fold(cards: Sequence[str], kind: str) -> str:
    """The first cards, and the others behind a click."""
    first, others = (f'<div class="{kind}">{"".join(some)}</div>' for some in (cards[:AT_ONCE], cards[AT_ONCE:]))
    return f"{first}<details><summary>{len(cards) - AT_ONCE:,} more</summary>{others}</details>" \
        if len(cards) > AT_ONCE else first


def _more(found: Sequence[Any]) -> str:
    return f'<p class="dim">and {len(found) - MOST:,} more, see audit.json</p>' if len(found) > MOST else ""


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _maps(audit: Audit, maps: Mapping[str, Map]) -> str:
    if not maps:
        return "<p>No map was drawn.</p>"
    most = max(len(each.index) for each in maps.values())
    share = "All images are" if most == len(audit.labels) else f"{most:,} of {len(audit.labels):,} images are"
    tabs = "".join(f'<button type="button" role="tab" id="tab-{number}" data-map="{number}" aria-controls="stage" '
                   f'aria-selected="{"false" if number else "true"}" tabindex="{-1 if number else 0}">'
                   f"{escape(name)}</button>"
                   for number, name in enumerate(maps))
    return f"""<p>{share} drawn. Images with similar features lie close together. A cross is an image that was removed,
a ring a suspect. Point at one or tap it to see it; zoom in far enough and the points become pictures.</p>
<div class="tabs" role="tablist" aria-label="maps">{tabs}</div>
<div class="explorer"><div id="stage" role="tabpanel" aria-labelledby="tab-0">
<canvas id="map" tabindex="0" role="application"
aria-label="map of images; arrow keys step to the next point; plus, minus and 0 zoom"></canvas>
<div class="zoom"><button type="button" data-zoom="2" aria-label="zoom in">+</button>
<button type="button" data-zoom="0.5" aria-label="zoom out">&minus;</button>
<button type="button" data-zoom="0" aria-label="show all">all</button></div></div>
<aside id="panel" aria-label="the chosen image"><form id="find"><label>image #<input id="find-index" type="number"
min="0" max="{len(audit.labels) - 1}" step="1" inputmode="numeric"></label> <button type="submit">show</button></form>
<canvas id="shot" hidden></canvas><div id="facts" aria-live="polite"></div></aside></div>
<div id="legend" role="group" aria-label="what is drawn"></div>
<p class="dim">Drag to move. The wheel zooms once the map was clicked; two fingers zoom on a touch screen. Arrow keys
step from point to point, + and - zoom, 0 shows all.</p>"""


_OVERRULE = """<form id="overrule" hidden><label for="keep-flag">Run the audit again with <span id="keep-count"></span>:
</label><input id="keep-flag" type="text" readonly><button type="button" id="keep-copy">copy</button>
<button type="button" id="keep-clear">clear</button></form>"""


def _files(audit: Audit, written: Sequence[str]) -> str:
    names = "".join(f"<li><code>{escape(name)}</code></li>" for name in written)
    beside = f"<p>Written beside this page:</p><ul>{names}</ul>" if written else ""
    return f'{beside}<p class="dim">Fingerprint of the audited set: <code>{escape(audit.fingerprint)}</code></p>'


def _data(audit: Audit, images: Any, maps: Mapping[str, Map], groups: Sequence[Group]) -> dict[str, Any]:
    """What the script needs: the images on the maps with their thumbnails, and what was found about them."""
    drawn = np.unique(np.concatenate([np.zeros(0, np.int64), *(each.index for each in maps.values())]))
    first, picture = thumbnails.distinct(images, drawn)
    sheets = thumbnails.sheets(images, first, thumbnails.choose(images, first, MAP_CODINGS, MAP_BUDGET))
    on_map = set(drawn.tolist())
    words: dict[str, int] = {}
    rules: dict[str, int] = {}

    def findings(found: Sequence[Finding]) -> list[list[Any]]:
        return [[each.index, rules.setdefault(each.rule, len(rules)), words.setdefault(each.reason, len(words)),
                 float(f"{each.score:.4g}")] for each in found if each.index in on_map]

    conflicting = set(audit.conflicts)
    copies = [pair for pair in dict.fromkeys((*audit.conflicts, *audit.duplicates, *audit.near_duplicates))
              if pair.first in on_map or pair.second in on_map]
    return {
        "total": len(audit.labels), "classes": [_name(name) for name in audit.class_names],
        "sheets": {"width": sheets.width, "height": sheets.height, "columns": thumbnails.COLUMNS, "uris": sheets.uris},
        "images": {"index": drawn.tolist(), "label": audit.labels[drawn].tolist(), "picture": picture.tolist()},
        "labels": {index: int(audit.labels[index]) for pair in copies for index in (pair.first, pair.second)
                   if index not in on_map},
        "maps": [{"name": name, "image": np.searchsorted(drawn, each.index).tolist(), **_on_grid(each.xy)}
                 for name, each in maps.items()],
        "removed": findings(audit.removed), "suspects": findings(audit.suspects),
        "pairs": [[pair.first, pair.second, int(pair in conflicting), _rounded(pair)] for pair in copies],
        "rules": list(rules), "words": list(words), "asked_to_keep": list(audit.asked_to_keep),
        "groups": [audit_groups.runs(group.indices) for group in groups]}


def _on_grid(xy: np.ndarray) -> dict[str, list[int]]:
    """Positions as whole numbers 0..GRID, the y axis downwards as on a screen."""
    if not len(xy):
        return {"x": [], "y": []}
    low = xy.min(axis=0)
    span = max(float((xy.max(axis=0) - low).max()), 1e-12)
    x, y = np.rint((xy - low) * (GRID / span)).astype(np.int64).T
    return {"x": x.tolist(), "y": (y.max() - y).tolist()}
