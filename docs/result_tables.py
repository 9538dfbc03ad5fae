"""The tables of the README and the documentation that are made from results/: `make tables` writes them anew.

In a page, a comment names each of them: `<!-- table: NAME -->`, an empty line, then the table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from trajectory import names
from trajectory.model.exported import read_card
from trajectory.reporting.league import League, make_league
from trajectory.reporting.rows import Group, Row, group_runs
from trajectory.reporting.runs import collect
from trajectory.reporting.settings import ReportSettings
from trajectory.reporting.tables import estimate

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RESULTS = ROOT / "results"
LEAGUE = RESULTS / "league"
PLACE = re.compile(r"(<!-- table: (\w+) -->\n\n)((?:\|.*\n)*)")
OVERRIDE = re.compile(r"[+~]{0,2}[a-z][\w/.]*=\S+")
METHODS = {"Trajectory Transformer + Q": "TT+Q", "Trajectory Transformer": "TT", "rebrac": "ReBRAC"}
ENVIRONMENTS = ("Hopper-v5", "Walker2d-v5", "HalfCheetah-v5", "Ant-v5")
QUALITIES = ("medium", "medium-replay", "medium-expert")
# of each folder of results/earlier and method: its settings
EARLIER = {
    "constant_rate": dict.fromkeys(
        ("none", "rebrac"),
        "a constant rate of the critic, 50,000 updates, a penalty or nothing instead of moved draws",
    ),
    "without_penalty": {"none": "neither a penalty nor moved draws"},
    "q_of_iql": {
        "none": "Q of IQL",
        "rebrac": "as published for Hopper (`baseline.actor_penalty=0.01 baseline.critic_penalty=0.001 "
        "baseline.tau=0.005`), rewards as they are",
    },
    "adamw": {"none": "Q of IQL with two advantage networks, AdamW, 8,000 steps"},
}


def pages() -> list[Path]:
    """All pages that may have tables."""
    return [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


def filled(text: str) -> str:
    """A page with its tables as the results have them.

    Raises:
        KeyError: a comment names a table that is not in `TABLES`.
    """
    return PLACE.sub(lambda found: found[1] + TABLES[found[2]](), text)


def measured(name: str) -> Any:
    """results/NAME.json."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table with one line for each row."""
    head = list(head)
    lines = [" | ".join(cells) for cells in (head, ["---"] * len(head), *rows)]
    return "".join(f"| {line} |\n" for line in lines)


def spread(row: dict[str, Any], prefix: str = "return_", digits: int = 0) -> str:
    """Mean ± standard deviation."""
    return f"{row[f'{prefix}mean']:.{digits}f} ± {row[f'{prefix}std']:.{digits}f}"


def percent(share: float, digits: int = 0) -> str:
    return f"{share:.{digits}%}".replace("%", " %")


def code(setting: str) -> str:
    """A setting as code where it is one override of a command or several."""
    return f"`{setting}`" if OVERRIDE.match(setting) and "," not in setting else setting


# The league


@cache
def leagues() -> tuple[list[Group], dict[str, League]]:
    """The groups of runs in results/league, and the leagues of each measured quality, of `all` and of all `but ant`.

    Datasets on which one method alone was measured are left out.
    """
    groups, _ = group_runs(collect([str(LEAGUE)])[0], ReportSettings(), force=False)
    by_quality = {
        quality: sorted(
            [group for group in groups if group.dataset["id"].endswith(f"/{quality}-v0") and len(group.rows) > 1],
            key=lambda group: ENVIRONMENTS.index(group.environment),
        )
        for quality in QUALITIES
    }
    by_quality["all"] = [group for quality in QUALITIES for group in by_quality[quality]]
    by_quality["but ant"] = [group for group in by_quality["all"] if group.environment != "Ant-v5"]
    found = {quality: make_league(those, ReportSettings()) for quality, those in by_quality.items()}
    return groups, {quality: league for quality, league in found.items() if league is not None}


def methods_of(league: League) -> dict[str, str]:
    """Titles of a league's methods by their labels."""
    return {label: METHODS.get(label, label.upper()) for label in league.methods}


