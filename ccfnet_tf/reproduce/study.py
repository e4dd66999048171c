"""The command `reproduce`: plans a study, carries out its runs, and writes its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from rich.console import Console

from ccfnet_tf.config import IMAGENET, RunConfig, to_yaml
from ccfnet_tf.datasets.open_data_set import list_set, read_parts
from ccfnet_tf.errors import CCFNetError, ConfigError, DataError, RunError
from ccfnet_tf.io.locked_folder import locked_folder
from ccfnet_tf.pipeline.worker_sharding import by_example
from ccfnet_tf.report.evaluation_in_words import counted
from ccfnet_tf.report.evaluation_tables import percent
from ccfnet_tf.report.read_evaluation_json import EVALUATION, Evaluated
from ccfnet_tf.reproduce import equal_work, initial_weights, precision, timing
from ccfnet_tf.reproduce.collect import collect
from ccfnet_tf.reproduce.console_table import console_table
from ccfnet_tf.reproduce.inputs import Input, read_inputs
from ccfnet_tf.reproduce.pages import page_text, update_page
from ccfnet_tf.reproduce.plan import (
    Plan,
    PlannedRecipe,
    PlannedRun,
    Timing,
    extended,
    has_begun,
    read_plan,
    recipe_digest,
    refuse_other,
    resolved,
    runs_of,
    write_plan,
)
from ccfnet_tf.reproduce.recipes import CASCADE, CLAIM, SPLIT, Recipe, Study, with_keys
from ccfnet_tf.reproduce.results_file import ResultsFile
from ccfnet_tf.reproduce.run import (
    RESUME,
    carry_out,
    is_finished,
    is_soundly_scored,
    is_trained,
    record_by_hand,
    refuse_calibrated,
    say_run,
)
from ccfnet_tf.runs.absolute_paths import resolved_paths
from ccfnet_tf.runs.write_run_files import write_text
from ccfnet_tf.training.images_not_trained_on import refuse_seen

MOST_EPOCHS = 10_000
"""Epochs up to which a budget is compared with what was scored, before steps are timed."""


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
    with locked_folder(folder, "another process reproduces this study: wait for it"):
        page_text(page, file.read())  # finds damage before a run is trained
        study = prepare(request, folder, file, console)
        write_plan(folder, study.plan, study.configs)
        record_by_hand(study.plan, folder, file)
        failed: dict[str, RunError] = {}
        unwritten: CCFNetError | None = None
        for number, run in enumerate(study.runs):
            say_run(study.plan, run, study.runs[number:], folder, console)
            try:
                carry_out(study.plan, run, folder, study.base, file, again=request.again)
            except RunError as error:
                console.print(f"{run.name}: failed: {error}", markup=False, soft_wrap=True)
                failed[run.name] = error
            else:
                fewer = request.again and not failed
                try:
                    _say_figures(study.plan, run, folder, console)
                    _write(study, folder, file, page, again=fewer)
                    unwritten = None
                except (DataError, RunError) as error:  # in a file that the results need
                    unwritten = error
    _raise_first(failed, unwritten, study, folder)
    console.print(console_table(file.read(), request.study))
    console.print(f"written to {file.path} and {page}")


def _raise_first(
    failed: Mapping[str, RunError], unwritten: CCFNetError | None, study: Prepared, folder: Path
) -> None:
    """Raises the error of a run, or of the results, if there was one."""
    of_failed = any(name in str(unwritten) for name in failed)
    results = "" if unwritten is None or of_failed else f"; results are not written: {unwritten}"
    if len(failed) > 1 or (failed and results):
        raise RunError(
            f"{folder}: {len(failed)} of {len(study.runs)} runs failed ({', '.join(failed)}): fix "
            f"the errors printed above, then continue with {RESUME}{results}"
        )
    for error in (*failed.values(), unwritten):
        if error is not None:
            raise error


def _write(study: Prepared, folder: Path, file: ResultsFile, page: Path, *, again: bool) -> None:
    """Writes the results of all finished runs, and records those that were scored otherwise.

    Results of more runs stay until as many are finished: some may have to be evaluated again.

    Raises:
        ConfigError: Another process has written those of more runs meanwhile.
        CCFNetError: A file of a finished run, or of the results, is missing or damaged.
        RunError: A run that the results have is not finished any more.
    """
    plan = study.plan
    with file.locked():
        finished = [run for run in plan.runs if is_finished(plan, run, folder)]
        if not again:
            file.refuse_fewer_runs(plan.study, _kept(plan, folder))
            stored = file.stored_runs(plan.study)
            for run in plan.runs:
                if run not in finished and (run.recipe, run.seed, run.fold) in stored:
                    raise RunError(
                        f"{folder / run.name}: a file of it is missing or damaged, and its results "
                        f"in {file.path} would be lost: restore it, or name this run in the "
                        "options, to train or evaluate it again"
                    )
            if len(finished) < len(stored):  # some of them, perhaps of another --out
                return
        if plan.split == "test":
            for run in finished:
                file.record_once(plan, run)
        update_page(page, file.replace(plan.study, collect(plan, finished, folder, file)))


def _say_figures(plan: Plan, run: PlannedRun, folder: Path, console: Console) -> None:
    """Prints the figures of a finished run."""
    head = plan.recipe(run.recipe).head
    evaluated = Evaluated.read(folder / run.name / EVALUATION)
    accuracy, iou = (percent(evaluated.number(head, key)) for key in ("pixel_accuracy", "mean_iou"))
    console.print(
        f"{run.name}: {head} on the {plan.split} split: pixel accuracy {accuracy} %, "
        f"mean IoU {iou} %"
    )


def _kept(plan: Plan, folder: Path) -> int:
    """Returns how many runs are there, of which a damaged one is reported later."""
    return sum(has_begun(folder / run.name) for run in plan.runs)


@dataclass(frozen=True)
class Prepared:
    """A study that is about to be carried out.

    Attributes:
        plan: All its runs so far.
        configs: Configurations of the requested recipes.
        runs: The requested runs, then those to be evaluated again.
        base: Configuration of the cascade.
    """

    plan: Plan
    configs: dict[str, RunConfig]
    runs: tuple[PlannedRun, ...]
    base: RunConfig


def prepare(request: Request, folder: Path, file: ResultsFile, console: Console) -> Prepared:
    """Plans a study; what has begun of it keeps its number of epochs and its precision.

    Raises:
        CCFNetError: The data or a file cannot be read, the budget is less than an epoch, the study
            was started with other options, a changed recipe would be scored a second time, or the
            initial weights cannot be downloaded.
    """
    base = resolved_paths(request.config)  # runs may then be continued from another folder
    _refuse_folds(base, request.folds)
    earlier = _begun(folder)
    inputs = read_inputs(base, earlier.inputs if earlier else ())
    _refuse_seen(base, request)
    if not request.again and earlier is None:
        _refuse_before_timing(request, base, inputs, folder, file)
    timed, epochs = _duration(request, base, earlier, folder, console)
    base = _with_precision(base, earlier)
    recipes: list[Recipe] = []
    configs: dict[str, RunConfig] = {}
    planned: dict[str, PlannedRecipe] = {}  # by digest
    same: dict[str, str] = {}
    for recipe in request.recipes:
        config, note = _resolve(recipe, base, epochs, folder, console)
        digest = recipe_digest(config, inputs)
        if digest in planned:
            same[recipe.name] = planned[digest].name
            console.print(f"{recipe.name}: left out, because it is the same as {same[recipe.name]}")
            continue
        recipes.append(recipe)
        configs[recipe.name] = config
        planned[digest] = PlannedRecipe(recipe.name, recipe.head, digest, recipe.summary + note)
    runs = runs_of(recipes, request.seeds, request.folds)
    plan = Plan(
        data_set=request.data_set,
        study=request.study,
        epochs=epochs,
        minutes=request.minutes,
        timing=timed,
        precision=base.train.precision,
        inputs=inputs,
        recipes=tuple(planned.values()),
        same=same,
        seeds=(request.seeds,),
        runs=runs,
    )
    if earlier is not None:
        plan = extended(earlier, plan, folder, configs)
    refuse_calibrated(plan, folder)
    runs += _evaluated_otherwise(plan, runs, folder)
    if not request.again:
        for each in planned.values() if plan.split == "test" else ():
            file.refuse_second_scoring(each.name, request.folds, {each.digest})
        file.refuse_fewer_runs(plan.study, _kept(plan, folder))
    of_imagenet = base.model.backbone_weights == IMAGENET and base.model.init_from is None
    if of_imagenet and earlier is None:
        initial_weights.download(base.model.backbone)
    return Prepared(plan, configs, runs, base)


def _evaluated_otherwise(
    plan: Plan, requested: Sequence[PlannedRun], folder: Path
) -> tuple[PlannedRun, ...]:
    """Returns ablations that are not requested, but trained, and not evaluated as by the study."""
    return tuple(
        run
        for run in plan.runs
        if plan.split == "val"
        and run not in requested
        and is_trained(folder / run.name, plan.epochs)
        and not is_soundly_scored(folder / run.name, plan, run.recipe)
    )


def _begun(folder: Path) -> Plan | None:
    """Returns the plan of a study; None if none of its runs has begun, so that it may change."""
    plan = read_plan(folder)
    if plan is None or not any(has_begun(folder / run.name) for run in plan.runs):
        return None
    return plan


def _with_precision(base: RunConfig, earlier: Plan | None) -> RunConfig:
    """Returns the configuration with the precision of all runs, `auto` resolved once."""
    if base.train.precision != "auto":
        return base
    return with_keys(base, {"train.precision": earlier.precision if earlier else precision.auto()})


def _duration(
    request: Request, base: RunConfig, earlier: Plan | None, folder: Path, console: Console
) -> tuple[Timing | None, int]:
    """Returns the epochs of every run, and what they were computed from.

    Raises:
        ConfigError: The budget is less than an epoch.
        RunError: The study was started with another budget.
    """
    if earlier is not None:
        minutes = (earlier.minutes, request.minutes)
        before, now = ("none" if each is None else f"{each:g}" for each in minutes)
        refuse_other("--budget", before, now, folder)
    if request.minutes is None:
        return None, base.train.epochs
    if earlier is not None:
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
        f"{timed.steps} steps per epoch, {timed.step_seconds:g} s per step: "
        f"{counted(epochs, 'epoch')} in {request.minutes:g} minutes"
    )
    return timed, epochs


def _resolve(
    recipe: Recipe, base: RunConfig, epochs: int, folder: Path, console: Console
) -> tuple[RunConfig, str]:
    """Returns the configuration of a recipe, and what its summary does not say yet."""
    if not recipe.equal_work:
        try:
            return resolved(recipe, base, epochs, None), ""
        except ConfigError as error:
            others = "" if recipe in CLAIM else "; or name the ablations to train, without it"
            raise ConfigError(f"recipe '{recipe.name}': {error}{others}") from error
    console.print(f"{recipe.name}: counting multiply-adds")
    classes = len(read_parts(base.data, base.seed).taxonomy.names)
    write_text(folder / "equal_work.yaml", to_yaml(base))
    width = equal_work.measure(folder / "equal_work.yaml", classes)
    note = f" ({width.channels} channels: {width.gmac:g} of {width.cascade_gmac:g} GMAC)"
    return resolved(recipe, base, epochs, width.channels), note


def _refuse_before_timing(
    request: Request, base: RunConfig, inputs: Sequence[Input], folder: Path, file: ResultsFile
) -> None:
    """Checks a new study before steps are timed and multiply-adds are counted.

    Raises:
        ConfigError: The cascade was scored on the test split in another form, whatever the budget
            gives, or the results are of more runs than are trained.
    """
    if SPLIT[request.study] == "test":
        digests = _possible_digests(request, base, inputs)
        file.refuse_second_scoring(CASCADE.name, request.folds, digests)
    requested = runs_of(request.recipes, request.seeds, request.folds)
    trained = sum(is_trained(folder / run.name, base.train.epochs) for run in requested)
    file.refuse_fewer_runs(request.study, trained)


def _possible_digests(request: Request, base: RunConfig, inputs: Sequence[Input]) -> set[str]:
    """Returns the digests that the cascade may have; with a budget, of any number of epochs."""
    config = resolved(CASCADE, base, base.train.epochs, None)
    known = [base.train.epochs] if request.minutes is None else range(1, MOST_EPOCHS + 1)
    return {
        recipe_digest(replace(config, train=replace(config.train, epochs=each)), inputs)
        for each in known
    }


def _refuse_seen(base: RunConfig, request: Request) -> None:
    """Checks that `model.init_from` was trained on no image that a run is evaluated on.

    Raises:
        ConfigError: It was.
    """
    if base.model.init_from is None:
        return
    split = SPLIT[request.study]
    seeds = range(request.seeds if split == "val" else 1)  # the test split is that of all seeds
    for fold, seed in product(request.folds, seeds):
        parts = read_parts(replace(base.data, fold=fold), seed)
        where = f"images of the {split} split of fold {fold} and seed {seed}"
        refuse_seen(base.model.init_from, getattr(parts, split), parts, where)


def _refuse_folds(config: RunConfig, folds: Sequence[int]) -> None:
    """Checks that the data set has all folds, and enough images in each of them.

    Raises:
        ConfigError: It has not.
    """
    known = max(1, list_set(config.data, config.seed).folds)
    for fold in folds:
        if not 0 <= fold < known:
            folds_of = f"the folds 0 to {known - 1}" if known > 1 else "no fold but 0"
            raise ConfigError(f"--folds {fold}: the data set has {folds_of}")
        parts = read_parts(replace(config.data, fold=fold), config.seed)
        by_example(parts.train, config.train.batch)  # raises if the split is smaller than a batch
        if not parts.val:
            share = config.data.val_share
            fix = "add images to it" if parts.own_val else f"data.val_share is {share}: raise it"
            raise ConfigError(
                f"{config.data.root}: the validation split of fold {fold}, which chooses "
                f"checkpoints and calibrates, is empty: {fix}"
            )
