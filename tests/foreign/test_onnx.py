"""A model as ONNX: ONNX Runtime computes torch's logits and plans, with whole windows and with a cache."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnxruntime import InferenceSession
from safetensors.torch import save_file
from torch import Tensor

from helpers.command_line import Refusal, compose_config, run_main_here
from helpers.deployed import Cache, Deployed
from helpers.made_checkpoint import write_made_checkpoint
from trajectory import TrajectoryAgent
from trajectory.data.discretizer import Discretizer
from trajectory.environments.make import make_environment
from trajectory.environments.settings import environment_settings
from trajectory.files import write_folder
from trajectory.foreign import howuhh, janner, onnx
from trajectory.model.checkpoint import Checkpoint, load_checkpoint
from trajectory.model.gpt import GPT
from trajectory.model.settings import GPTSettings
from trajectory.planning.beam_search import beam_search, uniforms_shape
from trajectory.planning.settings import PlannerSettings, SamplingSettings
from trajectory.transition import TransitionLayout

MODELS = Path(__file__).parent / "models"
TOLERANCE = 1e-5  # of logits in float32


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a critic, of rotary positions."""
    return write_made_checkpoint(tmp_path_factory.mktemp("made") / "last.ckpt")


@pytest.fixture(scope="module")
def exported(trained: Path) -> Path:
    process = run_main_here("export", f"checkpoint={trained}", "to=onnx/tiny", "format=onnx", folder=trained.parent)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1] == "onnx/tiny"
    assert process.stderr == ""
    return trained.parent / "onnx" / "tiny"


def described(gpt: GPT) -> dict[str, Any]:
    """The hyperparameters that a deployment reads."""
    return {"layout": asdict(gpt.layout), "model": asdict(gpt.settings), "planner": asdict(PlannerSettings())}


def deploy(checkpoint: Checkpoint, folder: Path) -> Deployed:
    write_folder(folder, onnx.files(checkpoint))
    return Deployed(folder, 1)


class Rows:
    """What `beam_search` does with a cache, on the keys and values of whole rows."""

    def __init__(self, transition_dim: int) -> None:
        self.transition_dim = transition_dim

    def clear(self, rows: int) -> None:
        self.end, self.kept = 0, None

    def open_segment(self, capacity: int, transition: int) -> None:
        """Nothing: rows grow as they are."""

    def select_rows(self, rows: Tensor) -> None:
        if self.kept is not None:
            self.kept = tuple(part[:, rows.numpy()] for part in self.kept)

    def drop_before(self, transition: int) -> None:
        if self.kept is not None:
            stored = self.kept[0].shape[2]
            dropped = max(0, transition * self.transition_dim - (self.end - stored))
            self.kept = tuple(part[:, :, dropped:] for part in self.kept)

    kept: Any


class OnnxDecoder:
    """A `Decoder` whose steps are those of a session."""

    own_threads = False

    def __init__(self, gpt: GPT, deployed: Deployed) -> None:
        self.settings, self.layout, self.stop_token = gpt.settings, gpt.layout, gpt.stop_token
        self.step = deployed.step

    def new_cache(self, slots: int) -> Any:
        return Rows(self.layout.transition_dim)

    def decode_step(self, tokens: Tensor, position: int, cache: Any) -> Tensor:
        logits, cache.kept = self.step(tokens.numpy(), position, cache.kept)
        cache.end = position + tokens.shape[1]
        return torch.from_numpy(logits[:, -1])


def random_tokens(gpt: GPT, *shape: int) -> Tensor:
    """With stop tokens among them."""
    return torch.randint(gpt.settings.bins + 1, shape, generator=torch.Generator().manual_seed(1))


def in_torch(gpt: GPT) -> Any:
    """The step as `Deployed` has it, before its export."""
    step = onnx.Step(gpt)

    @torch.inference_mode()
    def run(tokens: np.ndarray, position: int, cache: Cache | None) -> tuple[np.ndarray, Cache]:
        empty = np.zeros((gpt.settings.n_layer, len(tokens), 0, gpt.settings.n_embd))
        keys, values = cache or (empty, empty)
        inputs = (torch.from_numpy(part) for part in (tokens, np.array(position), keys, values))
        logits, keys, values = (part.numpy() for part in step(*inputs))
        return logits, (keys, values)

    return run