def league_scores() -> str:
    """Normalised scores of all methods, those of the best bold, and the means of complete qualities."""
    groups, found = leagues()
    means = found["medium"].means
    methods = sorted(means, key=lambda label: -means[label].value)
    titles = methods_of(found["all"])
    rows = []
    for name, those, first in zip(found["all"].datasets, found["all"].rows, found["all"].first, strict=True):
        environment, quality = name.split("/")
        data = next(group.of_data for group in groups if group.rows[0] in those.values())
        cells = [_score(those.get(label), label in first) for label in methods]
        rows.append([f"{environment} {quality}", f"{data:.1f}", *cells])
        league = found.get(quality)
        if league is not None and len(league.datasets) == len(ENVIRONMENTS) and name == league.datasets[-1]:
            rows.append([f"mean of {quality}", "", *_means(league, methods)])
    if len(found["but ant"].datasets) == (len(ENVIRONMENTS) - 1) * len(QUALITIES):
        rows.append(["mean of the nine without ant", "", *_means(found["but ant"], methods)])
    return markdown(["data", "the data", *(titles[label] for label in methods)], rows)


def _means(league: League, methods: list[str]) -> list[str]:
    """Empty for methods that were not measured on all of the league's datasets."""
    return [
        estimate(league.means[label].value, league.means[label].interval) if label in league.means else ""
        for label in methods
    ]


def _score(row: Row | None, is_first: bool) -> str:
    """Empty where nothing was measured."""
    if row is None:
        return ""
    score = estimate(row.summary.mean, row.summary.mean_interval)
    return f"**{score}**" if is_first else score


def league_costs() -> str:
    """Returns, episodes, scores and core-minutes of all methods."""
    league = leagues()[1]["all"]
    titles, rows = methods_of(league), []
    for name, those in zip(league.datasets, league.rows, strict=True):
        for label in sorted(those, key=lambda label: -those[label].summary.mean):
            row = those[label]
            std = np.concatenate([list(run.returns.values()) for run in row.runs]).std()
            minutes = "–" if row.training_cpu_s is None else f"{row.training_cpu_s / 60:.1f}"
            cells = [f"{row.returns:.0f} ± {std:.0f}", str(row.episodes), f"{row.summary.mean:.1f}", minutes]
            rows.append([name.replace("/", " "), titles[label], *cells])
    head = ["data", "method", "return (mean ± std)", "seeds × episodes", "normalised score", "core-minutes"]
    return markdown(head, rows)


# Values by dynamic programming


def critics() -> str:
    """The critics of the data that were tried, and what was executed with them."""
    columns = ["best of 32", "mean of 16 of 32, T=1", "mean of 8 of 16", "mean of 16 of 32", "mean of 16, T=1"]
    rows = []
    for row in measured("critic_pilots")["rows"]:
        setting = [row["dataset"], row["critic"], "{} x {}".format(*row["hidden"]), f"{row['updates']:,}"]
        setting += [row["learning_rate"], f"{row['warm_start']:g}"]
        returns = (row["returns"].get(column) for column in columns)
        rows.append([*setting, *("" if pair is None else "{:.0f} ± {:.0f}".format(*pair) for pair in returns)])
    return markdown(["dataset", "critic", "units", "updates", "learning rate", "warm start", *columns], rows)


def policy_critics() -> str:
    """The critics of a policy that were tried with a constant learning rate."""
    columns = {name: f"mean of {name}" for name in ("16 of 32", "16 of 64", "8 of 64", "8 of 128")}
    columns["policy"] = "its policy"

    def cell(found: dict[str, int] | None) -> str:
        if found is None:
            return ""
        fell = f", {found['fell']} of {found['episodes']} fell" if found["fell"] else ""
        return f"{found['return_mean']} ± {found['return_std']}{fell}"

    rows = [
        [row["data"], code(row["critic"]), str(row["seed"]), *(cell(row.get(key)) for key in columns)]
        for row in measured("rebrac_pilots")["rows"]
    ]
    return markdown(["data", "critic", "seed", *columns.values()], rows)


def policy_share() -> str:
    """The ways to hold draws near the critic's policy, for each Transformer."""
    columns = {
        "policy_penalty=0.015": "the penalty",
        "policy_penalty=0.015, the observation itself": "the penalty, the observation itself",
        "policy_share=0.5": "moved",
        "policy_share=0.5, the observation itself": "moved, the observation itself",
    }
    found = _policy_pilots(
        lambda row: ((row["data"], row["critic"].replace(" updates", "")), columns.get(row["planner"]))
    )
    return _pivot(["data", "updates of the critic"], columns.values(), found, lambda cells: len(cells) > 1)


