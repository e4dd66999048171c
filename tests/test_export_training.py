"""The files under export/training and the page about them: syntax, and commands that parse."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ccfnet_tf.cli.fit_options import parse_fit

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "export" / "training"
SCRIPTS = ["multi_gpu.sh", "slurm.sbatch"]


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / "kubeflow_tfjob.yaml").read_text()))


def commands(text: str) -> list[list[str]]:
    """Returns the arguments of every `ccfnet-tf fit` command in a text."""
    joined = re.sub(r"\\\n\s*", " ", text)
    lines = re.findall(
        r"^(?:\s*(?:exec|srun .*?)?\s*)ccfnet-tf fit (.*?)(?:\|\|.*)?$", joined, re.M
    )
    return [shlex.split(line.replace("...", "")) for line in lines]


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_bash_whose_commands_parse(name: str) -> None:
    script = FOLDER / name
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (command,) = commands(script.read_text())
    options = parse_fit(command)
    assert options.resume
    assert options.config.train.rate_for_batch == 16


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_request_the_required_resources(name: str) -> None:
    done = subprocess.run(
        ["bash", str(FOLDER / name)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin"},
    )
    assert done.returncode != 0
    assert "DATA: the folder of the data set" in done.stderr


def test_sbatch_options_come_before_the_first_command() -> None:
    lines = (FOLDER / "slurm.sbatch").read_text().splitlines()
    options = [i for i, line in enumerate(lines) if line.startswith("#SBATCH ")]
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert options
    assert max(options) < first_command  # SLURM stops reading options there.
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", lines[i]) for i in options)


def test_the_kubeflow_job_is_consistent() -> None:
    *claims, job = documents()
    assert job["kind"] == "TFJob"
    assert list(job["spec"]["tfReplicaSpecs"]) == ["Chief", "Worker"]
    names = {claim["metadata"]["name"] for claim in claims}
    for replica in job["spec"]["tfReplicaSpecs"].values():
        assert replica["restartPolicy"] == "ExitCode"
        pod = replica["template"]["spec"]
        (container,) = pod["containers"]
        assert container["name"] == "tensorflow"  # Required by the operator.
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        used = {
            v["persistentVolumeClaim"]["claimName"]
            for v in volumes.values()
            if len(v) > 1 and "persistentVolumeClaim" in v
        }
        assert used == names
        verb, *arguments = container["args"]
        assert verb == "fit"
        options = parse_fit(arguments)
        assert options.resume
        assert options.config.train.strategy == "multi_worker"
        replicas = sum(r["replicas"] for r in job["spec"]["tfReplicaSpecs"].values())
        assert options.config.train.batch % replicas == 0


def test_the_image_copies_existing_files() -> None:
    text = re.sub(r"\\\n\s*", " ", (FOLDER / "Dockerfile").read_text())
    instructions = [line.split() for line in text.splitlines() if line and line[0] != "#"]
    assert instructions[0][0] == "FROM"
    assert instructions[-1] == ["ENTRYPOINT", '["tini",', '"--",', '"ccfnet-tf"]']
    for word, *rest in instructions:
        assert word in {"FROM", "RUN", "WORKDIR", "COPY", "ENTRYPOINT"}
        if word == "COPY":
            assert all((ROOT / source).exists() for source in rest[:-1]), rest


def test_every_command_of_the_page_parses_and_every_file_exists() -> None:
    page = (ROOT / "docs" / "scaling.md").read_text()
    result = commands(page)
    assert len(result) >= 1
    for command in result:
        parse_fit(command)
    for path in re.findall(r"(?:export/training|tests|ccfnet_tf)/[\w/.]+\w", page):
        assert (ROOT / path).exists(), path
