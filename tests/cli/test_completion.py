"""Completion in real shells; zsh and fish only if they are installed."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ccfnet_tf.cli import main as cli

LINES = [
    ("ccfnet-tf ser", "serve"),
    ("ccfnet-tf --quiet ser", "serve"),
    ("ccfnet-tf predict --si", "--size"),
    ("ccfnet-tf data st", "stats"),
    ("ccfnet-tf data convert --sh", "--shards"),
    ("ccfnet-tf --quiet data convert --sh", "--shards"),
    ("ccfnet-tf data suspects --mi", "--min-area"),
    ("ccfnet-tf fit --train.ep", "--train.epochs"),
    ("ccfnet-tf completion z", "zsh"),
    # Files: a folder may have the name of a command.
    ("ccfnet-tf data check sta", "statues.png"),
    ("ccfnet-tf predict fit sta", "statues.png"),
    ("ccfnet-tf predict data --sk", "--skip-existing"),
    # Nothing typed yet: files, no options.
    ("ccfnet-tf predict ", "statues.png"),
    ("ccfnet-tf fit --data.root ", "statues.png"),
    # Keys of the configuration, for commands that accept them.
    ("ccfnet-tf data check --data.roo", "--data.root"),
    ("ccfnet-tf data split --se", "--seed"),
    ("ccfnet-tf --vers", "--version"),
]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_has_every_command_and_option(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["completion", shell]) == 0
    printed = capsys.readouterr().out
    words = [
        *cli.VERBS,
        "skip-existing",
        "data.root",
        "train.epochs",
        "shards",
        "quiet",
        "verify-only",
    ]
    assert all(word in printed for word in words)
    assert "print_shtab" not in printed


def ask_bash(script: Path, lines: list[str]) -> list[str]:
    return [_ask_bash(script, line) for line in lines]


def _ask_bash(script: Path, line: str) -> str:
    words = line.split(" ")
    ask = (
        f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _ccfnet_tf; "
        # bash does this with `-o default` if the function returns nothing.
        f'echo "${{COMPREPLY[@]:-$(compgen -f -- {words[-1]})}}"'
    )
    return _said(["bash", "-c", ask], script.parent / "home")


def ask_fish(script: Path, lines: list[str]) -> list[str]:
    fish, home = ["fish", "--no-config", "-c"], script.parent / "home"
    return [_said([*fish, f"source {script}; complete -C '{line}'"], home) for line in lines]


def ask_zsh(script: Path, lines: list[str]) -> list[str]:
    """Types each line and Tab into a terminal, and reads the line's last word."""
    process, screen = pty.fork()
    if not process:
        os.chdir(script.parent / "home")
        os.execvpe("zsh", ["zsh", "-f", "-i"], _environment(script.parent / "home"))
    try:
        _type(screen, f"source {script}; echo BE''GUN\n", until=b"BEGUN")
        # Inserts text at the start and end of the line, to print it instead of running it.
        keys = "{}\t\x01echo 'GOT \x05 E''ND'\n"
        typed = [_type(screen, keys.format(line), until=b" END") for line in lines]
    finally:
        os.close(screen)
        os.waitpid(process, 0)
    return [each.decode().rpartition("GOT")[2].split(" END")[0].split()[-1] for each in typed]


def _type(screen: int, keys: str, *, until: bytes) -> bytes:
    os.write(screen, keys.encode())
    output = b""
    while until not in output:
        ready, _, _ = select.select([screen], [], [], 60)
        assert ready, output
        output += os.read(screen, 4096)
    return output


def _said(command: list[str], home: Path) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=home, env=_environment(home)
    )
    assert done.stderr == ""
    return done.stdout.strip()


def _environment(home: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(home), "TERM": "dumb"}


ASK: dict[str, Callable[[Path, list[str]], list[str]]] = {
    "bash": ask_bash,
    "zsh": ask_zsh,
    "fish": ask_fish,
}


@pytest.mark.parametrize("shell", ASK)
def test_a_shell_completes(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed here")
    cli.main(["completion", shell])
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "statues.png").touch()
    lines = [line for line, _ in LINES]
    assert dict(zip(lines, ASK[shell](script, lines), strict=True)) == dict(LINES)
