"""Models of the public implementations become checkpoints that compute what their own code computed with them."""

from __future__ import annotations

import json
import math
import shutil
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from helpers.checkpoints import same
from helpers.command_line import Refusal, run_main_here
from trajectory import TrajectoryAgent
from trajectory.errors import UserError
from trajectory.files import write_folder
from trajectory.foreign import howuhh, janner
from trajectory.foreign.imported import Imported
from trajectory.foreign.pickles import Global, read_pickle, write_record
from trajectory.foreign.thresholds import kbins_discretizer, quantile_discretizer
from trajectory.model.checkpoint import load_checkpoint, read_checkpoint, read_tensors, write_checkpoint
from trajectory.model.gpt import GPT
from trajectory.model.native_decoder import NativeGPT
from trajectory.model.settings import GPTSettings
from trajectory.planning.beam_search import beam_search, uniforms_shape
from trajectory.planning.settings import SamplingSettings
from trajectory.transition import TransitionLayout

MODELS = Path(__file__).parent / "models"
LAYOUT = TransitionLayout(11, 3)
READERS = {"jannerm": janner.read, "howuhh": howuhh.read}
PUBLISHED: dict[str, Any] = {"n_layer": 4, "n_head": 4, "n_embd": 128, "window": 10, "bins": 100}
GREEDY = SamplingSettings(top_k=1)


def toy(name: str) -> tuple[Imported, dict[str, np.ndarray]]:
    """A toy as it is read, and what its own code computed with it."""
    return READERS[name](MODELS / name, None), dict(np.load(MODELS / name / "toy.npz"))


