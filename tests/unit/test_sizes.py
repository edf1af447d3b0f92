"""`make check` counts what the limits are about, and finds what is above them."""

from __future__ import annotations

from pathlib import Path

from tools.sizes import measure


def test_lines_are_counted_per_layer_and_app(tmp_path: Path) -> None:
    _write(tmp_path / "pulsartasks" / "retry.py", '"""Says what."""\n\nA = 1  # why\n# more\nB = [\n    2,\n]\n')
    _write(tmp_path / "pulsartasks" / "cli" / "worker.py", "C = 3\n")
    _write(tmp_path / "apps" / "chat" / "views.py", "D = 4\n")

    totals, breaches = measure(tmp_path)

    assert totals == {"words": 4, "edges": 1, "core": 4, "pulsartasks": 5, "apps/chat": 1}
    assert breaches == []


def test_what_is_too_big_is_named_with_its_place(tmp_path: Path) -> None:
    methods = "".join(f"    def m{number}(self): ...\n" for number in range(16))
    function = "def long():\n" + "    pass\n" * 40
    _write(tmp_path / "pulsartasks" / "app.py", f"class Big:\n{methods}{function}" + "X = 1\n" * 400)

    _, breaches = measure(tmp_path)

    assert breaches == [
        "pulsartasks/app.py:1: 458 lines, better split at 450",
        "pulsartasks/app.py:1: Big has 16 public methods, at most 15",
        "pulsartasks/app.py:18: long() has 41 lines, rarely needed above 40",
    ]


def _write(path: Path, source: str) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(source)
