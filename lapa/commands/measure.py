"""Commands that compare methods or settings: `lapa demo`, `evaluate`, `compare`, `protocol`, `study`, `ablate`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lapa.commands.options import (
    Benchmark,
    Datasets,
    Names,
    Options,
    Preset,
    Seed,
    Steps,
    at_least_one,
    open_pack,
    print_table,
    recipe_of,
    refuse_changed,
    split_names,
)
from lapa.commands.serve import is_remote, require_packages
from lapa.contracts import LapaError
from lapa.runtime.alone import hold


def demo(
    out: Path = Path("runs/demo"),
    videos: int = 3000,
    labels: int = 20,
    episodes: int = 200,
    setting: Literal["cross-embodiment", "in-domain"] = "cross-embodiment",
    seed: Seed = 0,
    workers: int = 0,
    unipi: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Videos -> robot policy on this machine, beside the baselines.

    Takes about ten minutes on two cores. Makes the data, fits LAQ, labels, pretrains, finetunes and evaluates every
    method, and writes a report. Interrupt it at any time and run it again: it goes on from the last finished step.

    Args:
        out: folder of everything the demo makes
        videos: episodes of video without actions
        labels: labelled trajectories for finetuning
        episodes: test episodes per method
        setting: cross-embodiment: the videos show a hand; in-domain: they show the robot itself, where guessing the
            videos' actions from the few labelled trajectories (VPT) works as well as LAPA
        workers: steps run side by side, one thread each (0: one per core)
        unipi: the UniPi baseline as well, about five minutes more; it is added to a finished demo
        quick: run every step with a hundredth of the work, in about two minutes; the figures mean nothing
    """
    from lapa.experiments.demo import DemoSettings, run_demo

    run_demo(DemoSettings(videos, labels, episodes, setting, seed, quick), out, workers, unipi)