def actor_penalty() -> str:
    """Returns of policies of 100,000 updates with cosine decay, by the penalty."""

    def place(row: dict[str, Any]) -> tuple[tuple[str, ...], str | None]:
        is_policy = row["planner"].startswith(("the policy of baseline", "the critic's policy"))
        return (row["data"],), row["critic"].rpartition("actor_penalty=")[2] if is_policy else None

    return _pivot(["data"], ["0.05", "0.03", "0.02", "0.01"], _policy_pilots(place), lambda cells: "0.01" in cells)


def weak_penalty() -> str:
    """The planner and the policy with `critic.actor_penalty=0.01`."""
    columns = {
        "policy_share=0.5, the observation itself, seeds from 5000 on": "the planner",
        "the policy of baseline=rebrac, seeds from 5000 on": "ReBRAC",
    }
    found = _policy_pilots(lambda row: ((row["data"],), columns.get(row["planner"])))
    return _pivot(["data"], columns.values(), found, lambda cells: len(cells) == len(columns))


def draws() -> str:
    """How many draws there are, and how far they are moved, by dataset."""
    found: Pivot = {}
    columns: dict[str, None] = {}
    for row in measured("draws_pilots")["rows"]:
        if row["critic"] == "rebrac":
            name = " ".join(code(part) if OVERRIDE.match(part) else part for part in row["planner"].split(" "))
            # the second twelve episodes of a setting behind the first
            earned = f"{row['return_mean']} ± {row['return_std']}"
            before = found.setdefault((name,), {}).get(row["data"])
            found[(name,)][row["data"]] = f"{before}, {earned}" if before else earned
            columns[row["data"]] = None
    return _pivot(["planner"], columns, found, lambda cells: True)


Pivot = dict[tuple[str, ...], dict[str, str]]


def _policy_pilots(place: Callable[[dict[str, Any]], tuple[tuple[str, ...], str | None]]) -> Pivot:
    """Returns in results/policy_share_pilots.json, by the row and the column of a table that each belongs to."""
    found: Pivot = {}
    for row in measured("policy_share_pilots")["rows"]:
        name, column = place(row)
        if column is not None:
            found.setdefault(name, {})[column] = f"{row['return_mean']} ± {row['return_std']}"
    return found


def _pivot(head: list[str], columns: Iterable[str], found: Pivot, shown: Callable[[dict[str, str]], bool]) -> str:
    columns = list(columns)
    rows = [[*name, *(cells.get(each, "") for each in columns)] for name, cells in found.items() if shown(cells)]
    return markdown([*head, *columns], rows)


def executed_means() -> str:
    return markdown(
        ["data", "planner", "return"],
        [[row["data"], row["planner"], spread(row)] for row in measured("execute_pilots")["planners"]],
    )


def temperature_limits() -> str:
    rows = measured("execute_pilots")["limit"]["rows"]
    return markdown(
        ["data", "without the limit", "with it"],
        [[row["data"], spread(row, "without_"), spread(row, "with_")] for row in rows],
    )


def spreads_of_q() -> str:
    rows = measured("execute_pilots")["q_std"]
    return markdown(
        ["data", "median", "90 %"],
        [[row["data"], *(percent(row[name], 2) for name in ("median", "90 %"))] for row in rows],
    )


def horizons() -> str:
    rows = measured("horizons")["rows"]
    return markdown(["`planner.horizon`", "return"], [[str(row["horizon"]), spread(row)] for row in rows])


def horizons_of_iql() -> str:
    rows = measured("horizon_pilots")["horizons"]
    return markdown(
        ["planner", "return", "CPU seconds"], [[row["planner"], spread(row), str(row["cpu_s"])] for row in rows]
    )


def true_dynamics() -> str:
    rows = measured("true_dynamics")["rows"]
    return markdown(
        ["horizon", "the Transformer's dynamics", "the simulator's"],
        [[str(row["horizon"]), spread(row, "model_"), spread(row, "simulator_")] for row in rows],
    )


def lookahead() -> str:
    """How well estimates of values rank draws."""
    columns = [
        *("Q", "simulator 1", "simulator 5", "simulator 10", "simulator 20", "simulator 50"),
        *("Transformer 1", "Transformer 5", "Transformer 10"),
    ]
    rows = []
    for row in measured("lookahead")["rows"]:
        found = [row["estimates"][name] for name in columns]
        rows.append([row["data"], *(f"{each['correlation']:.2f} ± {each['standard_error']:.2f}" for each in found)])
    return markdown(["data", *columns], rows)


