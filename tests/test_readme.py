"""What the README and the pages of docs/ show must work as it stands there."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import asdict
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
from result_tables import DOCS, LEAGUE, OVERRIDE, PLACE, RESULTS, TABLES, filled, league_scores, measured, pages
from trajectory.benchmarks.memory import MEMORY_LIMIT, draw_memory
from trajectory.data.settings import TokenizerSettings
from trajectory.data.store import load_episodes
from trajectory.model.checkpoint import write_checkpoint
from trajectory.model.settings import GPTSettings
from trajectory.planning.settings import PlannerSettings

README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]
TEXTS = {page: page.read_text() for page in PAGES}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?:python|torchrun [^`\n]*?) +src/(\w+)\.py((?: +[^`\s#]+)*)")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
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


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_every_table_is_that_of_its_measurement(page: Path) -> None:
    """`make tables` would change nothing."""
    assert filled(TEXTS[page]) == TEXTS[page]


def test_every_table_has_one_place() -> None:
    places = [name for page in pages() for _, name, _ in PLACE.findall(TEXTS[page])]
    assert sorted(places) == sorted(TABLES)


def test_a_doctored_table_is_written_anew() -> None:
    page = TEXTS[DOCS / "results.md"]
    doctored = re.sub(r"\| IQL \| \d", "| IQL | 9", page, count=1)
    assert doctored != page
    assert filled(doctored) == page


def test_the_figure_of_large_data_is_that_of_the_measurement() -> None:
    drawn, expected = (
        imread(picture, format="png")
        for picture in (DOCS / "scale.png", BytesIO(draw_memory(measured("scale")["data"])))
    )
    assert drawn.shape == expected.shape
    assert np.abs(drawn - expected).mean() < 0.01, "but for the version of a font"


def test_large_data_take_bounded_memory_and_time() -> None:
    """What the documentation says of them: 2 GiB, and a million transitions a second and core."""
    rows = measured("scale")["data"]
    assert rows[-1]["transitions"] == 10**8
    for row in rows[-2:]:
        assert max(row[name]["own_peak_bytes"] for name in ("first", "second")) < MEMORY_LIMIT
        assert row["first_per_s"] > 1e6


@pytest.mark.parametrize("path", sorted((RESULTS / "maze").rglob("results.json")), ids=lambda path: str(path.parent))
def test_every_maze_was_tried_from_a_hundred_starts_on_which_nothing_was_chosen(path: Path) -> None:
    episodes = json.loads(path.read_text())["episodes"]
    assert len(episodes) == 100
    assert episodes[0]["seed"] == 5000


@pytest.mark.parametrize("row", measured("spaces/spaces")["rows"], ids=lambda row: row["name"])
def test_every_command_of_the_table_of_spaces_composes(row: dict[str, Any]) -> None:
    for who in ("planned", "bc"):
        compose_config("train", *shlex.split(row[f"{who}_command"])[2:])


NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?<!,)")


def results_section() -> str:
    (section,) = re.findall(r"^## Results\n(.*?)^## ", TEXTS[README], flags=re.MULTILINE | re.DOTALL)
    return section


def known_numbers() -> set[str]:
    """What the results of the league can say: the table, returns of trainings and data, episodes and their seeds."""
    known = {"95", *NUMBER.findall(league_scores())}  # percent of the intervals
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