def demo_real(
    out: Path = Path("runs/demo_real"),
    videos: int = 150,
    labels: int = 30,
    episodes: int = 60,
    seed: Seed = 0,
    workers: int = 0,
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """The same in Meta-World, with pretrained parts.

    Its expert shows how to reach, push, and pick and place. Four methods learn from these videos and a few labelled
    trajectories; a film shows them side by side. Interrupt it at any time and run it again. Needs lapa[metaworld].

    Args:
        out: folder of everything the demo makes
        videos: episodes of video
        labels: how many of them are labelled, for finetuning
        episodes: test episodes per method
        workers: steps run side by side, one thread each (0: one per core)
        quick: run every step with a hundredth of the work; the figures mean nothing
    """
    from lapa.experiments.demo_real import RealDemoSettings, run_demo_real

    run_demo_real(RealDemoSettings(videos, labels, episodes, seed, quick), out, workers)


def evaluate(
    out: Path,
    policy: str | None = None,
    row: str | None = None,
    name: str | None = None,
    benchmark: Benchmark = "tabletop",
    dataset: Datasets = (),
    execute: int | None = None,
    instruction: Literal["right", "shuffled", "empty"] = "right",
    episodes: int = 500,
    video: int = 0,
    seed: Seed = 0,
    validation: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Try a policy on a benchmark (success) or recorded episodes (error).

    On a benchmark: the share of successes with 95% intervals. For a robot without a benchmark, --dataset are recorded
    episodes: the error of the policy's actions on those that it was not finetuned on, beside the errors of holding
    still, of the mean action and of a ridge regression.

    Args:
        out: folder for results.json and pictures
        policy: folder made by `lapa finetune`, or a policy server of anybody, openpi://HOST:PORT or
            openvla://HOST:PORT[,OPTION=VALUE] (docs/serving.md)
        row: in place of a policy, one of the benchmark's own rows, such as no_op, random or expert
        name: name in the results (None: the policy's method)
        execute: how many actions of each answer are executed before the policy is asked again (None: the policy's own)
        instruction: what the policy is told: the right words, those of another scene, or none
        episodes: test episodes
        video: the number of episodes, from the first on, that are also written as animations
        validation: use the validation scenes, for choosing settings
    """
    from lapa.evaluate import Trial, open_benchmark
    from lapa.evaluate import evaluate as score
    from lapa.experiments.players import of_policy, of_row

    if dataset:
        given = {"row": row, "benchmark": benchmark, "execute": execute, "instruction": instruction,
                 "episodes": episodes, "video": video, "validation": validation}  # fmt: skip
        refuse_changed(given, "a benchmark, not to --dataset", evaluate)
        if policy and is_remote(policy):
            raise LapaError(f"{policy}: a policy server is tried on a --benchmark, not on a --dataset.")
        _evaluate_offline(Path(policy) if policy else None, dataset, out, name)
        return
    if (policy is None) == (row is None):
        raise LapaError("Give either --policy FOLDER or --row NAME, such as no_op, random or expert.")
    if video < 0:
        raise LapaError(f"--video must be at least 0, got {video}.")
    trial = Trial(episodes, seed, validation, instruction, execute)
    world = open_benchmark(benchmark)
    if policy and is_remote(policy):
        require_packages()
    who = of_policy(policy, world, benchmark) if policy else of_row(str(row), world, benchmark)
    about, named = {"benchmark": benchmark, **who.about}, name or who.name
    results = score(named, who.actor, world, trial, out, video, about)
    low, high = results["interval"]
    words = "" if instruction == "right" else f", {instruction} instructions"
    print(f"{named}: {results['success']:.1%} of {episodes} episodes (95%: {low:.1%} to {high:.1%}){words}.")
    for family, part in results["families"].items():
        far = "".join(f"  {stage} {reached:.0%}" for stage, reached in part.get("stages", {}).items())
        print(f"  {family:<24} {part['success']:6.1%}  ({part['interval'][0]:.1%} to {part['interval'][1]:.1%}){far}")
    print(f"Results, picture and animations are in {out}.")


def _evaluate_offline(policy: Path | None, dataset: tuple[str, ...], out: Path, name: str | None) -> None:
    from lapa.experiments.offline import evaluate_offline, lines

    if policy is None:
        raise LapaError("--dataset is for --policy FOLDER, made by `lapa finetune`: give one.")
    made = evaluate_offline(
        policy, lambda size, fit, cameras: open_pack(dataset, size, False, fit, cameras), out, name
    )  # fmt: skip
    print("\n".join(lines(made)))
    print(f"Figures and picture are in {out}.")


def compare(
    dataset: Datasets,
    out: Path,
    labelled: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME:PATH")] = (),
    settings: Names = (),
    methods: Names = (),
    seeds: int = 3,
    budgets: Names = (),
    videos: int | None = None,
    episodes: int | None = None,
    validation: int | None = None,
    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    other: Annotated[str, tyro.conf.arg(metavar="NAME[:PATH][,OPTION=VALUE]")] = "",
    server: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="openpi://HOST:PORT")] = (),
    results: Path | None = None,
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    benchmark: Annotated[str | None, tyro.conf.arg(metavar="NAME[:PATH][,OPTION=VALUE]")] = None,
    preset: str | None = None,
    seed: int = 0,
    workers: int = 0,
    set: Options = (),
    set_finetune: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME=VALUE")] = (),
    cameras: Names = (),
) -> None:
    """Several methods on your data, or the paper's table.

    For your data give --dataset and --labelled, for the table --settings; it is on Tabletop, or with --benchmark
    metaworld, language_table or libero in a benchmark of others, whose expert then makes all data
    (docs/world_table.md). If interrupted, the same command goes on.
    Examples: lapa compare --settings all --methods all --seeds 3 --out runs/paper; lapa compare --settings in-domain
    --methods lapa,vpt --budgets 20 --seeds 1 --out runs/part;
    lapa compare --dataset video_folder:clips/ --labelled lerobot:robot/ --out runs/mine. The first runs for hours; stop
    it at any time, and the same command goes on.

    --dataset are your videos for stages 1 and 2.

    Args:
        out: folder of everything; for a table results.json, table.md and curves.png
        labelled: your labelled trajectories for stage 3, given once or more
        settings: in-domain, cross-task, cross-env, cross-embodiment, or all
        methods: table: its rows (none: all of them); your data: methods (none: scratch,vpt,lapa and, if the
            videos have actions, actionvla)
        seeds: table: number of training seeds; each has its own data, models and test scenes
        budgets: table: numbers of labelled trajectories (none: 5,10,20,50,100; cross-task 100). With --benchmark, a
            task: 1,3,5,10
        videos: table: episodes of video (none: 6000; with --benchmark, a task: 50)
        episodes: test episodes a method (table: and a seed and split; none: 500; with --benchmark, a task: 20)
        validation: table on Tabletop: validation episodes for each way to finetune (none: 200)
        only: table: run only cells with this text in their title, such as "lapa", "cross-env 20 " or "seed 0"
        other: table with --benchmark: whose expert makes the videos of cross-embodiment (none: so101:pick-place),
            such as libero:libero_object,camera=agentview
        server: table with --benchmark: a policy server, openpi:// or openvla:// as `lapa evaluate --policy` takes it:
            one more row, on the same scenes; repeatable
        results: table: results.json of an earlier table; its cells are not run again
        quick: table: run every step with a hundredth of the work; the figures mean nothing
        dry_run: table: say what would be run, and how long it would take
        benchmark: table: metaworld:TASKS, language_table:FAMILIES or libero:SUITE in place of Tabletop, with options
            of that benchmark. Your data: where policies are tried (none: Tabletop where the labelled trajectories are
            of its world; else policies are judged by their error on trajectories that are held out)
        preset: named settings, as in the training commands (none: laptop; table with --benchmark: video)
        seed: your data: seed of everything random
        workers: steps run side by side, one thread each (0: one per core)
        set_finetune: your data: as --set, for stage 3 alone, such as policy.head=regression
        cameras: your data: those that the method track looks at, as in `lapa track` (none: the dataset's own)
    """
    given = {"seeds": seeds, "budgets": budgets, "videos": videos, "validation": validation, "only": only,
             "results": results, "quick": quick, "dry_run": dry_run, "other": other, "server": server}  # fmt: skip
    if settings:
        if dataset or labelled:
            raise LapaError("Give either --settings, or --dataset and --labelled.")
        refuse_changed({"seed": seed, "set_finetune": set_finetune, "cameras": cameras}, "--dataset and --labelled",
                       compare)  # fmt: skip
        from lapa.experiments.paper_cells import common_of, parse
        from lapa.experiments.paper_table import run_paper

        common = common_of(benchmark, other, videos, episodes, validation, preset, set)
        asked = parse(split_names(settings), split_names(methods) or ("all",), seeds, split_names(budgets), only,
                      common.quick() if quick else common, server)  # fmt: skip
        if run_paper(asked, out, workers, results, dry_run) is not None:
            print((out / "table.md").read_text(), end="")
            print(f"Table, figures and picture are in {out}.")
        return
    from lapa.experiments.compare import Comparison, begin, benchmark_for, require_actions

    if not labelled:
        raise LapaError("Give --settings all for the paper's table, or --dataset and --labelled for your own data.")
    refuse_changed(given, "--settings", compare)
    recipe_of(preset or "laptop", (*set, *set_finetune))  # refuses now what a later step would refuse
    named = split_names(methods)
    where = benchmark or benchmark_for(labelled)
    if where is None and episodes is not None:
        raise LapaError("--episodes are those of a --benchmark, and there is none here. Leave it out.")
    options = ("--preset", preset or "laptop", *(part for option in set for part in ("--set", option)))
    later = tuple(part for option in set_finetune for part in ("--set", option))
    setting = Comparison(at_least_one(dataset), labelled, where, 500 if episodes is None else episodes, seed, options,
                         finetune_options=later, cameras=split_names(cameras))  # fmt: skip
    named = require_actions(setting, () if "all" in named else named)
    begin(setting, out)
    (_compared_by_errors if setting.benchmark is None else _compared_by_success)(named, setting, out, workers)


def _compared_by_success(named: tuple[str, ...], setting: Any, out: Path, workers: int) -> None:
    """Run the plan, and show how often each method's policy succeeds, beside the benchmark's own rows."""
    from lapa.artefacts.folder import write_json
    from lapa.evaluate import open_benchmark
    from lapa.experiments.compare import gap_closed, gather, in_order, plan, with_earlier
    from lapa.experiments.schedule import run
    from lapa.plots.codes import success_bars

    rows = tuple(open_benchmark(setting.benchmark).baselines())
    seconds = run(plan(named, setting, out, rows), out, workers)
    scores = gather(in_order(with_earlier(named, out, "eval/{}/results.json"), rows), out)
    write_json(out / "results.json", {"methods": scores, "seconds": seconds, "settings": dataclasses.asdict(setting)})
    success_bars(scores, out / "success.png")
    print_table(scores)
    closed = gap_closed(scores)
    if closed is not None:
        print(f"LAPA closes {closed:.0%} of the gap from Scratch to ActionVLA.")
    print(f"Table and picture are in {out}.")


def _compared_by_errors(named: tuple[str, ...], setting: Any, out: Path, workers: int) -> None:
    """Run the plan, and show the held-out error of each method's policy, beside rows that need no policy."""
    from lapa.artefacts.folder import write_json
    from lapa.experiments.compare import errors, plan, with_earlier
    from lapa.experiments.schedule import run
    from lapa.measures.offline import interval
    from lapa.plots.offline import offline_error
    from lapa.stage3_finetune import HELD_OUT

    seconds = run(plan(named, setting, out), out, workers)
    found = errors(with_earlier(named, out, f"policy/{{}}/{HELD_OUT}"), out)
    write_json(out / "results.json", {"offline": found, "seconds": seconds, "settings": dataclasses.asdict(setting)})
    offline_error(found, out / "error.png", "Error of actions on held-out trajectories")
    print(f"Open-loop error on {found['episodes']} labelled trajectories that were held out (1: always the mean "
          "action), and length of steps over the expert's:")  # fmt: skip
    for name, row in found["rows"].items():
        step = "" if row["step"] is None else f"  {row['step']:.2f}"
        print(f"  {name:<18} {row['error']:.2f}  ({interval(row, found)}){step}")
    print(f"Figures and picture are in {out}. A low error is needed for success and does not promise it.")


def protocol(
    file: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="FILE.yaml")] = None,
    out: Path = Path("runs/protocol"),
    report: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    example: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Policies on a real robot: same scenes, blind, partial credit.

    For each rollout it shows the set-up, the instruction and a letter for the method, and asks which stage was reached.
    Every answer is written at once: the same command goes on after a stop. Where the file names a benchmark, a
    simulator stands in your place. Examples: lapa protocol --example > protocol.yaml; lapa protocol protocol.yaml
    --out runs/protocol. More: docs/protocol.md.

    Args:
        file: tasks, types of generalisation, rollouts, methods
        out: folder of the answers and of the report
        report: ask nothing; report what was answered so far, at the poses that all methods have met
        example: print a FILE.yaml to begin with
    """
    from lapa.experiments.protocol_file import EXAMPLE, read_protocol

    if example:
        print(EXAMPLE, end="")
        return
    if file is None:
        raise LapaError("Give FILE.yaml; `lapa protocol --example > protocol.yaml` writes one to begin with.")
    from lapa.experiments.protocol import judge_all, open_session
    from lapa.experiments.protocol_report import report as write_report

    asked = read_protocol(file)
    if asked.simulated and any(is_remote(run) for run in asked.methods.values()):
        require_packages()
    if not report:
        hold(out)
    session = open_session(asked, out)
    if not report:
        count = len(session.rollouts)
        print(f"{len(asked.poses)} initial poses, {len(asked.methods)} methods at each: {count} rollouts, of which "
              f"{len(session.answers)} are done. {out / 'sealed.json'} says which letter is which method: whoever "
              "judges does not open it.")  # fmt: skip
        if not judge_all(session, input, print):
            return
    made = write_report(session)
    for name, told in made["methods"].items():
        low, high = told["credit_interval"]
        print(f"  {name:<18} credit {told['credit']:6.1%}  ({low:.1%} to {high:.1%})  success {told['success']:6.1%}  "
              f"({told['interval'][0]:.1%} to {told['interval'][1]:.1%}, {told['episodes']} rollouts)")  # fmt: skip
    print(f"Report, figures and pictures are in {out}: report.md first.")


def _study_codes(
    name: str, out: Path, dataset: tuple[str, ...], seeds: int | None, laq: tuple[str, ...], only: tuple[str, ...]
) -> None:
    """Studies of the preset's codes, in which nothing is trained."""
    from lapa.experiments.latents import Asked, study_latents
    from lapa.experiments.moving_camera import study_camera
    from lapa.experiments.transplant import study_transplant

    if name == "latents":
        study_latents(Asked(dataset or ("all",), 3 if seeds is None else seeds, laq, only=only), out)
    elif name == "camera":
        if laq:
            raise LapaError("lapa study camera fits codes of its own; leave --laq out.")
        study_camera(at_least_one(dataset), out, 3 if seeds is None else seeds)
    else:
        if len(laq) != 1 or seeds is not None:
            raise LapaError("lapa study transplant judges one finished LAQ: give --laq RUN once, and no --seeds.")
        study_transplant(laq[0], dataset, out)


def study(
    name: Annotated[
        Literal["quantizers", "options", "collapse", "latents", "camera", "transplant"], tyro.conf.Positional
    ],
    out: Path,
    dataset: Datasets = (),
    preset: Preset = "laptop",
    seeds: int | None = None,
    steps: Steps = None,
    workers: int = 0,
    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    results: Path | None = None,
    laq: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    set: Options = (),
) -> None:
    """Settings of stage 1 on your data: what do the codes tell?

    It also says whether all codes are in use. After an interruption the same command goes on.
    Each cell is a `lapa quantize` with one seed. Its figures are measured on held-out episodes: perplexity at each
    position, error over copying, and, if the dataset has actions and states, how much the codes tell of action,
    displacement and position. --dataset are the videos (none: 1,500 episodes of Tabletop).

    Args:
        name: quantizers: each quantizer with 8 and 16 codes; options: the paper's decoder, and frozen features if you
            --set objectives.features_of=FOLDER, beside the preset; collapse: the preset itself with many seeds;
            latents: the codes of the preset video beside features that need no training, a table for each --dataset,
            nothing is trained (docs/latents.md); --dataset all, or all:FOLDER that has real_g1 and real_clips: those,
            and demonstrations of the simulators that are installed;
            camera: whether such codes tell the motion of a camera apart from the robot's, on crops of --dataset that
            move; transplant: whether the codes of --laq move another robot the same way, one --dataset for each
        out: folder of all runs, results.json, table.md and study.png
        seeds: seeds per setting (None: the study's)
        workers: runs side by side, one thread each (0: one per core)
        only: run only rows with this text in their name, given once or more; the table shows all that are done
        results: results.json of an earlier study; its cells are not run again
        laq: latents: finished LAQs to judge beside the others, given once or more; they must not have been trained on
            the episodes that are held out here (lapa quantize --set hold_out=5 keeps the same ones apart)
    """
    if name in ("latents", "camera", "transplant"):
        if preset != "laptop" or steps is not None or workers or results or set or (only and name != "latents"):
            raise LapaError(f"lapa study {name} trains nothing: it takes --dataset, --seeds, --laq and --out alone.")
        _study_codes(name, out, dataset, seeds, laq, only)
        print((out / "table.md").read_text(), end="")
        print(f"Tables and figures are in {out}.")
        return
    if laq:
        raise LapaError("--laq is of lapa study latents and transplant; leave it out.")
    from lapa.experiments.study import STUDIES, TABLETOP, StudySettings, run_study
    from lapa.plugins import choose

    usual = STUDIES[choose(name, STUDIES, "study")]
    options = ("--preset", preset, *(part for option in set for part in ("--set", option)))
    asked = StudySettings(name, dataset or (TABLETOP,), seeds if seeds is not None else usual.seeds,
                          steps if steps is not None else usual.steps, options, only)  # fmt: skip
    run_study(asked, out, workers, results)
    print((out / "table.md").read_text(), end="")
    print(f"Table, figures and picture are in {out}.")


def ablate(
    name: Annotated[Literal["codes", "positions", "window", "videos", "policy", "compute"], tyro.conf.Positional],
    out: Path,
    seeds: int = 3,
    videos: int | None = None,
    labels: int | None = None,
    episodes: int | None = None,
    benchmark: Annotated[str, tyro.conf.arg(metavar="NAME[:PATH][,OPTION=VALUE]")] = "tabletop",
    method: str = "lapa",
    preset: str | None = None,
    workers: int = 0,
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    set: Options = (),
) -> None:
    """Several values of one setting, from video to success.

    It also shows what the codes tell of the actions. After an interruption the same command goes on. On Tabletop a cell
    takes about six minutes of a core; data and scenes are those of `lapa compare --settings in-domain`. With
    --benchmark metaworld:TASKS its expert makes all data, and several ablations may have one --out: they share these
    data and the row that changes nothing (docs/world_table.md).

    Args:
        name: codes: |C|; positions: s; window: seconds of a code; videos: a share of them; policy: sizes of the
            backbone; compute: steps of pretraining, of LAPA and of ActionVLA. docs/analysis.md and docs/world_table.md
            have the values
        out: folder of all runs, results.json, table.md and ablation.png (with --benchmark these are in OUT/NAME)
        seeds: number of training seeds; each has its own data, models and test scenes
        videos: episodes of video (none: 6000; with --benchmark, a task: 50)
        labels: labelled trajectories (none: 20; with --benchmark, a task: 10)
        episodes: test episodes a seed (none: 500; with --benchmark, a task: 20)
        benchmark: where all this is: tabletop, or metaworld:TASKS, language_table:FAMILIES or libero:SUITE as in
            `lapa compare`
        method: what is ablated: lapa; with --benchmark also read, track or vpt, whose results are in OUT/NAME_METHOD
        preset: named settings, as in the training commands (none: laptop; with --benchmark video)
        workers: steps run side by side, one thread each (0: one per core)
        dry_run: say what would be run, and how long it would take
    """
    from lapa.experiments.ablation import reports_of, run_ablation, settings_of

    asked = settings_of(name, benchmark, seeds, (videos, labels, episodes), preset, set, method)
    if run_ablation(asked, out, workers, dry_run) is not None:
        print((reports_of(asked, out) / "table.md").read_text(), end="")
        print(f"Table, figures and picture are in {reports_of(asked, out)}.")