def ant_critics() -> str:
    rows = [
        [code(row["critic"]), code(row["planner"]), spread(row), percent(row["fell"]), str(row["cpu_s"])]
        for row in measured("ant_pilots")["rows"]
    ]
    return markdown(["critic", "planner", "return", "fell", "CPU seconds"], rows)


# Mazes


def maze_methods() -> str:
    methods = {"TT+Q": "knots", "IQL": "iql", "TT": "tt", "BC": "bc"}

    def success(maze: str, method: str) -> str:
        path = RESULTS / "maze" / maze / method / "results.json"
        return percent(json.loads(path.read_text())["success_rate"]) if path.exists() else ""

    mazes = ("medium", "large", "four_rooms")
    return markdown(["maze", *methods], [[maze, *(success(maze, name) for name in methods.values())] for maze in mazes])


def maze_medium() -> str:
    return _maze_pilots("maze_pilots", {"critic": "critic", "planner": "planner"})


def maze_large() -> str:
    return _maze_pilots(
        "maze_large_pilots", {"action_repeat": "`env.action_repeat`", "critic": "critic", "planner": "planner"}
    )


def _maze_pilots(name: str, settings: dict[str, str]) -> str:
    rows = [
        [*(code(str(row[key])) for key in settings), percent(row["success_rate"]), str(row["starts"])]
        for row in measured(name)["rows"]
    ]
    return markdown([*settings.values(), "success", "starts"], rows)


# Data


def spaces() -> str:
    def cell(row: dict[str, Any], who: str) -> str:
        if row["unit"] == "success rate":
            return percent(row[who]["mean"])
        return spread(row[who], "", digits=0 if abs(row["planned"]["mean"]) > 10 else 2)

    rows = [
        [
            row["name"],
            *(cell(row, who) for who in ("data", "bc", "planned")),
            str(row["planned"]["episodes"]),
            f"{row['planned']['training_cpu_s']:.0f}",
        ]
        for row in measured("spaces/spaces")["rows"]
    ]
    return markdown(["environment", "the data", "BC", "planned", "episodes", "CPU seconds"], rows)


def fitted_q() -> str:
    def interval(found: list[float]) -> str:
        return "{:.1f} [{:.1f}, {:.1f}]".format(*found)

    rows = [
        [
            f"{row['environment']} medium",
            str(row["seed"]),
            *(interval(row[name]) for name in ("fitted_q", "earned", "recorded")),
            *(f"{row[f'correlation_{name}']:.2f}" for name in ("model", "critic")),
        ]
        for row in measured("fitted_q")["rows"]
    ]
    earned = ["fitted Q", "earned in the simulator", "received in the data"]
    return markdown(["data", "seed", *earned, "correlation, model", "critic"], rows)


def imports() -> str:
    rows = measured("imports")["rows"]
    return markdown(
        ["files", "MiB", "CPU seconds"], [[row["layout"], str(row["mib"]), str(row["cpu_s"])] for row in rows]
    )


def pretrained() -> str:
    """The models that come with the package, by their cards."""
    rows = []
    for name in names.shipped():
        folder = names.PRETRAINED / name
        about = read_card(folder)["about"]
        mib = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
        found = about["evaluation"]
        if "success_rate" in found:  # its rewards are 0
            returns = ["–", "–", "–", percent(found["success_rate"])]
        else:
            low, high = found["return_interval"]
            environment, _, quality = name.partition("-")
            of_bc = LEAGUE / environment / quality / "bc" / "0" / "results.json"
            bc = f"{json.loads(of_bc.read_text())['return_mean']:.0f}" if of_bc.exists() else "–"
            earned = f"{found['return_mean']:.0f} [{low:.0f}, {high:.0f}]"
            returns = [earned, f"{about['data']['return_mean']:.0f}", bc, "–"]
        rows.append([f"`{name}`", f"{mib:.1f}", *returns, f"{found['decision_latency_ms']:.0f}"])
    head = ["model", "MiB", "return", "the data", "BC", "success rate", "ms a decision, 96 at once"]
    return markdown(head, rows)


# Costs


