"""Control characters in file names and file contents are escaped in the output."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ccfnet_tf.cli import main as cli
from ccfnet_tf.errors import CCFNetError, printable
from ccfnet_tf.io.console import errors_beside, new_console, new_progress

EVIL = "a\x1b[31mred\x1b]0;title\x07\rb\x08\x9b2J\u202e"


def harmless(text: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in text)


def test_a_text_is_one_line_of_printable_characters() -> None:
    assert printable("a\nb\x1b[2J") == "a\\nb\\x1b[2J"
    assert printable("Straße 道路 дорога\u3000é") == "Straße 道路 дорога\u3000é"
    assert printable("\udcff") == "\\udcff"
    assert str(CCFNetError("x\ny")) == "x\\ny"


def test_the_console_escapes_texts_tables_and_bars() -> None:
    file = io.StringIO()
    console = new_console()
    console.file = file
    console.print(f"first{EVIL}\nccfnet-tf: all is well")
    console.print(Text(EVIL))
    table = Table(title=EVIL)
    table.add_column(EVIL)
    table.add_row(EVIL)
    table.add_row(Text(EVIL))
    console.print(table)
    with new_progress(console) as bar:
        bar.add_task(EVIL, total=1)
    output = file.getvalue()
    assert harmless(output)
    assert len(output.split("\nccfnet-tf")) == 1
    assert "\\x1b[31mred" in output


def test_colours_of_rich_are_kept() -> None:
    file = io.StringIO()
    console = new_console()
    console.file = file
    console._force_terminal = True
    console._color_system = console._color_system or 1  # type: ignore[assignment]
    console.print(Text("bold" + EVIL, style="bold"))
    output = file.getvalue()
    assert output.startswith("\x1b[1mbold")
    assert output.count("\x1b") == 2


@pytest.mark.parametrize("name", [f"{EVIL}x", "two\nlines"])
def test_file_and_class_names_are_escaped(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.hostile.conftest import write_set

    root = write_set(tmp_path / name)
    (root / "classes.txt").write_text(f"sky\n{EVIL}\nroad\n", encoding="utf-8")
    (root / "images" / "0.png").rename(root / "images" / f"{name}.png")
    for args in (
        ["data", "check", str(root)],
        ["data", "stats", str(root)],
        ["predict", str(root), str(root)],
        ["fit", "--data.root", str(root), "--out", str(tmp_path / "run")],
        ["export", str(root)],
        ["fit", f"--{name}", "1"],
        [name],
    ):
        assert cli.main(args) in (1, 2)
        output = capsys.readouterr()
        assert harmless(output.out + output.err)
        assert len(output.err.splitlines()) <= 3


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_narrow_terminal_cuts_the_figures_of_a_bar_and_nothing_else(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, soft_wrap=True)
    figures = "loss 1.596 accuracy 84.0 % mean IoU 67.5 % (losses: coarse 0.558 attention 0.381)"
    with new_progress(console, figures=True) as bar:
        bar.add_task("epoch 12/40", total=2237, completed=1024, figures=figures)
    shown = Text.from_ansi(console.file.getvalue()).plain  # type: ignore[attr-defined]
    (line,) = {line.strip() for line in shown.splitlines() if "epoch" in line}
    assert "epoch 12/40" in line
    assert "1024/2237" in line
    assert "-:--" in line
    assert figures[:10] in line
    assert (figures in line) == (width == 200)


def test_errors_go_to_stderr_in_files_even_if_colours_are_forced(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    errors_beside(new_console()).print("left out")
    out, err = capfd.readouterr()
    assert "left out" in err
    assert not out
