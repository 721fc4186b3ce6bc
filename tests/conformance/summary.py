"""The matrix in pytest's summary: the whole matrix if nothing else has run, otherwise the totals."""

from collections import Counter, defaultdict
from collections.abc import Iterator

from conformance.kinds import CONV, DENSE, KINDS
from conformance.programs import PROGRAMS
from conformance.transformations import TRANSFORMATIONS

_LEGEND = f"""\
rows: the program f around a dot product ({DENSE.name}), a convolution or both; columns: transformations.
 V  values and jaxpr agree with float32     J  jaxprs do
 -  JAX refuses it in float32 as well       X  fails           .  not run"""


_SAYS_MORE = ["not run", "n/a", "jaxpr", "values", "failed"]


def pytest_terminal_summary(terminalreporter):
    """pytest's hook. With xdist, reports carry the outcomes to the process that prints."""
    reports = [
        report
        for key in ("passed", "failed")
        for report in terminalreporter.stats.get(key, [])
        if report.when == "call"
    ]
    rows = [value for report in reports for name, value in report.user_properties if name == "conformance"]
    if not rows:
        return
    rows = _merged(rows)
    terminalreporter.section("conformance")
    if all("conformance" in report.nodeid for report in reports):
        for line in _matrix(rows):
            terminalreporter.write_line(line)
    terminalreporter.write_line(_totals(rows))


def _merged(rows: list[dict]) -> list[dict]:
    """One row per program and kind. Several tests may check its cells; two tests may check the same cell."""
    merged = {}
    for row in rows:
        outcomes = merged.setdefault((row["program"], row["kind"]), {})
        for name, outcome in row["outcomes"].items():
            outcomes[name] = max(outcome, outcomes.get(name, "not run"), key=_SAYS_MORE.index)
    return [
        {"program": program, "kind": kind, "outcomes": outcomes}
        for (program, kind), outcomes in merged.items()
    ]


def _totals(rows: list[dict]) -> str:
    count = Counter(outcome for row in rows for outcome in row["outcomes"].values())
    del count["not run"]
    passed = count["values"] + count["jaxpr"]
    return (
        f"conformance: {count.total()} cells: {passed} pass ({count['values']} by values and jaxpr, "
        f"{count['jaxpr']} by jaxpr), {count['n/a']} not applicable in JAX, {count['failed']} fail"
    )


def _matrix(rows: list[dict]) -> Iterator[str]:
    names = list(TRANSFORMATIONS)
    yield "Transformations"
    for index, name in enumerate(names, 1):
        yield f"{index:3}  {name}"
    main = (DENSE.name, CONV.name)
    yield from ("", "Programs x transformations", _LEGEND)
    yield from _table([row for row in rows if row["kind"] in main], "program", list(PROGRAMS))
    for program in dict.fromkeys(row["program"] for row in rows if row["kind"] not in main):
        yield from ("", f"Kinds of operations x transformations, f = {program}")
        yield from _table([row for row in rows if row["program"] == program], "kind", list(KINDS))
    yield from ("", "Not applicable: JAX's message, which each of these cells was seen to raise in float32")
    seen = {row["program"] for row in rows}
    for program in PROGRAMS.values():
        reasons = defaultdict(list)
        for index, t in enumerate(TRANSFORMATIONS.values(), 1):
            if program.name in seen and (reason := program.refusal(t.name, t.needs)):
                reasons[reason].append(str(index))
        for reason, columns in reasons.items():
            yield f"{program.name}: {reason}  ({', '.join(columns)})"
    yield ""


def _table(rows: list[dict], key: str, order: list[str]) -> Iterator[str]:
    cells = defaultdict(list)
    for row in rows:
        for name, outcome in row["outcomes"].items():
            cells[row[key], name].append(outcome)
    yield " " * 30 + "".join(f"{index:3}" for index in range(1, len(TRANSFORMATIONS) + 1))
    for title in order:
        if any(row[key] == title for row in rows):
            yield f"{title:30}" + "".join(f"{_sign(cells[title, name]):>3}" for name in TRANSFORMATIONS)


def _sign(outcomes: list[str]) -> str:
    signs = {"not run": ".", "values": "V", "jaxpr": "J", "n/a": "-", "failed": "X"}
    return signs[max(outcomes or ["not run"], key=list(signs).index)]