def scale() -> str:
    """`benchmark.suites=[data]`: seconds, and GiB of the process's own memory."""
    stages = {"load": "load", "return-to-go": "return_to_go", "sample": "sample", "bins": "fit", "tokenise": "tokenize"}
    rows = []
    for row in measured("scale")["data"]:
        first, second = row["first"], row["second"]
        found = [first["stages"].get(stage) for stage in stages.values()]
        cells = ["–" if stage is None else f"{stage['seconds']:.2f}" for stage in found]
        cells += [f"{first['seconds']:.1f}", f"{row['first_per_s'] / 1e6:.1f} M", f"{second['seconds']:.2f}"]
        cells += [f"{start['own_peak_bytes'] / 2**30:.2f}" for start in (first, second)]
        rows.append([f"10^{len(str(row['transitions'])) - 1}", *cells])
    starts = ["first start", "transitions a second", "second start", "GiB, first", "GiB, second"]
    return markdown(["transitions", *stages, *starts], rows)


def startup() -> str:
    """`benchmark.suites=[startup]`, beside the checkout that it was compared with."""
    rows = [
        [
            f"`{row['name']}`",
            *(f"{row[name]:.2f}" for name in ("other_seconds", "seconds")),
            row["package"],
            *(f"{row[name]:.2f}" for name in ("import_seconds", "ratio")),
        ]
        for row in measured("startup")["startup"]
    ]
    return markdown(["command", "before, s", "now, s", "`import` of", "s", "now, times that"], rows)


def make_train() -> str:
    """What `make train` earned and cost, now and before: its experiment with 24 new episodes, three seeds."""
    settings = {
        "earlier/adamw": "AdamW, 8,000 steps, Q of IQL",
        "earlier/q_of_iql": "Muon, 3,000 steps, Q of IQL",
        "league": "Muon, 3,000 steps, Q of ReBRAC (today)",
    }
    rows = []
    for folder, setting in settings.items():
        paths = sorted((RESULTS / folder / "hopper" / "medium" / "none").glob("*/results.json"))
        found = [json.loads(path.read_text()) for path in paths]
        minutes = [f"{run['cpu_s']['train'] / 60:.1f}" if "cpu_s" in run else "–" for run in found]
        mean = np.mean([run["return_mean"] for run in found])
        returns = ", ".join(spread(run) for run in found)
        rows.append([setting, returns, f"{mean:.0f}", ", ".join(minutes), found[-1]["git_commit"][:7]])
    return markdown(["setting", "return, seeds 0, 1, 2", "mean", "core-minutes of training", "commit"], rows)


def bfloat16_on_intel() -> str:
    """Plans and steps of a processor whose units for bfloat16 are not faster, in both precisions."""
    found = measured("bfloat16")["intel"]
    plans = [(f"a plan at {row['beam_width']}/{row['horizon']}, s", row, np.median) for row in found["plans"]]
    steps = [(f"a step {row['name']}, s", row, np.min) for row in found["steps"]]
    rows = []
    for name, row, typical in plans + steps:
        single, half = (float(typical(row[kind])) for kind in ("float32", "bfloat16"))
        original = float(typical(row["original"])) if "original" in row else None
        against = [f"{original:.3g}", f"{original / single:.2g} times"] if original else ["", ""]
        rows.append([name, against[0], f"{single:.3g}", f"{half:.3g}", against[1]])
    return markdown(["processor time", "original", "float32", "bfloat16", "float32 against the original"], rows)


def earlier_leagues() -> str:
    """Mean returns of each seed, of methods measured with other settings before."""
    rows = []
    for folder, setting in EARLIER.items():
        found: dict[str, dict[str, dict[str, list[str]]]] = {}
        for path in sorted((RESULTS / "earlier" / folder).glob("*/*/*/*/results.json")):
            environment, quality, method, _ = path.relative_to(RESULTS / "earlier" / folder).parts[:4]
            returns = found.setdefault(method, {}).setdefault(quality, {}).setdefault(environment, [])
            returns.append(f"{json.loads(path.read_text())['return_mean']:.0f}")
        for method, qualities in found.items():
            cells = [
                "; ".join(f"{environment} {', '.join(returns)}" for environment, returns in sorted(those.items()))
                for those in (qualities.get(quality, {}) for quality in QUALITIES)
            ]
            rows.append([f"`{folder}`", setting[method], {"none": "TT+Q"}.get(method, METHODS.get(method, "")), *cells])
    return markdown(["folder", "what was different", "method", *QUALITIES], rows)


