"""What the README and the pages of docs/ show must work as it stands there."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from hydra.errors import HydraException
from matplotlib.image import imread
from omegaconf import OmegaConf

from helpers.command_line import CONF, ROOT, compose_config
from helpers.toy_world import TOY, toy_data, toy_module
from trajectory import names
from trajectory.benchmarks.memory import MEMORY_LIMIT, draw_memory
from trajectory.data.settings import TokenizerSettings
from trajectory.data.store import load_episodes
from trajectory.model.checkpoint import write_checkpoint
from trajectory.model.exported import read_card
from trajectory.model.settings import GPTSettings
from trajectory.planning.settings import PlannerSettings
from trajectory.reporting.league import make_league
from trajectory.reporting.rows import Row, group_runs
from trajectory.reporting.runs import collect
from trajectory.reporting.settings import ReportSettings
from trajectory.reporting.tables import estimate

README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]
TEXTS = {page: page.read_text() for page in PAGES}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?:python|torchrun [^`\n]*?) +src/(\w+)\.py((?: +[^`\s#]+)*)")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
OVERRIDE = re.compile(r"[+~]{0,2}[a-z][\w/.]*=\S+")
# what an override that stands by itself may belong to, tried in this order
CONTEXTS = (
    ("train",),
    ("train", "critic=rebrac", "planner=critic"),
    ("train", "critic=iql", "planner=critic"),
    ("train", "baseline=iql"),
    ("train", "baseline=rebrac"),
    ("train", "dataset=own", "dataset.path=x", "dataset.id=x/y-v0"),
    ("train", "dataset=mixture"),
    ("analyze", "analysis=prediction", "checkpoint=last.ckpt"),
    ("analyze", "checkpoint=last.ckpt"),
    ("benchmark",),
    ("report", "runs=outputs"),
    ("evaluate", "checkpoint=last.ckpt"),
    ("export", "checkpoint=last.ckpt", "to=folder"),
    ("import_checkpoint", "source=jannerm", "path=folder"),
    ("train", "hydra/sweeper=optuna"),
    ("train", "hydra/launcher=ray"),
)


def _joined(text: str) -> str:
    return text.replace("\\\n", " ")  # commands of several lines


def _blocks(language: str, pages: list[Path] = PAGES) -> list[str]:
    return [block for page in pages for name, block in FENCE.findall(TEXTS[page]) if name == language]


def _spans() -> Iterator[str]:
    """Code within sentences and tables; the changelog names what is not there any more, too."""
    for text in (text for page, text in TEXTS.items() if page.name != "CHANGELOG.md"):
        for span in re.findall(r"`([^`]+)`", FENCE.sub("", text)):
            yield " ".join(span.split())


def _commands() -> list[tuple[str, str]]:
    found = {found for text in TEXTS.values() for found in COMMAND.findall(_joined(text))}
    # the config folder of one command is the user's, and has a test of its own
    return sorted((main, arguments) for main, arguments in found if "--config-dir" not in arguments)


def _overrides() -> list[str]:
    """Overrides that stand without their command, and in no command."""
    tried = {word for _, arguments in _commands() for word in arguments.split()}
    alone = {span for span in _spans() if all(OVERRIDE.fullmatch(word) for word in span.split())}
    return sorted(span for span in alone if not tried.issuperset(span.split()))


def _keys() -> list[str]:
    """Keys that stand without a value."""
    groups = (
        "baseline|callbacks|critic|data|dataset|env|evaluation|hindsight|logger|model|planner|runtime|tokenizer|trainer"
    )
    return sorted({span for span in _spans() if re.fullmatch(rf"({groups})(\.[a-z]\w*)+", span)})


def _first(argument: str) -> str:
    """An override with the first of the values that it sweeps over."""
    if argument.endswith("..."):
        argument = f"{argument[: -len('...')]}x"
    override = OverridesParser.create().parse_override(argument)
    if not override.is_sweep_override():
        return argument
    value: Any = override.value()
    first = value.start if isinstance(value, IntervalSweep) else next(override.sweep_string_iterator())
    return f"{override.get_key_element()}={first}"


@pytest.mark.parametrize(("main", "arguments"), _commands())
def test_every_command_composes(main: str, arguments: str) -> None:
    """Hydra refuses a key or an option that is not there; `-m` sweeps over comma-separated values."""
    assert (CONF / f"{main}.yaml").exists()
    words = [word for word in shlex.split(arguments) if not word.startswith("-")]
    compose_config(main, *map(_first, words[: words.index("job")] if "job" in words else words))


@pytest.mark.parametrize("overrides", _overrides())
def test_every_override_composes(overrides: str) -> None:
    refusals = []
    for main, *context in CONTEXTS:
        try:
            compose_config(main, *context, *map(_first, overrides.split()))
        except HydraException as error:
            refusals.append(str(error))
        else:
            return
    pytest.fail("\n".join(refusals))


def test_every_key_is_there() -> None:
    config = compose_config("train", "baseline=dt", "critic=iql", "dataset=own", "dataset.path=x", "dataset.id=x/y-v0")
    others = [compose_config("train", words) for words in ("critic=none", "critic=rebrac", "dataset=mixture")]
    missing = [key for key in _keys() if not any(_has(one, key) for one in (config, *others))]
    assert not missing


def _has(config: Any, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    section = OmegaConf.select(config, parent)
    return section is not None and name in section


def test_the_example_of_a_config_folder_composes(tmp_path: Path) -> None:
    page = TEXTS[DOCS / "extending.md"]
    (name,) = re.findall(r"--config-dir \w+ experiment=(\w+)", page)
    (example,) = [block for block in _blocks("yaml", [DOCS / "extending.md"]) if "- laptop" in block]
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / f"{name}.yaml").write_text(example)
    config = compose_config("train", f"hydra.searchpath=[file://{tmp_path}]", f"experiment={name}", "env=hopper")
    assert config.planner.horizon == yaml.safe_load(example)["planner"]["horizon"]
    assert config.model.n_embd == compose_config("train", "experiment=laptop").model.n_embd


def test_the_example_of_an_environment_file_has_the_keys_of_all() -> None:
    (example,) = [block for block in _blocks("yaml", [DOCS / "extending.md"]) if "reference:" in block]
    assert (
        yaml.safe_load(example)["env"].keys()
        == yaml.safe_load((CONF / "env" / "hopper.yaml").read_text())["env"].keys()
    )


def test_the_example_of_own_data_gives_a_dataset(store: Path) -> None:
    (block,) = [block for block in _blocks("python") if "create_dataset(" in block]
    exec(compile(block, "docs/data.md", "exec"), {})
    episodes = load_episodes("me/pendulum/random-v0")
    assert len(episodes) == 10
    assert episodes.lengths.tolist() == [200] * 10
    assert not episodes.terminated.any()


def test_the_examples_of_planning_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """One after the other, as a reader would, with an untrained model of a small world."""
    data = toy_data(tmp_path / "store", TokenizerSettings(bins=10), episodes=6, window=2, batch_size=2)
    settings = GPTSettings(n_layer=1, n_head=1, n_embd=8, window=2, bins=10)
    module = toy_module(data, settings, PlannerSettings(beam_width=4, horizon=2, context=1))
    content = {"hyper_parameters": dict(module.hparams), "state_dict": module.state_dict(), "global_step": 0}
    write_checkpoint(content, tmp_path / "last.ckpt")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"env": gymnasium.make(TOY, max_episode_steps=3)}
    blocks = _blocks("python", [DOCS / "planning.md"])
    for block in blocks:
        exec(compile(block, "docs/planning.md", "exec"), names)
    assert names["done"]
    assert names["agent"].settings.beam_width == 32
    assert len(names["plans"]) == len(capsys.readouterr().out.splitlines()) == 3
    assert asdict(names["agent"].settings)["horizon"] == 2


def test_every_python_block_is_run() -> None:
    run = {DOCS / "data.md", DOCS / "planning.md", DOCS / "extending.md"}  # the last by tests/test_extensions.py
    assert {page for page in PAGES if _blocks("python", [page])} == run


def test_every_make_target_and_extra_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    code = [
        *_spans(),
        *(line for text in TEXTS.values() for _, block in FENCE.findall(text) for line in block.split("\n")),
    ]
    targets = {target for line in code for target in re.findall(r"^(?:[A-Z_]+=\S+ )*make ([a-z][\w-]*)", line)}
    assert {target for target in targets if not re.search(rf"^{target}:", makefile, flags=re.MULTILINE)} == set()
    assert {name for line in code for name in re.findall(r"'\.\[(\w+)\]'", line)} <= extras.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_internal_link_and_picture_is_there(page: Path) -> None:
    for target in LINK.findall(FENCE.sub("", TEXTS[page])):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.is_relative_to(ROOT), target
        assert other.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", FENCE.sub("", other.read_text()), flags=re.MULTILINE)
            assert anchor in map(_slug, headings), target


def _slug(heading: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def test_pages_of_the_site_link_to_nothing_outside_of_it() -> None:
    """The site holds docs/ alone."""
    for page in PAGES:
        if page.parent == DOCS:
            assert not [target for target in LINK.findall(TEXTS[page]) if target.startswith("..")]


def test_every_page_is_in_the_navigation() -> None:
    def pages(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        else:
            for inner in entry.values() if isinstance(entry, dict) else entry:
                yield from pages(inner)

    navigation = list(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(navigation) == sorted(page.name for page in DOCS.glob("*.md"))


def test_the_readme_is_a_landing_page() -> None:
    assert len(TEXTS[README].splitlines()) <= 200
    moving = [target for target in LINK.findall(TEXTS[README]) if target.endswith((".gif", ".webp"))]
    assert moving
    assert all((ROOT / target).stat().st_size < 500_000 for target in moving)


def test_the_map_of_the_house_names_every_package() -> None:
    (house,) = [block for _, block in FENCE.findall(TEXTS[README]) if block.startswith("src/trajectory/\n")]
    named = re.findall(r"^  ([\w.]+)/? ", house, flags=re.MULTILINE)
    package = ROOT / "src" / "trajectory"
    there = [path.name for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    assert sorted(named) == sorted(name for name in there if name != "__init__.py")


def test_the_version_is_the_same_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert f"## {version} " in TEXTS[ROOT / "CHANGELOG.md"]


def test_the_table_of_starts_is_that_of_the_measurement() -> None:
    measured = json.loads((ROOT / "results" / "startup.json").read_text())
    assert startup_table(measured) in TEXTS[DOCS / "startup.md"]


def test_the_table_of_the_suites_runs_is_that_of_the_measurement() -> None:
    measured = json.loads((ROOT / "results" / "suite.json").read_text())
    assert suite_table(measured) in TEXTS[DOCS / "testing.md"]


def suite_table(measured: dict[str, Any]) -> str:
    """Markdown of whole runs of the suite."""
    lines = ["| run of the suite | command | minutes | passed, skipped, failed |", "| --- | --- | --- | --- |"]
    for run in measured["runs"]:
        counts = ", ".join(f"{run[outcome]:,}" for outcome in ("passed", "skipped", "failed"))
        lines.append(f"| {run['name']} | `{run['command']}` | {run['seconds'] / 60:.1f} | {counts} |")
    return "\n".join(lines)


def test_the_table_and_the_figure_of_large_data_are_those_of_the_measurement() -> None:
    measured = json.loads((ROOT / "results" / "scale.json").read_text())
    assert scale_table(measured) in TEXTS[DOCS / "performance.md"]
    drawn, expected = (
        imread(picture, format="png") for picture in (DOCS / "scale.png", BytesIO(draw_memory(measured["data"])))
    )
    assert drawn.shape == expected.shape
    assert np.abs(drawn - expected).mean() < 0.01, "but for the version of a font"


def scale_table(measured: dict[str, Any]) -> str:
    """Markdown of `benchmark.suites=[data]`: seconds, and GiB of the process's own memory."""
    stages = {"load": "load", "return-to-go": "return_to_go", "sample": "sample", "bins": "fit", "tokenise": "tokenize"}
    head = ["transitions", *stages, "first start", "transitions a second", "second start", "GiB, first", "GiB, second"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for row in measured["data"]:
        first, second = row["first"], row["second"]
        found = [first["stages"].get(stage) for stage in stages.values()]
        cells = ["–" if stage is None else f"{stage['seconds']:.2f}" for stage in found]
        cells += [f"{first['seconds']:.1f}", f"{row['first_per_s'] / 1e6:.1f} M", f"{second['seconds']:.2f}"]
        cells += [f"{start['own_peak_bytes'] / 2**30:.2f}" for start in (first, second)]
        lines.append(f"| 10^{len(str(row['transitions'])) - 1} | {' | '.join(cells)} |")
    return "\n".join(lines)


def test_large_data_take_bounded_memory_and_time() -> None:
    """What the documentation says of them: 2 GiB, and a million transitions a second and core."""
    rows = json.loads((ROOT / "results" / "scale.json").read_text())["data"]
    assert rows[-1]["transitions"] == 10**8
    for row in rows[-2:]:
        assert max(row[name]["own_peak_bytes"] for name in ("first", "second")) < MEMORY_LIMIT
        assert row["first_per_s"] > 1e6


def test_the_table_of_the_critics_tried_is_that_of_the_measurement() -> None:
    measured = json.loads((ROOT / "results" / "critic_pilots.json").read_text())
    assert critics_table(measured) in TEXTS[DOCS / "values.md"]


def critics_table(measured: dict[str, Any]) -> str:
    """Markdown of the critics that were tried, and of what was executed with them."""
    columns = ["best of 32", "mean of 16 of 32, T=1", "mean of 8 of 16", "mean of 16 of 32", "mean of 16, T=1"]
    head = ["dataset", "critic", "units", "updates", "learning rate", "warm start", *columns]
    lines = [" | ".join(("", *head, "")).strip(), "|" + " --- |" * len(head)]
    for row in measured["rows"]:
        setting = [row["dataset"], row["critic"], "{} x {}".format(*row["hidden"]), f"{row['updates']:,}"]
        setting += [row["learning_rate"], f"{row['warm_start']:g}"]
        found = (row["returns"].get(column) for column in columns)
        cells = ["" if pair is None else f"{pair[0]:.0f} ± {pair[1]:.0f}" for pair in found]
        lines.append(" | ".join(("", *setting, *cells, "")).strip())
    return "\n".join(lines)


def test_the_tables_of_horizons_are_those_of_the_measurements() -> None:
    lines = ["| `planner.horizon` | return |", "| --- | --- |"]
    for row in json.loads((ROOT / "results" / "horizons.json").read_text())["rows"]:
        lines.append(f"| {row['horizon']} | {row['return_mean']:.0f} ± {row['return_std']:.0f} |")
    assert "\n".join(lines) + "\n" in TEXTS[DOCS / "values.md"]
    measured = json.loads((ROOT / "results" / "horizon_pilots.json").read_text())
    lines = ["| planner | return | CPU seconds |", "| --- | --- | --- |"]
    for row in measured["horizons"]:
        lines.append(f"| {row['planner']} | {row['return_mean']:.0f} ± {row['return_std']:.0f} | {row['cpu_s']} |")
    assert "\n".join(lines) in TEXTS[DOCS / "values.md"]


@pytest.mark.parametrize(
    ("name", "settings"),
    [("maze_pilots", ("critic", "planner")), ("maze_large_pilots", ("action_repeat", "critic", "planner"))],
)
def test_the_table_of_mazes_is_that_of_the_measurement(name: str, settings: tuple[str, ...]) -> None:
    heads = [*(f"`env.{name}`" if name == "action_repeat" else name for name in settings), "success", "starts"]
    lines = [" | ".join(("", *heads, "")).strip(), "|" + " --- |" * len(heads)]
    for row in json.loads((ROOT / "results" / f"{name}.json").read_text())["rows"]:
        cells = [str(row[key]) for key in settings]
        cells = [f"`{cell}`" if OVERRIDE.match(cell) and "," not in cell else cell for cell in cells]
        lines.append(" | ".join(("", *cells, f"{100 * row['success_rate']:.0f} %", str(row["starts"]), "")).strip())
    assert "\n".join(lines) in TEXTS[DOCS / "values.md"]


def test_the_table_of_methods_in_mazes_is_that_of_the_measurement() -> None:
    methods = {"TT+Q": "knots", "IQL": "iql", "TT": "tt", "BC": "bc"}
    lines = [f"| maze | {' | '.join(methods)} |", "| --- " * (len(methods) + 1) + "|"]
    for maze in ("medium", "large", "four_rooms"):
        shares = []
        for name in methods.values():
            path = ROOT / "results" / "maze" / maze / name / "results.json"
            run = json.loads(path.read_text()) if path.exists() else None
            assert run is None or (len(run["episodes"]) == 100 and run["episodes"][0]["seed"] == 5000)
            shares.append(f"{100 * run['success_rate']:.0f} %" if run else "")
        lines.append(f"| {maze} | {' | '.join(shares)} |")
    assert "\n".join(lines) in TEXTS[DOCS / "values.md"]


def test_the_table_of_ant_is_that_of_the_measurement() -> None:
    lines = ["| critic | planner | return | fell | CPU seconds |", "| --- | --- | --- | --- | --- |"]
    for row in json.loads((ROOT / "results" / "ant_pilots.json").read_text())["rows"]:
        planner = f"`{row['planner']}`" if OVERRIDE.match(row["planner"]) else row["planner"]
        earned = f"{row['return_mean']:.0f} ± {row['return_std']:.0f}"
        lines.append(f"| `{row['critic']}` | {planner} | {earned} | {100 * row['fell']:.0f} % | {row['cpu_s']} |")
    assert "\n".join(lines) in TEXTS[DOCS / "values.md"]


def policy_critics_table() -> str:
    columns = {name: f"mean of {name}" for name in ("16 of 32", "16 of 64", "8 of 64", "8 of 128")}
    columns["policy"] = "its policy"

    def cell(found: dict[str, int] | None) -> str:
        if found is None:
            return ""
        fell = f", {found['fell']} of {found['episodes']} fell" if found["fell"] else ""
        return f"{found['return_mean']} ± {found['return_std']}{fell}"

    lines = [f"| data | critic | seed | {' | '.join(columns.values())} |", "| --- " * 8 + "|"]
    for row in json.loads((ROOT / "results" / "rebrac_pilots.json").read_text())["rows"]:
        critic = f"`{row['critic']}`" if OVERRIDE.match(row["critic"]) and "," not in row["critic"] else row["critic"]
        cells = [row["data"], critic, str(row["seed"]), *(cell(row.get(key)) for key in columns)]
        lines.append(" | ".join(("", *cells, "")).strip())
    return "\n".join(lines)


def test_the_table_of_critics_of_a_policy_is_that_of_the_measurement() -> None:
    assert policy_critics_table() in TEXTS[DOCS / "values.md"]


def test_the_table_of_spaces_is_that_of_the_measurement() -> None:
    measured = json.loads((ROOT / "results" / "spaces" / "spaces.json").read_text())

    def cell(row: dict[str, Any], who: str) -> str:
        if row["unit"] == "success rate":
            return f"{100 * row[who]['mean']:.0f} %"
        digits = 0 if abs(row["planned"]["mean"]) > 10 else 2
        return f"{row[who]['mean']:.{digits}f} ± {row[who]['std']:.{digits}f}"

    lines = ["| environment | the data | BC | planned | episodes | CPU seconds |", "| --- " * 6 + "|"]
    for row in measured["rows"]:
        cells = [cell(row, who) for who in ("data", "bc", "planned")]
        seconds = f"{row['planned']['training_cpu_s']:.0f}"
        lines.append(f"| {row['name']} | {' | '.join(cells)} | {row['planned']['episodes']} | {seconds} |")
        for who in ("planned", "bc"):
            compose_config("train", *shlex.split(row[f"{who}_command"])[2:])
    assert "\n".join(lines) in TEXTS[DOCS / "data.md"]


def test_the_table_of_fitted_q_is_that_of_the_measurement() -> None:
    def interval(found: list[float]) -> str:
        return "{:.1f} [{:.1f}, {:.1f}]".format(*found)

    names = ("fitted_q", "earned", "recorded")
    for row in json.loads((ROOT / "results" / "fitted_q.json").read_text())["rows"]:
        cells = [f"{row['environment']} medium", str(row["seed"]), *(interval(row[name]) for name in names)]
        cells += [f"{row[f'correlation_{name}']:.2f}" for name in ("model", "critic")]
        assert f"| {' | '.join(cells)} |" in TEXTS[DOCS / "no-simulator.md"]


def test_the_table_of_imports_is_that_of_the_measurement() -> None:
    lines = ["| files | MiB | CPU seconds |", "| --- | --- | --- |"]
    for row in json.loads((ROOT / "results" / "imports.json").read_text())["rows"]:
        lines.append(f"| {row['layout']} | {row['mib']} | {row['cpu_s']} |")
    assert "\n".join(lines) in TEXTS[DOCS / "your-data.md"]


def test_the_table_of_true_dynamics_is_that_of_the_measurement() -> None:
    lines = ["| horizon | the Transformer's dynamics | the simulator's |", "| --- | --- | --- |"]
    for row in json.loads((ROOT / "results" / "true_dynamics.json").read_text())["rows"]:
        cells = [f"{row[f'{name}_mean']:.0f} ± {row[f'{name}_std']:.0f}" for name in ("model", "simulator")]
        lines.append(f"| {row['horizon']} | {cells[0]} | {cells[1]} |")
    assert "\n".join(lines) in TEXTS[DOCS / "values.md"]


AHEAD = (
    *("Q", "simulator 1", "simulator 5", "simulator 10", "simulator 20", "simulator 50"),
    *("Transformer 1", "Transformer 5", "Transformer 10"),
)


def lookahead_table() -> str:
    """How well estimates of values rank draws."""
    lines = [f"| data | {' | '.join(AHEAD)} |", "| --- " * (len(AHEAD) + 1) + "|"]
    for row in json.loads((ROOT / "results" / "lookahead.json").read_text())["rows"]:
        found = [row["estimates"][name] for name in AHEAD]
        cells = [f"{values['correlation']:.2f} ± {values['standard_error']:.2f}" for values in found]
        lines.append(f"| {row['data']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def test_the_table_of_looking_ahead_is_that_of_the_measurement() -> None:
    assert lookahead_table() in TEXTS[DOCS / "values.md"]


def test_the_tables_of_the_executed_mean_are_those_of_the_measurement() -> None:
    measured = json.loads((ROOT / "results" / "execute_pilots.json").read_text())
    lines = ["| data | planner | return |", "| --- | --- | --- |"]
    for row in measured["planners"]:
        lines.append(f"| {row['data']} | {row['planner']} | {row['return_mean']} ± {row['return_std']} |")
    assert "\n".join(lines) + "\n" in TEXTS[DOCS / "values.md"]
    lines = ["| data | without the limit | with it |", "| --- | --- | --- |"]
    for row in measured["limit"]["rows"]:
        both = (f"{row[f'{name}_mean']} ± {row[f'{name}_std']}" for name in ("without", "with"))
        lines.append(f"| {row['data']} | {' | '.join(both)} |")
    assert "\n".join(lines) + "\n" in TEXTS[DOCS / "values.md"]
    lines = ["| data | median | 90 % |", "| --- | --- | --- |"]
    for row in measured["q_std"]:
        lines.append(f"| {row['data']} | {row['median']:.2%} | {row['90 %']:.2%} |".replace("%", " %"))
    assert "\n".join(lines) + "\n" in TEXTS[DOCS / "values.md"]


def pretrained_table() -> str:
    """Of the models that come with the package, by their cards."""
    head = "| model | MiB | return | the data | BC | success rate | ms a decision, 96 at once |"
    lines = [head, "| --- " * 7 + "|"]
    for name in names.shipped():
        about, folder = read_card(names.PRETRAINED / name)["about"], names.PRETRAINED / name
        mib = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
        found, data = about["evaluation"], about["data"]["return_mean"]
        low, high = found["return_interval"]
        environment, _, quality = name.partition("-")
        of_bc = LEAGUE / environment / quality / "bc" / "0" / "results.json"
        bc = f"{json.loads(of_bc.read_text())['return_mean']:.0f}" if of_bc.exists() else "–"
        if "success_rate" in found:  # its rewards are 0
            returns = f"– | – | – | {found['success_rate']:.0%}".replace("%", " %")
        else:
            returns = f"{found['return_mean']:.0f} [{low:.0f}, {high:.0f}] | {data:.0f} | {bc} | –"
        lines.append(f"| `{name}` | {mib:.1f} | {returns} | {found['decision_latency_ms']:.0f} |")
    return "\n".join(lines)


def test_the_table_of_models_is_that_of_their_cards() -> None:
    assert pretrained_table() in TEXTS[DOCS / "sharing.md"]


LEAGUE = ROOT / "results" / "league"
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?<!,)")
METHODS = {"Trajectory Transformer + Q": "TT+Q", "Trajectory Transformer": "TT", "rebrac": "ReBRAC"}  # in tables


ENVIRONMENTS = ("Hopper-v5", "Walker2d-v5", "HalfCheetah-v5", "Ant-v5")
QUALITIES = ("medium", "medium-replay", "medium-expert")


@cache
def league_tables() -> dict[Path, str]:
    """By page, the table of results/league that it has: scores in the README, returns and costs in the results.

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
    leagues = {quality: make_league(found, ReportSettings()) for quality, found in by_quality.items()}
    everything = make_league([group for found in by_quality.values() for group in found], ReportSettings())
    of_medium = leagues["medium"]
    assert everything is not None
    assert of_medium is not None
    methods = sorted(of_medium.means, key=lambda label: -of_medium.means[label].value)
    titles = {label: METHODS.get(label, label.upper()) for label in everything.methods}
    head = f"| data | the data | {' | '.join(titles[label] for label in methods)} |"
    scores, costs = [head, "| --- " * (len(methods) + 2) + "|"], []
    for name, rows, first in zip(everything.datasets, everything.rows, everything.first, strict=True):
        environment, quality = name.split("/")
        data = next(group.of_data for group in groups if group.rows[0] in rows.values())
        cells = [score_cell(rows.get(label), label in first) for label in methods]
        scores.append(f"| {environment} {quality} | {data:.1f} | {' | '.join(cells)} |")
        for label in sorted(rows, key=lambda label: -rows[label].summary.mean):
            row = rows[label]
            values = np.concatenate([list(run.returns.values()) for run in row.runs])
            trainings = f"{row.returns:.0f} ± {values.std():.0f} | {row.episodes}"
            minutes = "–" if row.training_cpu_s is None else f"{row.training_cpu_s / 60:.1f}"
            method = f"{environment} {quality} | {titles[label]}"
            costs.append(f"| {method} | {trainings} | {row.summary.mean:.1f} | {minutes} |")
        league = leagues[quality]
        if league is not None and len(league.datasets) == len(ENVIRONMENTS) and name == league.datasets[-1]:
            of_all = [league.means.get(label) for label in methods]
            cells = [estimate(mean.value, mean.interval) if mean else "" for mean in of_all]
            scores.append(f"| mean of {quality} | | {' | '.join(cells)} |")
    head = "| data | method | return (mean ± std) | seeds × episodes | normalised score | core-minutes |\n"
    return {
        README: "\n".join(scores) + "\n",
        DOCS / "results.md": head + "| --- | --- | --- | --- | --- | --- |\n" + "\n".join(costs) + "\n",
    }


def score_cell(row: Row | None, is_first: bool) -> str:
    """Empty where nothing was measured."""
    if row is None:
        return ""
    score = estimate(row.summary.mean, row.summary.mean_interval)
    return f"**{score}**" if is_first else score


@pytest.mark.parametrize("page", [README, DOCS / "results.md"], ids=lambda page: page.name)
def test_the_table_of_the_league_is_that_of_the_measurement(page: Path) -> None:
    assert league_tables()[page] in TEXTS[page]


def results_section() -> str:
    (section,) = re.findall(r"^## Results\n(.*?)^## ", TEXTS[README], flags=re.MULTILINE | re.DOTALL)
    return section


def known_numbers() -> set[str]:
    """What the results of the league can say: the table, returns of trainings and data, episodes and their seeds."""
    known = {"95", *NUMBER.findall(league_tables()[README])}  # percent of the intervals
    for path in LEAGUE.rglob("results.json"):
        results = json.loads(path.read_text())
        seeds = [episode["seed"] for episode in results["episodes"]]
        known |= {f"{results['return_mean']:.0f}", f"{results['dataset']['return_mean']:.0f}"}
        known |= {str(len(seeds)), str(min(seeds))}
    return known


def unfounded(text: str, known: set[str]) -> list[str]:
    """Numbers that no result gives; those of links, commands, commits and names of methods are none."""
    for other in (r"\]\([^)]*\)", r"`[^`]*`", r"commit [0-9a-f]{7}\b", r"10 % BC"):
        text = re.sub(other, "", text)
    return [number for number in NUMBER.findall(text) if number not in known]


def test_every_number_of_the_results_in_the_readme_comes_from_a_result() -> None:
    section, known = results_section(), known_numbers()
    assert len(NUMBER.findall(section)) > 50
    assert unfounded(section, known) == []
    assert unfounded(f"{section}\nIt earns 99.9 % of it.", known) == ["99.9"]


@pytest.mark.parametrize("path", sorted(LEAGUE.rglob("results.json")), ids=lambda path: str(path.parent))
def test_every_result_of_the_league_says_by_which_commit_and_config_it_was_made(path: Path) -> None:
    results = json.loads(path.read_text())
    assert re.fullmatch("[0-9a-f]{40}", results["git_commit"])
    assert results["versions"]["torch"]
    config = yaml.safe_load((path.parent / "config.yaml").read_text())
    assert config["seed"] == results["seed"]
    assert config["evaluation"]["episodes"] == len(results["episodes"])


def startup_table(measured: dict[str, Any]) -> str:
    """Markdown of `benchmark.suites=[startup]`, beside the checkout that it was compared with."""
    head = "| command | before, s | now, s | `import` of | s | now, times that |"
    lines = [head, "| --- | --- | --- | --- | --- | --- |"]
    for row in measured["startup"]:
        numbers = (row["other_seconds"], row["seconds"])
        before, now = (f"{value:.2f}" for value in numbers)
        alone = f"{row['package']} | {row['import_seconds']:.2f} | {row['ratio']:.2f}"
        lines.append(f"| `{row['name']}` | {before} | {now} | {alone} |")
    return "\n".join(lines)


def policy_share_table() -> str:
    """The ways to hold draws near the critic's policy, for each Transformer."""
    columns = {
        "policy_penalty=0.015": "the penalty",
        "policy_penalty=0.015, the observation itself": "the penalty, the observation itself",
        "policy_share=0.5": "moved",
        "policy_share=0.5, the observation itself": "moved, the observation itself",
    }
    found = policy_share_cells(lambda row: (f"{row['data']} | {row['critic'].replace(' updates', '')}", row["planner"]))
    found = {name: cells for name, cells in found.items() if len(cells.keys() & columns) > 1}
    return pilots_table("data | updates of the critic", found, columns)


def actor_penalty_table() -> str:
    """Returns of policies of 100,000 updates with cosine decay."""
    columns = {each: each for each in ("0.05", "0.03", "0.02", "0.01")}

    def place(row: dict[str, Any]) -> tuple[str, str]:
        is_policy = row["planner"].startswith(("the policy of baseline", "the critic's policy"))
        return row["data"], row["critic"].rpartition("actor_penalty=")[2] if is_policy else ""

    found = policy_share_cells(place)
    return pilots_table("data", {name: cells for name, cells in found.items() if "0.01" in cells}, columns)


def weak_penalty_table() -> str:
    """The planner and the policy with `critic.actor_penalty=0.01`."""
    columns = {
        "policy_share=0.5, the observation itself, seeds from 5000 on": "the planner",
        "the policy of baseline=rebrac, seeds from 5000 on": "ReBRAC",
    }
    found = policy_share_cells(lambda row: (row["data"], row["planner"]))
    return pilots_table(
        "data", {name: cells for name, cells in found.items() if columns.keys() <= cells.keys()}, columns
    )


def policy_share_cells(place: Callable[[dict[str, Any]], tuple[str, str]]) -> dict[str, dict[str, str]]:
    """Returns in `results/policy_share_pilots.json`, by the row and the column of a table that each belongs to."""
    found: dict[str, dict[str, str]] = {}
    for row in json.loads((ROOT / "results" / "policy_share_pilots.json").read_text())["rows"]:
        name, column = place(row)
        found.setdefault(name, {})[column] = f"{row['return_mean']} ± {row['return_std']}"
    return found


def pilots_table(head: str, found: dict[str, dict[str, str]], columns: dict[str, str]) -> str:
    """One line for each row, with those of its cells that have a column."""
    titles = f"{head} | {' | '.join(columns.values())}"
    lines = [f"| {titles} |", "| --- " * (titles.count(" | ") + 1) + "|"]
    lines += [f"| {name} | {' | '.join(cells.get(each, '') for each in columns)} |" for name, cells in found.items()]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("table", [policy_share_table, actor_penalty_table, weak_penalty_table])
def test_the_tables_of_moved_draws_and_penalties_are_those_of_the_measurement(table: Callable[[], str]) -> None:
    assert table() in TEXTS[DOCS / "values.md"]
