"""The files of figures that benchmarks write."""

import json
from pathlib import Path


def write_record(out: Path, record: dict) -> None:
    """Write a record to OUT.json, where `out` is OUT."""
    text = json.dumps(record, indent=1, ensure_ascii=False)
    out.with_name(f"{out.name}.json").write_text(text + "\n")
