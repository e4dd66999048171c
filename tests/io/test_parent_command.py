"""What a process that is a part of another one says, and when it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from ccfnet_tf.io import parent_command

SAY = "from ccfnet_tf.io import parent_command as p; print(p.IS_PART, p.CONTINUE_WITH)"


def said(variables: dict[str, str]) -> str:
    command = [sys.executable, "-c", SAY]
    return subprocess.run(
        command, env=variables, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_a_part_knows_how_the_whole_is_continued() -> None:
    variables = parent_command.environment("the same command")
    assert said(variables) == "True the same command"
    assert said(dict(os.environ)) == "False --resume"
    assert said({**variables, "CCFNET_TF_PARENT": "1"}) == "False --resume"  # a part of a part


PART = """
import time
from ccfnet_tf.io import parent_command
parent_command.end_with_parent()
print("ready", flush=True)
time.sleep(60)
print("survived", flush=True)
"""
WHOLE = """
import subprocess, sys, time
from ccfnet_tf.io import parent_command
subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=parent_command.environment(""))
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux sends the signal")
def test_a_part_ends_when_the_whole_is_killed() -> None:
    command = [sys.executable, "-c", WHOLE, PART]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as whole:
        assert whole.stdout is not None
        assert whole.stdout.readline() == "ready\n"
        whole.send_signal(signal.SIGKILL)
        assert whole.stdout.read() == ""  # ends once no process has it open


def test_a_part_whose_whole_ended_before_it_began_ends_too() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as whole:
        pass
    command = [sys.executable, "-m", "ccfnet_tf", "presets"]
    variables = {**parent_command.environment(""), "CCFNET_TF_PARENT": str(whole.pid)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (143, "")
    assert done.stderr == "ccfnet-tf: the command that started this one has ended\n"


def test_messages_of_a_part_name_the_whole() -> None:
    script = (
        "from ccfnet_tf.runs import checkpoint_file as c, write_run_files as w\n"
        "from ccfnet_tf.training.sigterm_flag import terminated\n"
        "print(c.FREE_SPACE, c.NOT_FINITE_ADVICE, w._AGAIN, terminated(3), sep='\\n')"
    )
    texts = [
        subprocess.run(
            [sys.executable, "-c", script],
            env=variables,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for variables in (dict(os.environ), parent_command.environment("the same command"))
    ]
    assert texts[0].count("--resume") == 4
    assert "--resume" not in texts[1]
    assert texts[1].count("the same command") == 3
