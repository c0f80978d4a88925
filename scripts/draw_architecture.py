"""Draw the rooms of fedsim and what imports what: docs/architecture.svg, from the imports themselves.

    python scripts/draw_architecture.py            draws it, and writes the tables of docs/architecture.md
    python scripts/draw_architecture.py --check    exits 1 if either differs from what is stored

A room is a folder of ``fedsim/``, or a module that lies beside them, on its floor of ``tests/test_layers.py``. An arrow
points from a room to one that it imports from directly; it is left out where other arrows lead there too, and where it
leads to the lowest floors, on which all rooms stand. A room's text is the first sentence of its docstring. An import
that runs up is not drawn: the tests refuse it.
"""

from __future__ import annotations

import argparse
import ast
import sys
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fedsim.ground.addresses import TABLE  # noqa: E402 - of this checkout, whichever is installed
from tests.test_layers import FILES, FLOOR, FLOORS, imports, name, room  # noqa: E402

PICTURE, PAGE = ROOT / "docs/architecture.svg", ROOT / "docs/architecture.md"
FRONT = (
    *("simulation", "algorithms", "data", "models", "partition", "schedule", "topology", "channel", "privacy"),
    *("aggregate", "callbacks", "local", "evaluate", "objective", "traits", "types", "fields", "errors"),
)
"""The rooms that users import from; the others run what these describe."""

LOWEST = FLOOR["ground"]
"""The highest of the floors to which no arrows are drawn."""
GAP, SLOT, ABOVE, MARGIN = 22.0, 16.0, 44.0, 24.0
"""Between boxes, for an arrow that passes a floor, between floors, around everything: pixels."""
LINE = 13.5
"""From one line of a box's text to the next."""
COLOURS = {True: ("#e8f1fb", "#3b76af"), False: ("#f4f2ec", "#8a8372")}
"""(inside, edge) of a box, by whether it is of the front."""


class Node(NamedTuple):
    """What takes a place on a floor: a room, or its arrows on their way past the floor, together."""

    room: str
    passes: bool = False


def first_sentence(room: str) -> str:
    """What a room is for, from its docstring, with code between backticks."""
    folder = ROOT / "fedsim" / room
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    text = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0]
    text = " ".join(text.replace("``", "`").split()).partition("; ")[0].partition(". ")[0]
    return text.rstrip(".")


def arrows() -> dict[str, set[str]]:
    """{room: the rooms below that it imports from, but for those that these lead to and those of the lowest floors}."""
    direct: dict[str, set[str]] = {room: set() for room in FLOOR}
    for path in FILES:
        if (module := name(path)) != "fedsim":  # the door, which hands out names of every floor
            rooms = {room(other) for other in imports(path) if other.startswith("fedsim.")}
            direct[room(module)] |= {other for other in rooms if FLOOR[other] < FLOOR[room(module)]}
    below: dict[str, set[str]] = {}
    for one in sorted(FLOOR, key=FLOOR.__getitem__):
        below[one] = direct[one].union(*(below[other] for other in direct[one]))
    return {
        one: {o for o in direct[one] if FLOOR[o] > LOWEST and not any(o in below[other] for other in direct[one])}
        for one in FLOOR
    }


Place = tuple[int, Node]
"""A node on a floor; arrows that pass several floors have one on each."""
Piece = tuple[Place, Place]
"""Of an arrow: from one floor to the next, upper end first."""


def pieces_of(drawn: Mapping[str, set[str]]) -> list[Piece]:
    """All pieces of all arrows; arrows of one room go together until one of them ends."""
    out: dict[Piece, None] = {}
    for one in FLOOR:
        for other in sorted(drawn[one]):
            passed = range(FLOOR[one] - 1, FLOOR[other], -1)
            places = [(FLOOR[one], Node(one)), *((f, Node(one, True)) for f in passed), (FLOOR[other], Node(other))]
            out |= dict.fromkeys(pairwise(places))
    return list(out)


def crossings(rows: Sequence[Sequence[Node]], pieces: Sequence[Piece]) -> int:
    """How often pieces of arrows cross."""
    at = {(floor, node): i for floor, row in enumerate(rows) for i, node in enumerate(row)}
    total = 0
    for floor in range(1, len(rows)):
        here = [(at[a], at[b]) for a, b in pieces if a[0] == floor]
        total += sum((a - c) * (b - d) < 0 for i, (a, b) in enumerate(here) for c, d in here[:i])
    return total


def ordered(pieces: Sequence[Piece]) -> list[list[Node]]:
    """Each floor from left to right: the best of some sweeps, in which nodes go to the mean of their neighbours."""
    rows = [[Node(room) for room in rooms] for rooms in FLOORS]
    for floor, node in dict.fromkeys(place for piece in pieces for place in piece):
        if node.passes:
            rows[floor].append(node)
    best, least = [list(row) for row in rows], crossings(rows, pieces)
    for sweep in range(40):
        down = sweep % 2 == 0
        for floor in range(len(rows))[:: -1 if down else 1]:
            at = {(f, node): (i + 0.5) / len(row) for f, row in enumerate(rows) for i, node in enumerate(row)}
            near = neighbours(pieces, floor, down=down)
            spots = {node: [at[place] for place in near.get(node, [])] or [at[floor, node]] for node in rows[floor]}
            rows[floor].sort(key=lambda node, spots=spots: (sum(spots[node]) / len(spots[node]), node))  # type: ignore[misc]
        if (found := crossings(rows, pieces)) < least:
            best, least = [list(row) for row in rows], found
    return best