def assert_the_same_logits(gpt: GPT, step: Any, tolerance: float) -> None:
    """At once and in pieces, of one sequence and of some, up to a whole window."""
    for rows, length in ((1, 1), (1, gpt.block_size), (5, gpt.block_size // 2)):
        tokens = random_tokens(gpt, rows, length)
        with torch.inference_mode():
            expected = gpt(tokens).numpy()
        logits, _ = step(tokens.numpy(), 0, None)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance)
        cache: Cache | None = None
        ends = sorted({1, length // 5, length // 2 + 1, length - 1, length} - {0})
        for start, end in zip([0, *ends], ends, strict=False):
            logits, cache = step(tokens[:, start:end].numpy(), start, cache)
            np.testing.assert_allclose(logits, expected[:, start:end], rtol=0, atol=tolerance)


def assert_the_same_plan(checkpoint: Checkpoint, deployed: Deployed, past: int) -> None:
    """Sampled, with all of its beams, by the same random numbers: beyond the window's end too."""
    gpt, layout = checkpoint.gpt, checkpoint.gpt.layout
    planner = PlannerSettings(beam_width=4, horizon=6, context=6)
    generator = torch.Generator().manual_seed(2)
    counts = checkpoint.discretizer.counts.repeat(past + 1)[: past * layout.transition_dim + layout.observation_dim]
    context = (torch.rand(2, len(counts), generator=generator) * counts).long()
    uniforms = torch.rand(2, *uniforms_shape(planner, layout.transition_dim), generator=generator)
    plans = [
        beam_search(decoder, checkpoint.discretizer, context, uniforms, planner, 0.99, checkpoint.critic)
        for decoder in (gpt, OnnxDecoder(gpt, deployed))
    ]
    assert torch.equal(plans[0].tokens, plans[1].tokens)
    torch.testing.assert_close(plans[0].objective, plans[1].objective, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_folder_has_graphs_of_free_sizes_and_what_a_planner_needs(trained: Path, exported: Path) -> None:
    files = {path.name: path.read_bytes() for path in exported.iterdir()}
    graphs = (onnx.STEP, onnx.Q_VALUE, onnx.POLICY)
    assert files.keys() == {*graphs, onnx.DESCRIPTION}
    about = json.loads(files[onnx.DESCRIPTION])
    checkpoint = load_checkpoint(trained)
    assert about["sha256"] == {name: hashlib.sha256(files[name]).hexdigest() for name in graphs}
    assert about["hyper_parameters"] == json.loads(json.dumps(checkpoint.hyperparameters))
    assert (about["global_step"], about["stop_token"], about["attention_span"]) == (6, 100, 10)
    names = ["observation[10]", "action[0]", "action[1]", "action[2]", "reward", "value"]
    assert [of["name"] for of in about["bins"]][10:] == names
    session = InferenceSession(files[onnx.STEP])
    shapes = {value.name: value.shape for value in [*session.get_inputs(), *session.get_outputs()]}
    L, C, N = checkpoint.gpt.settings.n_layer, checkpoint.gpt.settings.n_embd, checkpoint.gpt.settings.bins
    assert shapes == {
        "tokens": ["rows", "tokens"],
        "position": [],
        **{name: [L, "rows", "past", C] for name in ("keys", "values")},
        "logits": ["rows", "tokens", N + 1],
        **{name: [L, "rows", "tokens + past", C] for name in ("keys_out", "values_out")},
    }
    assert not any(str(Path(onnx.__file__).parents[2]).encode() in content for content in files.values())


@pytest.mark.slow
def test_logits_are_those_of_the_training_pass_at_once_and_in_pieces(trained: Path, exported: Path) -> None:
    assert_the_same_logits(load_checkpoint(trained).gpt, Deployed(exported, 1).step, TOLERANCE)


@pytest.mark.slow
def test_what_is_beyond_the_attention_span_may_be_dropped(trained: Path, exported: Path) -> None:
    gpt, deployed = load_checkpoint(trained).gpt, Deployed(exported, 1)
    D, span = gpt.layout.transition_dim, gpt.settings.attention_span
    tokens = random_tokens(gpt, 2, (span + 3) * D + 5)
    with torch.inference_mode():
        expected = gpt(tokens).numpy()
    _, (keys, values) = deployed.step(tokens[:, :-5].numpy(), 0, None)
    for dropped in (0, 7, 4 * D):  # the last tokens are of transition span + 3
        cache = keys[:, :, dropped:], values[:, :, dropped:]
        logits, _ = deployed.step(tokens[:, -5:].numpy(), tokens.shape[1] - 5, cache)
        np.testing.assert_allclose(logits, expected[:, -5:], rtol=0, atol=TOLERANCE)
    cache = keys[:, :, 5 * D :], values[:, :, 5 * D :]
    logits, _ = deployed.step(tokens[:, -5:].numpy(), tokens.shape[1] - 5, cache)
    assert np.abs(logits - expected[:, -5:]).max() > 10 * TOLERANCE


@pytest.mark.slow
def test_bins_in_the_description_are_those_of_the_checkpoint(trained: Path, exported: Path) -> None:
    discretizer, deployed = load_checkpoint(trained).discretizer, Deployed(exported, 1)
    generator = np.random.default_rng(0)
    numbers = generator.standard_normal((200, 16)).astype(np.float32) * 2
    numbers[:50] = discretizer.boundaries[:, :50].T  # on a boundary
    tokens = discretizer.encode(torch.from_numpy(numbers))
    assert [deployed.encode(row) for row in numbers] == tokens.tolist()
    decoded = np.stack([deployed.decode(row) for row in tokens.tolist()])
    np.testing.assert_array_equal(decoded, discretizer.decode(tokens).numpy())


@pytest.mark.slow
def test_the_critics_graph_gives_the_smallest_q(trained: Path, exported: Path) -> None:
    critic = load_checkpoint(trained).critic
    assert critic is not None
    observations, actions = torch.randn(7, 11), torch.randn(7, 3)
    session = InferenceSession(exported / onnx.Q_VALUE)
    (q_values,) = session.run(None, {"observations": observations.numpy(), "actions": actions.numpy()})
    with torch.inference_mode():
        expected = critic.q_values(observations, actions).amin(0)
    np.testing.assert_allclose(np.asarray(q_values), expected.numpy(), rtol=1e-5, atol=TOLERANCE)


@pytest.mark.slow
def test_the_policys_graph_gives_its_actions(trained: Path, exported: Path) -> None:
    critic = load_checkpoint(trained).critic
    assert critic is not None
    observations = torch.randn(7, 11)
    (actions,) = InferenceSession(exported / onnx.POLICY).run(None, {"observations": observations.numpy()})
    with torch.inference_mode():
        expected = critic.actions(observations)
    assert expected is not None
    np.testing.assert_allclose(np.asarray(actions), expected.numpy(), rtol=1e-5, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("past", [0, 2, 9])
def test_a_sampled_plan_is_that_of_torch_with_all_its_beams(trained: Path, exported: Path, past: int) -> None:
    assert_the_same_plan(load_checkpoint(trained), Deployed(exported, 1), past)


@pytest.mark.slow
def test_a_rollout_without_this_project_takes_the_same_actions(trained: Path, exported: Path) -> None:
    """Greedy, until the hopper has fallen."""
    planner: dict[str, Any] = {"beam_width": 1, "expansion": 1, "horizon": 2, "value": "model"}
    planner |= {kind: {"top_k": 1, "top_p": None} for kind in ("observation", "action", "reward")}
    agent = TrajectoryAgent.from_checkpoint(trained, planner)
    agent.reset()
    deployed = Deployed(exported, 2)
    env = make_environment(environment_settings(compose_config("train", "env=hopper").env))
    observation, _ = env.reset(seed=0)
    reward, fallen, steps = None, False, 0
    while not fallen and steps < 60:
        (plan,) = agent.plan(observation, reward)
        action, expected = deployed.act(observation, reward), agent.act(observation, reward)
        np.testing.assert_array_equal(action, expected)
        transitions = deployed.plan(observation)
        assert [deployed.decode(row)[11:14].tolist() for row in transitions] == plan.actions.tolist()
        assert [deployed.decode(row)[:11].tolist() for row in transitions] == plan.observations.tolist()
        observation, reward, fallen, _, _ = env.step(action)
        steps += 1
    env.close()
    assert steps > 5
    assert len(deployed.history) == steps - 1


VARIANTS: dict[str, dict[str, Any]] = {
    "rotary": {"positions": "rotary"},
    "a short attention window": {"positions": "rotary", "attention_window": 2},
    "absolute": {"positions": "absolute"},
    "goals": {"positions": "rotary", "goal": [0, 1]},
    "as published": {"positions": "absolute", "value_residual": True, "predicts_end": False},
}


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_the_step_gives_the_logits_of_the_training_pass(make_gpt: Callable[..., GPT], settings: dict[str, Any]) -> None:
    """In float64, before the export."""
    gpt = make_gpt(window=4, **settings)
    assert_the_same_logits(gpt, in_torch(gpt), 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_every_kind_of_model_plans_the_same_at_the_published_size(tmp_path: Path, settings: dict[str, Any]) -> None:
    layout = TransitionLayout(11, 3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        gpt = GPT(GPTSettings(**settings), layout).eval()
        columns = torch.randn(layout.transition_dim, 5_000).numpy()
    bins = Discretizer.fit(columns, 100, "quantile", layout)
    checkpoint = Checkpoint(gpt, bins, None, described(gpt), 0)
    deployed = deploy(checkpoint, tmp_path / "model")
    assert_the_same_logits(gpt, deployed.step, TOLERANCE)
    assert_the_same_plan(checkpoint, deployed, 6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jannerm", "howuhh"])
def test_a_trained_model_of_the_public_code_plans_the_same(tmp_path: Path, name: str) -> None:
    """Greedily as the original's own code does, which made the expected plan."""
    found = {"jannerm": janner.read, "howuhh": howuhh.read}[name](MODELS / name, None)
    expected, gpt = np.load(MODELS / name / "toy.npz"), found.gpt()
    checkpoint = Checkpoint(gpt, found.discretizer, None, described(gpt), 0)
    deployed = deploy(checkpoint, tmp_path / "model")
    assert_the_same_logits(gpt, deployed.step, TOLERANCE)
    assert_the_same_plan(checkpoint, deployed, 3)
    if name == "jannerm":
        planner = replace(found.planner, horizon=8, beam_width=4, action=SamplingSettings(top_k=1))
        prefix = torch.from_numpy(expected["prefix_3"]).long()[None]
        context = prefix[:, -(planner.context * 16 + 11) :]
        uniforms = torch.zeros(1, *uniforms_shape(planner, 16))
        plan = beam_search(OnnxDecoder(gpt, deployed), found.discretizer, context, uniforms, planner, found.discount)
        np.testing.assert_array_equal(plan.tokens[0, 0].numpy(), expected["plan_3"])


def test_without_the_extra_one_line_says_how_to_install_it(
    refusal: Refusal, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    line = refusal("export", f"checkpoint={trained}", f"to={tmp_path / 'a' / 'b'}", "format=onnx")
    assert line == "error: format=onnx needs the optional extra: `pip install -e '.[onnx]'`"


def test_what_cannot_become_onnx_is_refused_in_one_line(refusal: Refusal, trained: Path, tmp_path: Path) -> None:
    """A folder with files, half precision, and what a baseline or the ensemble has saved."""
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    policy = tmp_path / "policy.safetensors"
    save_file({"net.0.weight": torch.zeros(3, 2)}, policy)
    for overrides, said in (
        ((f"checkpoint={trained}", f"to={folder}"), f"to must be a folder that is new or empty, got '{folder}'"),
        ((f"checkpoint={trained}", "half=true", "to=new"), "half must be false with format=onnx, got True"),
        ((f"checkpoint={policy}", "to=new"), "checkpoint must be a complete checkpoint of this project, got"),
        ((f"checkpoint={folder}", "to=new"), f"got '{folder}', a folder without card.json"),
    ):
        assert said in refusal("export", *overrides, "format=onnx")