def instead_of_moved_draws() -> str:
    """Halfcheetah medium-expert, the least return first."""
    rows = [row for row in measured("penalty_pilots")["rows"] if row["data"] == "halfcheetah medium-expert"]
    cells = []
    for row in sorted(rows, key=lambda row: row["return_mean"]):
        limit = row.get("planner.execute_temperature_limit")
        penalty = row.get("planner.policy_penalty")
        what = row.get("what") or (f"a penalty of {penalty} on the distance" if penalty else "the draws alone")
        what = what.removesuffix(" (without the penalty)")
        cells.append([code(what), percent(limit, 1) if limit else "", spread(row)])
    return markdown(["what", "limit", "return"], cells)


def steps_and_updates() -> str:
    """What steps of the Transformer and updates of the critic are worth."""
    rows = []
    for row in measured("muon_pilots")["rows"]:
        settings = dict(setting.split("=") for setting in row["settings"].split())
        data = row["dataset"].split("/")
        rows.append(
            [
                f"{data[1]} {data[2].removesuffix('-v0')}",
                *(f"{int(settings[key]):,}" for key in ("trainer.max_steps", "critic.steps")),
                *(str(row["first_seed"]), spread(row), f"{row['least_return']:.0f}"),
            ]
        )
    return markdown(["data", "steps", "updates", "seeds from", "return", "the least"], rows)


def muon() -> str:
    """Held-out losses of Muon and of AdamW with twice the steps: of each seed, and their mean."""
    kinds = ("observation", "action", "reward", "value")
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in measured("muon")["rows"]:
        groups.setdefault(f"{row['optimizer']}, {row['steps']:,} steps", []).append(row)
    rows = []
    for name, runs in groups.items():
        means = [f"**{np.mean([run[kind] for run in runs]):.3f}**" for kind in kinds]
        seeds = [", ".join(f"{run[kind]:.3f}" for run in runs) for kind in kinds]
        cells = [f"{mean} ({of_seeds})" for mean, of_seeds in zip(means, seeds, strict=True)]
        rows.append([name, *cells, f"{np.mean([run['cpu_seconds'] for run in runs]) / 60:.1f}"])
    return markdown(["training", *kinds, "core-minutes"], rows)


def growth() -> str:
    """`benchmark.suites=[growth] benchmark.threads=2`."""
    found = {(row["what"], row["by"]): row for row in measured("growth")["growth"]}
    rows = []
    for by in dict.fromkeys(by for _, by in found):
        both = [found.get((what, by)) for what in ("plan", "step")]
        sizes = next(row["sizes"] for row in both if row)
        cells = [f"{by} ({', '.join(str(size) for size in sizes)})"]
        for row in both:
            if row is None:
                cells += ["–"] * 3
                continue
            cells.append(", ".join(f"{1_000 * seconds:.0f}" for seconds in row["seconds"]))
            cells.append(f"{row['exponent']:.2f}")
            cells.append(", ".join(f"{times:.2f}" for times in row["speedups"]))
        rows.append(cells)
    head = ("plan, ms", "exponent", "two threads, times", "step, ms", "exponent", "two threads, times")
    return markdown(["size", *head], rows)


def suite() -> str:
    """Whole runs of the tests."""
    rows = [
        [
            run["name"],
            f"`{run['command']}`",
            f"{run['seconds'] / 60:.1f}",
            ", ".join(f"{run[outcome]:,}" for outcome in ("passed", "skipped", "failed")),
        ]
        for run in measured("suite")["runs"]
    ]
    return markdown(["run of the suite", "command", "minutes", "passed, skipped, failed"], rows)


TABLES: dict[str, Callable[[], str]] = {
    table.__name__: table
    for table in (
        *(league_scores, league_costs),
        *(critics, policy_critics, policy_share, actor_penalty, weak_penalty),
        *(draws, executed_means, temperature_limits, spreads_of_q),
        *(horizons, horizons_of_iql, true_dynamics, lookahead, ant_critics),
        *(maze_methods, maze_medium, maze_large),
        *(spaces, fitted_q, imports, pretrained),
        *(scale, make_train, earlier_leagues, instead_of_moved_draws, steps_and_updates, muon, growth),
        *(bfloat16_on_intel, startup, suite),
    )
}


def main() -> None:
    """Write the tables into their pages."""
    for page in pages():
        text = page.read_text()
        new = filled(text)
        if new != text:
            page.write_text(new)
            print(f"{page.relative_to(ROOT)}: tables written")


if __name__ == "__main__":
    main()