def neighbours(pieces: Sequence[Piece], floor: int, *, down: bool) -> dict[Node, list[Place]]:
    """The places above (``down``) or below that a floor's nodes are joined to."""
    out: dict[Node, list[Place]] = {}
    for upper, lower in pieces:
        mine, other = (lower, upper) if down else (upper, lower)
        if mine[0] == floor:
            out.setdefault(mine[1], []).append(other)
    return out


def spread(wanted: Sequence[float], widths: Sequence[float]) -> list[float]:
    """Centres in this order, apart by the widths, and nearest to where they are wanted in least squares."""
    offsets = [0.0]
    for left, right in pairwise(widths):
        offsets.append(offsets[-1] + (left + right) / 2 + GAP)
    blocks: list[tuple[float, int]] = []  # (mean, how many): pool adjacent violators
    for want, offset in zip(wanted, offsets, strict=True):
        block = (want - offset, 1)
        while blocks and blocks[-1][0] >= block[0]:
            mean, count = blocks.pop()
            block = ((mean * count + block[0] * block[1]) / (count + block[1]), count + block[1])
        blocks.append(block)
    places = [mean for mean, count in blocks for _ in range(count)]
    return [place + offset for place, offset in zip(places, offsets, strict=True)]


def width(node: Node) -> float:
    """Of a room, wider where few share the floor; or of an arrow."""
    share = len(FLOORS[FLOOR[node.room]])
    return SLOT - GAP if node.passes else (420.0 if share == 1 else 300.0 if share <= 3 else 208.0)


def placed(rows: Sequence[Sequence[Node]], pieces: Sequence[Piece]) -> dict[Place, float]:
    """The centre of every node: sweeps draw nodes to the mean of their neighbours, and rooms to the middle, 0."""
    x = {(f, n): c for f, row in enumerate(rows) for n, c in zip(row, _even(row), strict=True)}
    for sweep in range(60):
        for floor in range(len(rows))[:: -1 if sweep % 2 else 1]:
            near = [neighbours(pieces, floor, down=down) for down in (True, False)]
            row = rows[floor]
            wanted = []
            for node in row:
                around = [(x[place], 0.1 if place[1].passes else 1.0) for side in near for place in side.get(node, [])]
                around += [] if node.passes else [(0.0, 0.7)]
                wanted.append(sum(c * w for c, w in around) / sum(w for _, w in around))
            for node, centre in zip(row, spread(wanted, [width(node) for node in row]), strict=True):
                x[floor, node] = centre
    return x


def _even(row: Sequence[Node]) -> list[float]:
    return spread([0.0] * len(row), [width(node) for node in row])


def wrapped(room: str) -> list[str]:
    """The text of a box."""
    return textwrap.wrap(first_sentence(room).replace("`", ""), int((width(Node(room)) - 16) / 5.7))


class Page(NamedTuple):
    """Where everything is drawn."""

    rows: list[list[Node]]
    pieces: list[Piece]
    x: dict[Place, float]  # centre of each node
    top: dict[int, float]  # of each floor
    height: list[float]  # of the boxes of each floor
    size: tuple[float, float]


def laid_out() -> Page:
    """Boxes on their floors, from the imports."""
    pieces = pieces_of(arrows())
    rows = ordered(pieces)
    x = placed(rows, pieces)
    left = min(x[place] - width(place[1]) / 2 for place in x) - MARGIN
    right = max(x[place] + width(place[1]) / 2 for place in x) + MARGIN
    height = [30.0 + LINE * max(len(wrapped(room)) for room in rooms) for rooms in FLOORS]
    for row in rows[: LOWEST + 1]:  # in the middle, for no arrow says where
        middle = (left + right - sum(_even(row)) * 2 / len(row)) / 2
        x |= {(FLOOR[node.room], node): middle + centre for node, centre in zip(row, _even(row), strict=True)}
    top, y = {}, MARGIN + 34
    for floor in reversed(range(len(FLOORS))):
        top[floor] = y
        y += height[floor] + (ABOVE if floor > LOWEST else GAP)
    return Page(rows, pieces, {place: x[place] - left for place in x}, top, height, (right - left, y))


