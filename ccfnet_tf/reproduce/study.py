"""The command `reproduce`: plans a study, carries out its runs, and writes its results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from ccfnet_tf.config import RunConfig, to_yaml
from ccfnet_tf.datasets.open_data_set import list_set, read_parts, with_format
from ccfnet_tf.errors import ConfigError
from ccfnet_tf.reproduce import equal_work, timing
from ccfnet_tf.reproduce.collect import collect
from ccfnet_tf.reproduce.pages import update_page
from ccfnet_tf.reproduce.plan import (
    Plan,
    PlannedRecipe,
    Timing,
    extended,
    read_plan,
    recipe_digest,
    resolved,
    runs_of,
    write_plan,
)
from ccfnet_tf.reproduce.recipes import Recipe, Study
from ccfnet_tf.reproduce.results_file import ResultsFile
from ccfnet_tf.reproduce.run import carry_out, say_run
from ccfnet_tf.runs.write_run_files import write_text


@dataclass(frozen=True)
class Request:
    """What shall be reproduced.

    Attributes:
        data_set: `stanford_background` or `sift_flow`.
        study: Which experiments.
        recipes: Recipes that are trained.
        config: Configuration of the cascade.
        seeds: Runs of each recipe, with seeds 0, 1, ...
        folds: Folds that are the test split.
        minutes: Training time of a run of the cascade; None trains `config.train.epochs`.
        again: Score a changed recipe on the test split once more.
    """

    data_set: str
    study: Study
    recipes: tuple[Recipe, ...]
    config: RunConfig
    seeds: int
    folds: tuple[int, ...] = (0,)
    minutes: float | None = None
    again: bool = False


def reproduce(request: Request, out: Path, results: Path, console: Console) -> None:
    """Carries out what is not finished of a study, and writes the results after each run.

    Args:
        request: What shall be reproduced.
        out: Folder of the studies.
        results: Folder of the results files; the page is the file of its name with `.md`.
        console: Where progress is printed.

    Raises:
        CCFNetError: An option, the data or a file cannot be used, a command failed, or a changed
            recipe would be scored a second time.
    """
    file = ResultsFile(results / f"{request.data_set}.json", request.data_set)
    page = results.with_name(f"{results.name}.md")
    folder = out / request.study
    plan, configs = make_plan(request, folder, console)
    if not request.again:
        file.refuse_second_scoring(plan)
    write_plan(folder, plan, configs)
    _write(plan, folder, file, page)
    for run in plan.runs:
        say_run(plan, run, folder, console)
        carry_out(plan, run, folder, file)
        _write(plan, folder, file, page)
    console.print(f"written to {file.path} and {page}")


def _write(plan: Plan, folder: Path, file: ResultsFile, page: Path) -> None:
    update_page(page, file.replace(plan.study, collect(plan, folder, file)))


def make_plan(
    request: Request, folder: Path, console: Console
) -> tuple[Plan, dict[str, RunConfig]]:
    """Returns the plan of a study with all runs so far, and the configurations by recipe.

    The number of epochs of a study that was started before is kept.

    Raises:
        CCFNetError: The data cannot be read, the budget is less than an epoch, or the study was
            started with other options.
    """
    base = _absolute(request.config)
    _refuse_folds(base, request.folds)
    earlier = read_plan(folder)
    timed, epochs = _duration(request, base, earlier, folder, console)
    chosen: list[Recipe] = []
    configs: dict[str, RunConfig] = {}
    planned: list[PlannedRecipe] = []
    for recipe in request.recipes:
        config, note = _resolve(recipe, base, epochs, folder, console)
        digest = recipe_digest(config)
        if digest in [each.digest for each in planned]:
            console.print(f"{recipe.name}: left out, because another recipe is the same")
            continue
        chosen.append(recipe)
        configs[recipe.name] = config
        planned.append(PlannedRecipe(recipe.name, recipe.head, digest, recipe.summary + note))
    runs = runs_of(chosen, request.seeds, request.folds)
    plan = Plan(
        request.data_set, request.study, epochs, request.minutes, timed, tuple(planned), runs
    )
    return (plan if earlier is None else extended(earlier, plan, folder)), configs


def _duration(
    request: Request, base: RunConfig, earlier: Plan | None, folder: Path, console: Console
) -> tuple[Timing | None, int]:
    """Returns the epochs of every run, and what they were computed from.

    Raises:
        ConfigError: The budget is less than an epoch.
    """
    if request.minutes is None:
        return None, base.train.epochs
    if earlier is not None and earlier.minutes == request.minutes:
        return earlier.timing, earlier.epochs
    timed = timing.measure(base, folder / "timing", console)
    epochs = timed.epochs(request.minutes)
    if not epochs:
        least = (timed.start_seconds + timed.steps * timed.step_seconds) / 60
        raise ConfigError(
            f"--budget {request.minutes:g}: one epoch takes about {least:.1f} minutes on this "
            "machine: give at least as many"
        )
    console.print(
        f"{timed.steps} steps per epoch, {timed.step_seconds:g} s per step: {epochs} epochs in "
        f"{request.minutes:g} minutes"
    )
    return timed, epochs


def _resolve(
    recipe: Recipe, base: RunConfig, epochs: int, folder: Path, console: Console
) -> tuple[RunConfig, str]:
    """Returns the configuration of a recipe, and what its summary does not say yet."""
    if not recipe.equal_work:
        return resolved(recipe, base, epochs, None), ""
    console.print(f"{recipe.name}: counting multiply-adds")
    classes = len(read_parts(base.data, base.seed).taxonomy.names)
    write_text(folder / "equal_work.yaml", to_yaml(base))
    width = equal_work.measure(folder / "equal_work.yaml", classes)
    note = f" ({width.channels} channels: {width.gmac:g} of {width.cascade_gmac:g} GMAC)"
    return resolved(recipe, base, epochs, width.channels), note


def _absolute(config: RunConfig) -> RunConfig:
    """Returns the configuration with absolute paths and the detected layout.

    Runs may then be continued from another folder.
    """
    data = with_format(config.data)
    data = replace(data, root=_path(data.root), lists=_path(data.lists))
    data = replace(data, label_map=_path(data.label_map))
    weights = Path(config.model.backbone_weights).expanduser()
    if not weights.is_file():  # a name, or a missing file, which `fit` reports
        return replace(config, data=data)
    model = replace(config.model, backbone_weights=str(weights.resolve()))
    return replace(config, data=data, model=model)


def _path(path: str | None) -> str | None:
    return path if path is None or "://" in path else str(Path(path).expanduser().resolve())


def _refuse_folds(config: RunConfig, folds: Sequence[int]) -> None:
    """Checks that the data set has all folds.

    Raises:
        ConfigError: It has not.
    """
    known = max(1, list_set(config.data, config.seed).folds)
    for fold in folds:
        if not 0 <= fold < known:
            raise ConfigError(f"--folds {fold}: the data set has the folds 0 to {known - 1}")