def random_state(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The weights of `published.npz`."""
    generator = np.random.RandomState(7)
    return {name: torch.from_numpy(0.3 * generator.standard_normal(shapes[name])) for name in sorted(shapes)}


def published_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Of the parameters at the published size, by that project's names: the toy's with other numbers."""
    state = read_tensors(next((MODELS / name).glob("*.pt" if name == "jannerm" else "model_last.pt")))
    toy_bins, stop = {"jannerm": (50, 1), "howuhh": (20, 0)}[name]
    sizes = {32: 128, 96: 384, 128: 512, toy_bins * 16 + stop: 1600 + stop, toy_bins + stop: 100 + stop}
    sizes |= {95: 159, 80: 160}
    layer = {key for key in state if key.startswith("blocks.0.") and "mask" not in key}
    shapes = {key: state[key].shape for key in state if not key.startswith("blocks.")}
    shapes |= {key.replace(".0.", f".{block}.", 1): state[key].shape for key in layer for block in range(4)}
    return {key: tuple(sizes.get(size, size) for size in shape) for key, shape in shapes.items()}


@pytest.mark.parametrize("name", READERS)
def test_logits_of_random_weights_at_the_published_size_are_theirs(name: str) -> None:
    expected = np.load(MODELS / name / "published.npz")
    state = random_state(published_shapes(name))
    weights = {"jannerm": janner, "howuhh": howuhh}[name].our_weights(state, 4, Path("state"))
    settings = GPTSettings(positions="absolute", value_residual=True, predicts_end=name == "jannerm", **PUBLISHED)
    gpt = GPT(settings, LAYOUT).double().eval()
    gpt.load_state_dict(weights)
    with torch.no_grad():
        logits = gpt(torch.from_numpy(expected["tokens"]).long())[0].numpy()
    theirs = expected["logits"].reshape(len(logits), -1)
    assert theirs.std() > 0.5
    np.testing.assert_allclose(logits[:, : theirs.shape[1]], theirs, rtol=0, atol=1e-12)
    assert name == "jannerm" or (logits[:, -1] == -np.inf).all()


@pytest.mark.parametrize("name", READERS)
def test_logits_of_a_trained_model_are_theirs_at_every_position(name: str) -> None:
    """The original's windows reach beyond the end of an episode: they have stop tokens."""
    found, expected = toy(name)
    windows = torch.from_numpy(expected["windows"]).long()
    assert name == "howuhh" or (windows == 50).any()
    with torch.no_grad():
        logits = found.gpt(torch.float64)(windows).numpy()
    np.testing.assert_allclose(logits[..., : expected["logits"].shape[-1]], expected["logits"], rtol=0, atol=1e-12)


def test_tokens_and_values_are_those_of_the_original_with_its_repeated_edges() -> None:
    found, expected = toy("jannerm")
    edges = found.edges.numpy()
    assert (np.diff(edges) == 0).any()
    assert np.isin(edges[:, 1:-1].astype(np.float32), expected["numbers"]).any()  # numbers on an edge are among them
    tokens = found.discretizer.encode(torch.from_numpy(expected["numbers"]))
    np.testing.assert_array_equal(tokens.numpy(), expected["tokens"])
    values = found.discretizer.decode(torch.arange(50)[:, None].expand(-1, 16))
    np.testing.assert_array_equal(values.numpy(), expected["decoded"].astype(np.float32))


def test_expected_values_are_those_of_the_original() -> None:
    """Of probabilities without the stop token, which is left out of ours and counted as nothing in the original's."""
    found, expected = toy("jannerm")
    discretizer = found.discretizer.double()
    probabilities = torch.from_numpy(expected["probabilities"])  # (8, 2, N + 1)
    for column, (dimension, name) in enumerate([(14, "rewards_mean"), (15, "values_mean")]):
        share = 1 - probabilities[:, column, -1]
        mean = discretizer.expectation(probabilities[:, column], dimension) * share
        np.testing.assert_allclose(mean.numpy(), expected[name], rtol=1e-6)


def test_tokens_and_values_are_those_of_the_fork() -> None:
    """It moves numbers up before it looks them up; the numbers here lie around edges at that distance."""
    found, expected = toy("howuhh")
    numbers = torch.from_numpy(expected["numbers"])
    np.testing.assert_array_equal(found.discretizer.encode(numbers).numpy(), expected["tokens"])
    assert not torch.equal(quantile_discretizer(found.edges.numpy()).encode(numbers), found.discretizer.encode(numbers))
    uniform = kbins_discretizer(expected["uniform_edges"])
    np.testing.assert_array_equal(uniform.encode(numbers).numpy(), expected["uniform_tokens"])
    values = found.discretizer.decode(torch.arange(20)[:, None].expand(-1, 16))
    np.testing.assert_array_equal(values.numpy(), expected["decoded"].astype(np.float32))


def test_a_pickled_discretizer_of_the_original_has_its_thresholds(tmp_path: Path) -> None:
    shutil.copy(MODELS / "jannerm" / "small_discretizer.pkl", tmp_path / "discretizer.pkl")
    thresholds, expected = janner.read_thresholds(tmp_path), np.load(MODELS / "jannerm" / "small.npz")
    np.testing.assert_array_equal(thresholds, expected["thresholds"])
    tokens = quantile_discretizer(thresholds.T).encode(torch.from_numpy(expected["numbers"]))
    np.testing.assert_array_equal(tokens.numpy(), expected["tokens"])


@pytest.mark.parametrize("start", range(5))
def test_a_greedy_plan_is_the_originals_token_by_token(start: int) -> None:
    """From no past transition to more than its context; it crops after every transition."""
    found, expected = toy("jannerm")
    planner = replace(found.planner, horizon=8, beam_width=4, action=GREEDY)
    prefix = torch.from_numpy(expected[f"prefix_{start}"]).long()[None]
    past = min(prefix.shape[1] // 16, planner.context)
    uniforms = torch.rand(1, *uniforms_shape(planner, 16))
    context = prefix[:, prefix.shape[1] - past * 16 - 11 :]
    gpt = found.gpt(torch.float64)
    for decoder in (gpt, NativeGPT(gpt)):
        plan = beam_search(decoder, found.discretizer, context, uniforms, planner, found.discount)
        np.testing.assert_array_equal(plan.tokens[0, 0].numpy(), expected[f"plan_{start}"])
    whole_window = replace(planner, crop_every_transition=False)
    plan = beam_search(gpt, found.discretizer, context, uniforms, whole_window, found.discount)
    assert not np.array_equal(plan.tokens[0, 0].numpy(), expected[f"plan_{start}"])


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The checkpoint of each toy, by the command."""
    folder = tmp_path_factory.mktemp("imported")
    found = {}
    for name in READERS:
        overrides = (f"source={name}", f"path={MODELS / name}", "env=hopper", f"hydra.run.dir={name}")
        process = run_main_here("import_checkpoint", *overrides, folder=folder)
        assert process.returncode == 0, process.stderr
        found[name] = folder / name / "last.ckpt"
        assert process.stdout.splitlines()[-1] == str(found[name])
    return found


def test_the_agent_acts_as_the_original_would_from_observations_actions_and_rewards(imported: dict[str, Path]) -> None:
    """With the history that its own loop kept of a recorded episode, through the checkpoint, in float32."""
    _, expected = toy("jannerm")
    agent = TrajectoryAgent.from_checkpoint(
        imported["jannerm"], {"horizon": 8, "beam_width": 4, "action": {"top_k": 1, "top_p": None}}
    )
    for start in (0, 3):
        agent.reset()
        observations, actions, rewards = (
            expected[f"{kind}_{start}"] for kind in ("observations", "actions", "rewards")
        )
        before = [None, *rewards.tolist()]
        for step, action in enumerate(actions):
            agent.act(observations[step], before[step])
            agent.replace_actions(action)
        (plan,) = agent.plan(observations[-1], before[-1])
        decoded = agent.discretizer.decode(torch.from_numpy(expected[f"plan_{start}"]).long())
        np.testing.assert_array_equal(plan.actions, decoded[:, LAYOUT.action].numpy())
        np.testing.assert_array_equal(plan.observations, decoded[:, LAYOUT.observation].numpy())


def test_checkpoints_of_both_are_evaluated_and_know_where_they_come_from(imported: dict[str, Path]) -> None:
    for name, path in imported.items():
        folder = path.parents[1]
        overrides = ("evaluation.episodes=1", "evaluation.max_steps=10", "evaluation.video=false", "runtime.threads=1")
        narrow = ("planner.beam_width=2", "planner.horizon=2", "logger=csv", f"hydra.run.dir={name}-evaluated")
        process = run_main_here("evaluate", f"checkpoint={path}", *overrides, *narrow, folder=folder)
        assert process.returncode == 0, process.stderr
        results = json.loads((folder / f"{name}-evaluated" / "results.json").read_text())
        assert results["dataset"]["id"] == "d4rl/hopper-medium-v2"
        assert results["dataset"]["source"] == name
        assert results["planner"]["crop_every_transition"] is (name == "jannerm")
        assert results["planner"]["context"] == 4
    planner = load_checkpoint(imported["howuhh"]).hyperparameters["planner"]
    assert (planner["beam_width"], planner["horizon"]) == (8, 3)  # of its config.yaml


def test_what_is_exported_to_the_original_is_what_was_imported(imported: dict[str, Path], tmp_path: Path) -> None:
    write_folder(tmp_path, janner.files(load_checkpoint(imported["jannerm"])))
    original, again = MODELS / "jannerm", janner.read(tmp_path, None)
    assert same(read_tensors(tmp_path / "state_20.pt"), read_tensors(original / "state_20.pt"))
    np.testing.assert_array_equal(np.load(tmp_path / "thresholds.npy"), np.load(original / "thresholds.npy"))
    for name in ("model_config.pkl", "data_config.pkl"):
        written, given = (read_pickle(folder / name, "Config").attributes for folder in (tmp_path, original))
        assert written["_class"] is given["_class"]
        assert written["_dict"].items() <= given["_dict"].items()
    first = janner.read(original, None)
    assert same(again.weights, first.weights)
    assert asdict(again.model) == asdict(first.model)
    assert same(again.discretizer.state_dict(), first.discretizer.state_dict())
    assert (again.discount, again.terminal_reward, again.task) == (first.discount, first.terminal_reward, first.task)


def test_a_checkpoint_cannot_name_a_file_outside_of_the_export(imported: dict[str, Path], tmp_path: Path) -> None:
    content = read_checkpoint(imported["jannerm"])
    content["hyper_parameters"]["imported"]["state"] = "../elsewhere.pt"
    write_checkpoint(content, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="one that was imported from there"):
        janner.files(load_checkpoint(tmp_path / "last.ckpt"))


REFUSED: dict[str, tuple[str, str, tuple[str, ...]]] = {
    # what is wrong -> project, file, overrides -> what the line says
    "of another size": ("jannerm", "path=", ("env=walker2d",)),
    "of another environment": ("jannerm", "env must be of hopper", ("env=gym", "env.id=Hopper-v5", "env.name=jumper")),
    "without a simulator": ("jannerm", "env must be one with a simulator", ("env=none",)),
    "a beam that is none": ("howuhh", "planner.beam_width must be", ("env=hopper", "planner.beam_width=0")),
    "a critic": ("jannerm", "planner.value must be model", ("env=hopper", "planner.value=critic")),
    "other weights": ("jannerm", "weights must be null or a file in", ("env=hopper", "weights=state_9.pt")),
    "weights elsewhere": ("jannerm", "weights must be null or the name", ("env=hopper", "weights=../x.pt")),
    "the other project": ("jannerm", "path must be a folder with a file model_*.pt", ("env=hopper", "source=howuhh")),
    "no project": ("jannerm", "source must be one of jannerm, howuhh", ("env=hopper", "source=karpathy")),
    "no folder": ("jannerm", "path must be the folder", ("env=hopper", "path=nowhere")),
}


@pytest.mark.parametrize(("name", "said", "overrides"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(
    refusal: Refusal, name: str, said: str, overrides: tuple[str, ...]
) -> None:
    line = refusal("import_checkpoint", f"source={name}", f"path={MODELS / name}", *overrides)
    assert line.startswith("error: ")
    assert said in line


def copied(name: str, folder: Path) -> Path:
    """A toy's folder, to be damaged."""
    return Path(shutil.copytree(MODELS / name, folder / name))


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: dict[str, tuple[str, str, str]] = {
    "missing thresholds": ("jannerm", "thresholds.npy", "np.save('thresholds.npy'"),
    "missing data config": ("jannerm", "data_config.pkl", "data_config.pkl must be a pickle of Config"),
    "missing discretizer": ("howuhh", "discretizer.pt", "path must be a folder with the fork's discretizer.pt"),
    "missing configuration": ("howuhh", "config.yaml", "path must be a folder with the fork's config.yaml"),
}


@pytest.mark.parametrize(("name", "file", "said"), DAMAGES.values(), ids=DAMAGES)
def test_a_missing_or_truncated_file_is_named(
    refusal: Refusal, tmp_path: Path, name: str, file: str, said: str
) -> None:
    path = copied(name, tmp_path)
    given = (f"source={name}", f"path={path}", "env=hopper")
    if file != "config.yaml":
        damage(path / file)
        assert file in refusal("import_checkpoint", *given)
    (path / file).unlink()
    assert said in refusal("import_checkpoint", *given)


@pytest.mark.parametrize("name", READERS)
def test_truncated_weights_and_weights_of_another_model_are_named(refusal: Refusal, tmp_path: Path, name: str) -> None:
    path = copied(name, tmp_path)
    (weights,) = [*path.glob("state_*.pt"), *path.glob("model_*.pt")]
    state, given = read_tensors(weights), (f"source={name}", f"path={path}", "env=hopper")
    torch.save(
        {key: value for key, value in state.items() if "blocks.1.ln1" not in key and ".1.norm1" not in key}, weights
    )
    assert "weights of the sizes that its configuration gives: " in refusal("import_checkpoint", *given)
    torch.save({"blocks": 3}, weights)
    assert f"{weights} must be a state of" in refusal("import_checkpoint", *given)
    damage(weights)
    assert f"{weights} must be a file of tensors" in refusal("import_checkpoint", *given)


# project, file, section, key and value of its configuration -> what the line says
VALUES: list[tuple[str, str, str, Any, str]] = [
    ("howuhh", "model", "embedding_dim", 1 << 20, "weights of the sizes that its configuration gives"),
    ("howuhh", "model", "seq_len", 16 * 10**12, "weights of the sizes that its configuration gives"),
    ("howuhh", "dataset", "env_name", 7, "config.yaml: dataset: env_name must be given"),
    ("howuhh", "dataset", "discount", 1.5, "a model with a discount from 0 to 1, got 1.5"),
    ("howuhh", "dataset", "discount", math.nan, "config.yaml: dataset: discount must be given"),
    ("howuhh", "trainer", "eval_beam_context", [], "config.yaml: trainer: eval_beam_context must be given"),
    ("howuhh", "", "trainer", "none", "must be a mapping with `model` and `dataset`"),
    ("jannerm", "model_config.pkl", "n_embd", 1 << 20, "weights of the sizes that its configuration gives"),
    ("jannerm", "data_config.pkl", "env", 7, "data_config.pkl: env must be given"),
    ("jannerm", "data_config.pkl", "penalty", "none", "data_config.pkl: penalty must be given"),
]


@pytest.mark.parametrize(("name", "section", "key", "value", "said"), VALUES)
def test_values_that_a_configuration_cannot_have_are_one_line(
    refusal: Refusal, tmp_path: Path, name: str, section: str, key: str, value: Any, said: str
) -> None:
    """Sizes that would take all memory too: nothing is allocated for them."""
    path = copied(name, tmp_path)
    if name == "howuhh":
        config = yaml.safe_load((path / "config.yaml").read_text())
        (config[section] if section else config)[key] = value
        (path / "config.yaml").write_text(yaml.safe_dump(config))
    else:
        kind, cls = ("model", janner.GPT_CLASS) if section.startswith("model") else ("data", janner.DATA_CLASS)
        values = {**janner.read(path, None).origin[kind], key: value}
        (path / section).write_bytes(write_record(janner.CONFIG, {"_class": Global(cls), "_dict": values}))
    assert said in refusal("import_checkpoint", f"source={name}", f"path={path}", "env=hopper")


def test_thresholds_that_do_not_ascend_are_refused(tmp_path: Path) -> None:
    path = copied("jannerm", tmp_path) / "thresholds.npy"
    thresholds = np.load(path)
    for changed, said in (
        (thresholds[::-1], "ascending in every dimension, got 'edges that fall in dimension 0'"),
        (thresholds[:-1], "of shape"),
        (np.where(thresholds == thresholds[3], np.nan, thresholds), "finite"),
        (thresholds.astype(str), "numbers"),
    ):
        np.save(path, changed)
        with pytest.raises(UserError, match=said):
            janner.read(path.parent, None)


def test_edges_of_the_fork_that_do_not_ascend_are_refused(refusal: Refusal, tmp_path: Path) -> None:
    """Its pickle with two edges exchanged, in place."""
    path = copied("howuhh", tmp_path) / "discretizer.pt"
    edges = howuhh.read(path.parent, None).edges.numpy()
    one, other = (edge.tobytes().decode("latin1").encode() for edge in edges[3, 1:3])  # as its pickle has bytes
    with zipfile.ZipFile(path) as archive:
        parts = {part: archive.read(part) for part in archive.namelist()}
    changed = {part: other.join(piece.replace(other, one) for piece in data.split(one)) for part, data in parts.items()}
    assert changed != parts
    with zipfile.ZipFile(path, "w") as archive:
        for part, data in changed.items():
            archive.writestr(part, data)
    line = refusal("import_checkpoint", "source=howuhh", f"path={path.parent}", "env=hopper")
    assert "must be ascending in every dimension, got 'edges that fall in dimension 3'" in line