def picture() -> str:
    """The whole drawing as SVG."""
    page = laid_out()
    (w, h), y = page.size, page.top[LOWEST] - 26
    area = f'x="8" y="{y:.1f}" width="{w - 16:.0f}" height="{h - y - 8:.1f}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w:.0f} {h:.0f}" '
        'font-family="Helvetica, Arial, sans-serif">',
        "<title>The rooms of fedsim: a room imports from rooms below it only</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0.8 L7.5,4 L0,7.2 z" fill="#6b7280"/></marker></defs>',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<rect {area} rx="9" fill="#faf7ef" stroke="#d6cfbd"/>',
        _text(20, y + 17, 11, "every room stands on these; arrows to them are left out", anchor="start"),
        *(_arrow(page, piece) for piece in page.pieces),
    ]
    for floor, row in enumerate(page.rows):
        lines += [_box(page, floor, node) for node in row if not node.passes]
    return "\n".join([*lines, *_legend(), "</svg>", ""])


def _text(x: float, y: float, size: float, text: str, *, colour: str = "#374151", anchor: str = "middle") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _arrow(page: Page, piece: Piece) -> str:
    """A piece of an arrow: straight past the floor where it comes from on its way, then a bend to the next floor."""
    (floor, node), (lower, end) = piece
    x0, x1, y0, y1 = page.x[piece[0]], page.x[piece[1]], page.top[floor] + page.height[floor], page.top[lower]
    start = f"M{x0:.1f},{page.top[floor]:.1f} L{x0:.1f},{y0:.1f}" if node.passes else f"M{x0:.1f},{y0:.1f}"
    bend = (y0 + y1) / 2
    tip = "" if end.passes else ' marker-end="url(#tip)"'
    curve = f"{start} C{x0:.1f},{bend:.1f} {x1:.1f},{bend:.1f} {x1:.1f},{y1 - (0 if end.passes else 1):.1f}"
    return f'<path d="{curve}" fill="none" stroke="#6b7280" stroke-width="1.2"{tip}/>'


def _box(page: Page, floor: int, node: Node) -> str:
    """A room: its name and what it is for."""
    fill, edge = COLOURS[node.room in FRONT]
    x, y, w, h = page.x[floor, node], page.top[floor], width(node), page.height[floor]
    box = (
        f'<rect x="{x - w / 2:.1f}" y="{y:.1f}" width="{w:.0f}" height="{h:.1f}" rx="7" fill="{fill}" stroke="{edge}"/>'
    )
    head = _text(x, y + 19, 14, node.room, colour="#111827").replace("<text", '<text font-weight="bold"')
    return "\n".join([box, head, *(_text(x, y + 35 + LINE * i, 11, line) for i, line in enumerate(wrapped(node.room)))])


def _legend() -> list[str]:
    """What colours and arrows mean, above everything."""
    out, x, y = [], MARGIN, MARGIN
    for front, text in ((True, "what users import"), (False, "what runs it")):
        fill, edge = COLOURS[front]
        box = f'<rect x="{x}" y="{y - 10}" width="22" height="13" rx="3" fill="{fill}" stroke="{edge}"/>'
        out += [box, _text(x + 30, y + 1, 12, text, anchor="start")]
        x += 160
    line = f'<path d="M{x},{y - 3} L{x + 24},{y - 3}" stroke="#6b7280" stroke-width="1.2" marker-end="url(#tip)"/>'
    meaning = "imports from; left out where other arrows lead there too"
    return [*out, line, _text(x + 32, y + 1, 12, meaning, anchor="start")]


def rooms_table() -> str:
    """The rooms from the top floor down, as a table in Markdown."""
    lines = ["| floor | room | what it is for |", "|---|---|---|"]
    for floor in reversed(range(len(FLOORS))):
        lines += [f"| {floor} | `{one}` | {first_sentence(one)} |" for one in FLOORS[floor]]
    return "\n".join(lines)


def addresses_table() -> str:
    """The purposes of random draws, as a table in Markdown."""
    lines = ["| purpose | what is drawn | numbers after it | drawn in |", "|---|---|---|---|"]
    for row in TABLE:
        files = ", ".join(f"`{file}`" for file in row.files)
        lines.append(f"| `{row.text}{row.family}` | {row.draws} | {', '.join(row.address) or '-'} | {files} |")
    return "\n".join(lines)


def page() -> str:
    """docs/architecture.md with its tables as they should be, each between two comments."""
    text = PAGE.read_text()
    for title, table in {"rooms": rooms_table(), "addresses": addresses_table()}.items():
        before, begin, rest = text.partition(f"<!-- {title}: written by scripts/draw_architecture.py -->\n")
        _, end, after = rest.partition(f"<!-- end of {title} -->")
        if not begin or not end:
            raise SystemExit(f"{PAGE.name} has lost the comments around the table of {title}")
        text = f"{before}{begin}\n{table}\n\n{end}{after}"
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Draw and write, or compare; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if something would change")
    check = parser.parse_args(argv).check
    old = {path: path.read_text() if path.exists() else "" for path in (PICTURE, PAGE)}
    changed = {path: text for path, text in {PICTURE: picture(), PAGE: page()}.items() if text != old[path]}
    for path, text in changed.items():
        if check:
            sys.stderr.write(f"{path.relative_to(ROOT)} is not what the code says: run scripts/draw_architecture.py\n")
        else:
            path.write_text(text)
    return int(check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
