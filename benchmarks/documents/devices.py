"""The tables on several devices."""

from benchmarks import collectives as of_collectives
from benchmarks.common.markdown import markdown
from benchmarks.documents import sources

RESNET = "ResNet-50"


def collectives() -> str:
    """What a data-parallel step exchanges."""
    return of_collectives.table(sources.record("collectives")["rows"])


def shardings() -> str:
    """The small programs, a line for each sharding."""
    cases: dict[tuple[str, str], list[dict]] = {}
    for row in sources.record("shardings")["rows"]:
        if row["program"] != RESNET:
            cases.setdefault((row["program"], row["sharding"]), []).append(row)
    devices = [str(row["devices"]) for row in next(iter(cases.values()))]
    lines = []
    for names, rows in cases.items():
        (native,) = {f"{row['native']}, {row['native_alone']}" for row in rows}
        exchanged = ", ".join(_pair(row, "bytes") for row in rows)
        error = max(row["error"] for row in rows)
        lines.append([*names, native, f"{error:.0e}", exchanged, _pair(rows[-1], "gathered")])
    head = ["network", "sharding", "native calls, of one device", "error"]
    head.append(f"MB exchanged by a device, DFP16 / float32, on {', '.join(devices)} devices")
    head.append(f"of these gathered, on {devices[-1]}")
    return markdown(head, lines, words=2)


def _pair(row: dict, what: str) -> str:
    return f"{row[what] / 1e6:.2f} / {row[f'{what}_float32'] / 1e6:.2f}"


def _resnet() -> dict:
    """The row of ResNet-50, data-parallel on two devices."""
    (row,) = (row for row in sources.record("shardings")["rows"] if row["program"] == RESNET)
    return row


def resnet_native() -> str:
    """Its native calls.

    Raises:
        ValueError: if they are not those of one device, as the page says.
    """
    row = _resnet()
    if row["native"] != row["native_alone"]:
        raise ValueError(f"docs/how-to/distributed.md is wrong: native calls are not one device's: {row}")
    return str(row["native"])


def resnet_bytes() -> str:
    """MB that a device exchanges, in DFP16 and in float32."""
    row = _resnet()
    return f"{row['bytes'] / 1e6:.2f} and {row['bytes_float32'] / 1e6:.2f}"
