"""Exported parts compute what the model computes, in the runtimes themselves; what does not is refused."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import wm_gym.export as package
from wm_gym.cli.main import main
from wm_gym.config import DynamicsConfig, load_config
from wm_gym.errors import ExportError
from wm_gym.export import latency
from wm_gym.export.back_ends import BACK_ENDS, LoadedFile, LoadedModule, TensorRT, TorchScript
from wm_gym.export.check import check_file
from wm_gym.export.folder import ExportSettings, export_parts
from wm_gym.export.parts import Part, TensorSpec, model_parts
from wm_gym.models.dynamics import DYNAMICS
from wm_gym.models.dynamics.rssm import CategoricalDraw
from wm_gym.state import LatentState
from wm_gym.world_model import WorldModel

KINDS = {
    "gru": DynamicsConfig(kind="gru", hidden_dim=8, num_layers=2, mlp_ratio=1.0),
    "rssm": DynamicsConfig(kind="rssm", hidden_dim=8, groups=5, classes=4, action_gains=(4.0,)),
    "transformer": DynamicsConfig(
        kind="transformer", hidden_dim=8, num_layers=2, num_heads=2, context_length=4, mlp_ratio=1.0
    ),
}
PARTS = ("encoder", "observe", "step", "decoder")
OF_DYNAMICS = ("observe", "step")
"""Encoder and decoder are the same for every kind, and exporting takes seconds: they are exported for one."""


def model_of(kind: str, spec) -> WorldModel:
    config = load_config("debug").model.model_copy(update={"dynamics": KINDS[kind]})
    torch.manual_seed(0)
    model = WorldModel(config, spec).eval()
    # What starts at zero would hide whatever comes before it.
    for layer in (model.reward_head.mlp[-1], model.continuation_head.mlp[-1], model.dynamics.output[-1]):
        torch.nn.init.normal_(layer.weight, std=0.3)
    return model


@pytest.fixture(
    scope="module",
    params=[
        "gru",
        "rssm",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in sorted(set(KINDS) - {"gru", "rssm"})),
    ],
)
def exported(request, tmp_path_factory):
    """A model of each kind, and the export of its parts."""
    from wm_gym.actions import ActionFormat
    from wm_gym.simulator import SimulatorSpec

    torch.set_num_threads(1)
    spec = SimulatorSpec(id="CarRacingDriving-v0", frame_size=(64, 64), action=ActionFormat.driving(), step_s=0.08)
    model = model_of(request.param, spec)
    settings = ExportSettings(batch_sizes=(1, 2), repeats=1)
    out = tmp_path_factory.mktemp("export") / request.param
    names = PARTS if request.param == "gru" else OF_DYNAMICS
    parts = [part for part in model_parts(model) if part.name in names]
    return model, export_parts(parts, model, out, settings, progress=False)


def runner(model: WorldModel, folder: Path, name: str, back_end: str):
    """A part's file in its own runtime, or the eager part where it was not exported: arrays in, arrays out."""
    if back_end == "torchscript" or not (folder / f"{name}.onnx").exists():
        module = next(part.module for part in model_parts(model) if part.name == name)
        if (folder / f"{name}.pt").exists():
            module = torch.jit.load(str(folder / f"{name}.pt"))
        return lambda *inputs: [output.numpy() for output in module(*map(torch.from_numpy, inputs))]
    session = onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in session.get_inputs()]
    return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))


def assert_close(given, expected):
    assert len(given) == len(expected)
    for one, other in zip(given, expected, strict=True):
        np.testing.assert_allclose(one, other.detach().numpy(), rtol=0, atol=1e-4)


def test_all_kinds_are_tested():
    assert set(KINDS) == set(DYNAMICS)


@pytest.mark.parametrize("back_end", ["torchscript", "onnx"])
@pytest.mark.parametrize("batch", [1, 4])
@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_files_follow_a_drive_and_dream_on_as_the_model_does(exported, back_end, batch):
    model, result = exported
    encoder, observe, step, decoder = (runner(model, result.path, name, back_end) for name in PARTS)
    generator = torch.Generator().manual_seed(1)
    frames = torch.rand(4, batch, 3, 64, 64, generator=generator) * 2 - 1
    actions = torch.rand(6, batch, 4, generator=generator)
    noise = torch.rand(3, batch, model.noise_dim, generator=generator)

    state = model.initial_state(frames[0])
    nothing = [np.full_like(part.numpy(), np.nan) for part in state]
    (encoded,) = encoder(frames[0].numpy())
    firsts = np.ones(batch, bool)
    latent, memory, features = observe(*nothing, np.full((batch, 4), np.nan, np.float32), encoded, firsts)
    assert_close((latent, memory, features), (*state, model.features(state)))
    for t in range(1, 4):
        state = model.observe(state, actions[t - 1], frames[t])
        (encoded,) = encoder(frames[t].numpy())
        latent, memory, features = observe(latent, memory, actions[t - 1].numpy(), encoded, ~firsts)
        assert_close((latent, memory, features), (*state, model.features(state)))
    for t in range(3):
        state, reward, continuation = model.imagine(state, actions[3 + t], noise[t])
        noises = [noise[t].numpy()] if model.noise_dim else []
        outputs = step(latent, memory, actions[3 + t].numpy(), *noises)
        assert_close(outputs, (*state, reward, continuation, model.features(state)))
        latent, memory = outputs[:2]
        assert_close(decoder(latent), (model.decode(state),))


def test_one_batch_may_hold_beginnings_and_drives_under_way(exported):
    model, result = exported
    observe = runner(model, result.path, "observe", "onnx")
    inputs = [tensor.numpy() for tensor in model_parts(model)[1].draw_inputs(4, torch.Generator().manual_seed(2))]
    inputs[-1] = np.array([True, False, True, False])
    together = observe(*inputs)
    for row in range(4):
        alone = observe(*(tensor[row : row + 1] for tensor in inputs))
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_allclose(one[0], other[row], rtol=0, atol=1e-5)


def test_the_folder_says_what_is_in_it(exported):
    model, result = exported
    manifest = json.loads((result.path / "export.json").read_text())
    assert manifest["model"]["fingerprint"] == model.fingerprint
    names = [name for name in PARTS if (result.path / f"{name}.pt").exists()]
    assert names == list(PARTS if model.config.dynamics.kind == "gru" else OF_DYNAMICS)
    assert [file["name"] for file in manifest["files"]] == [
        f"{name}{end}" for name in names for end in (".pt", ".onnx")
    ]
    for file in manifest["files"]:
        check = file["check"]
        assert check["max_difference"] <= 1e-4
        assert check["compared"] >= 20
        assert check["batch_sizes"] == [1, 5]
        assert (check["undecided"] == 0) or (model.noise_dim > 0)
    by_name = {file["name"]: file for file in manifest["files"]}
    session = onnxruntime.InferenceSession(str(result.path / "step.onnx"), providers=["CPUExecutionProvider"])
    for tensors, described in (
        (session.get_inputs(), by_name["step.onnx"]["inputs"]),
        (session.get_outputs(), by_name["step.onnx"]["outputs"]),
    ):
        assert [(tensor.name, tensor.shape[1:]) for tensor in tensors] == [
            (one["name"], one["shape"][1:]) for one in described
        ]
        assert all(isinstance(tensor.shape[0], str) for tensor in tensors)  # the batch is of any size
    assert manifest["versions"]["onnxruntime"] == onnxruntime.__version__
    card = (result.path / "README.md").read_text()
    assert model.fingerprint[:12] in card
    assert "| in: `memory` | (B, " in card
    rows = json.loads((result.path / "latency.json").read_text())["rows"]
    assert [(row["part"], row["batch"], row["back_end"]) for row in rows] == [
        (name, size, back_end) for name in names for size in (1, 2) for back_end in ("eager", "torchscript", "onnx")
    ]
    assert "| step | 2 |" in (result.path / "latency.md").read_text()


class Doubling(torch.nn.Module):
    def forward(self, x):
        return (2 * x,)


class Changed(LoadedFile):
    """A module whose outputs something was done to."""

    def __init__(self, module, change):
        self.module, self.change = module, change

    def prepare(self, inputs):
        return inputs

    def call(self, prepared):
        return tuple(self.change(output) for output in self.module(*prepared))

    def tensors(self, outputs):
        return outputs


def part_of(module: torch.nn.Module, draw_inputs=None) -> Part:
    x = TensorSpec("x", (3,), torch.float32, "anything")
    draw = draw_inputs or (lambda number, generator: (torch.rand(number, 3, generator=generator),))
    return Part("toy", "A toy.", module.eval(), (x,), (TensorSpec("y", (3,), torch.float32, "anything"),), draw)


def test_small_differences_pass_and_are_reported():
    part = part_of(Doubling())
    result = check_file(part, Changed(part.module, lambda y: y + 0.5e-4), 0, label="toy.pt")
    assert result.max_difference == pytest.approx(0.5e-4, rel=0.05)
    assert (result.compared, result.undecided) == (20, 0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda y: y + 2e-4, r"toy\.pt differs from the model by 0\.0002 in 'y', but at most 0\.0001 is allowed"),
        (lambda y: y * torch.nan, r"toy\.pt differs from the model by nan"),
        (lambda y: y.double(), r"gives 'y' as torch\.float64 of shape \(1, 3\) instead of torch\.float32"),
        (lambda y: y[:, :2], r"gives 'y' as torch\.float32 of shape \(1, 2\)"),
        (lambda y: y[:1].expand_as(y), r"toy\.pt differs"),  # right for a batch of one alone
    ],
)
def test_wrong_outputs_are_refused(change, sentence):
    part = part_of(Doubling())
    with pytest.raises(ExportError, match=sentence):
        check_file(part, Changed(part.module, change), 0, label="toy.pt")


class Drawn(torch.nn.Module):
    """The most probable of three classes."""

    def __init__(self):
        super().__init__()
        self.draw = CategoricalDraw(3)

    def forward(self, probabilities):
        return (self.draw(probabilities.unsqueeze(1)),)


def near_ties(number, generator):
    """Every row has two classes that are nearly as probable; they differ by much less or much more than rounding."""
    gap = torch.where(torch.rand(number, generator=generator) < 0.5, 1e-6, 1e-3)
    return (torch.stack((0.45 + gap, torch.full((number,), 0.45), 0.1 - gap), dim=1),)


def test_draws_that_rounding_decides_are_counted_and_others_compared():
    part = part_of(Drawn(), near_ties)

    class OtherWhereNear(Changed):
        def call(self, prepared):
            near = (prepared[0][:, 0] - prepared[0][:, 1]) < self.change
            return (torch.where(near.unsqueeze(1), torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0])),)

    result = check_file(part, OtherWhereNear(part.module, 1e-5), 0, label="toy.pt")
    assert result.max_difference == 0.0
    assert result.compared >= 20
    assert result.undecided == result.undecided_other > 0
    with pytest.raises(ExportError, match="differs from the model by 1 in 'y'"):
        check_file(part, OtherWhereNear(part.module, 1e-2), 0, label="toy.pt")


def test_file_and_model_are_compared_in_the_same_precision():
    """On CUDA, convolutions round their inputs to TF32 unless told otherwise: a loaded file's as well."""
    rounded: list[bool] = []

    def look(y):
        rounded.append(torch.backends.cudnn.allow_tf32)
        return y

    part, before = part_of(Doubling()), torch.backends.cudnn.allow_tf32
    check_file(part, Changed(part.module, look), 0, label="toy.pt")
    assert rounded
    assert not any(rounded)
    assert torch.backends.cudnn.allow_tf32 == before


def test_a_model_that_never_decides_cannot_be_checked():
    part = part_of(Drawn(), lambda number, generator: (torch.full((number, 3), 1 / 3),))
    with pytest.raises(ExportError, match="of 1000 random inputs, 1000 led to draws between two classes"):
        check_file(part, Changed(part.module, lambda y: y), 0, label="toy.pt")


def test_margins_of_draws():
    probabilities = torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]])
    torch.testing.assert_close(CategoricalDraw.margin(probabilities), torch.tensor([[0.2, 0.5]]))
    noise = torch.tensor([[0.45, 0.9]])  # bounds at 0.5 and 0.8; at 0.1 and 0.3
    torch.testing.assert_close(CategoricalDraw.margin(probabilities, noise), torch.tensor([[0.05, 0.6]]))


def test_a_file_that_fails_its_check_is_not_left_behind(tiny_model, tmp_path, monkeypatch):
    parts, settings = model_parts(tiny_model)[:1], ExportSettings(formats=("torchscript",), repeats=1)
    out = tmp_path / "export"
    export_parts(parts, tiny_model, out, settings, progress=False)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    load = TorchScript.load

    def load_another(self, part, file, device):
        return Changed(load(self, part, file, device).module, lambda output: output + 1)

    monkeypatch.setattr(TorchScript, "load", load_another)
    for path in (out, tmp_path / "new"):
        with pytest.raises(ExportError, match=r"encoder\.pt differs from the model by 1 in 'encoded'"):
            export_parts(parts, tiny_model, path, settings, progress=False)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_threads_are_given_back(tiny_model, tmp_path):
    settings = ExportSettings(formats=("torchscript",), repeats=1, threads=2)
    result = export_parts([part_of(Doubling())], tiny_model, tmp_path / "export", settings, progress=False)
    assert result.latency["machine"]["threads"] == 2
    assert torch.get_num_threads() == 1


class TestLatency:
    def test_medians_and_turns(self, monkeypatch):
        now, calls = 0.0, []

        class Timed(LoadedFile):
            def __init__(self, name, seconds):
                self.name, self.seconds = name, seconds

            def prepare(self, inputs):
                return inputs[0].shape[0]

            def call(self, prepared):
                nonlocal now
                calls.append(self.name)
                now += self.seconds * prepared

            def tensors(self, outputs):
                raise AssertionError("not a part of the measurement")

        monkeypatch.setattr(latency.time, "perf_counter", lambda: now)
        runners = {"eager": Timed("eager", 0.004), "onnx": Timed("onnx", 0.001)}
        rows = latency.measure_part(part_of(Doubling()), runners, (1, 3), repeats=25, seed=0)
        assert [(row["batch"], row["back_end"], row["calls"]) for row in rows] == [
            (1, "eager", 30),
            (1, "onnx", 30),
            (3, "eager", 30),
            (3, "onnx", 30),
        ]
        np.testing.assert_allclose([row["median_ms"] for row in rows], [4, 1, 12, 3])
        np.testing.assert_allclose([row["speedup"] for row in rows], [1, 4, 1, 4])
        # Twenty calls of each to warm up, then turns.
        turns = re.findall("e+|o+", "".join(name[0] for name in calls[: len(calls) // 2])[40:])
        assert [turn[0] for turn in turns] == ["e", "o"] * 10
        (slow,) = latency.measure_part(part_of(Doubling()), {"eager": Timed("eager", 1.5)}, (1,), repeats=25, seed=0)
        assert (slow["calls"], slow["median_ms"]) == (10, 1500)

    def test_the_table_has_a_row_for_each_part_and_batch(self):
        row = {"part": "step", "batch": 1, "low_ms": 1.0, "high_ms": 3.0, "calls": 10}
        rows = [
            {**row, "back_end": "eager", "median_ms": 2.0, "speedup": 1.0},
            {**row, "back_end": "onnx", "median_ms": 0.5, "speedup": 4.0},
        ]
        table = latency.render_markdown(
            {"rows": rows, "settings": {"repeats": 10}, "machine": {"cores": 2}, "versions": {"torch": "2"}}
        )
        assert "| part | batch | eager, ms | onnx (times eager), ms |" in table
        assert "| step | 1 | 2.000 | 0.500 (4.00) |" in table
        assert "Settings: repeats 10.\nMachine: cores 2.\nVersions: torch 2." in table


class TestRefusals:
    """One sentence each, before anything is written."""

    def refused(self, capsys, tmp_path, *arguments: str) -> str:
        out = tmp_path / "export"
        assert main(["export", "--model", "bundled", "--out", str(out), "--device", "cpu", *arguments]) == 2
        assert not out.exists()
        told = capsys.readouterr().err.strip()
        assert "\n" not in told
        return told

    def test_what_to_export_has_to_be_said(self, capsys, tmp_path):
        for source in ([], ["--model", "bundled", "--agent", "bundled"]):
            with pytest.raises(SystemExit):
                main(["export", "--out", str(tmp_path / "export"), *source])
        with pytest.raises(SystemExit):
            main(["export", "--help"])
        assert "example:\n  wm-gym export" in capsys.readouterr().out

    @pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
    def test_a_missing_back_end_names_its_extra(self, missing, monkeypatch, capsys, tmp_path):
        monkeypatch.setitem(sys.modules, missing, None)
        told = self.refused(capsys, tmp_path)
        assert f"--format onnx needs {missing}, which cannot be imported" in told
        assert "pip install 'wm_gym[export]'" in told

    def test_tensorrt_needs_a_gpu_and_its_package(self, monkeypatch, capsys, tmp_path):
        told = self.refused(capsys, tmp_path, "--format", "tensorrt")
        assert "--format tensorrt needs a CUDA GPU, but the device is 'cpu'" in told
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        with pytest.raises(ExportError, match=r"needs tensorrt, .*pip install 'wm_gym\[tensorrt\]'"):
            TensorRT().check_available(torch.device("cuda"))

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["--format", "onxx"], "no format is called 'onxx' (did you mean 'onnx'?)"),
            (["--batch", "0"], "--batch 0 must be a whole number of at least 1"),
            (["--repeats", "0"], "--repeats 0 must be"),
            (["--threads", "-1"], "--threads -1 must be"),
            (["--device", "gpu"], "device='gpu' is not usable here"),
        ],
    )
    def test_wrong_settings(self, arguments, sentence, capsys, tmp_path):
        assert sentence in self.refused(capsys, tmp_path, *arguments)

    def test_a_folder_with_something_else(self, capsys, tmp_path):
        (tmp_path / "mine.txt").write_text("mine")
        assert main(["export", "--model", "bundled", "--out", str(tmp_path), "--format", "torchscript"]) == 2
        assert "exists and is no export" in capsys.readouterr().err
        assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]

    def test_what_onnx_does_not_have(self, tmp_path):
        class Untraceable(torch.nn.Module):
            def forward(self, x):
                return (torch.linalg.eigvals(x[:, :, None] * x[:, None]).real,)

        with pytest.raises(ExportError, match="toy cannot be written as ONNX with torch"):
            BACK_ENDS["onnx"].write(part_of(Untraceable()), tmp_path / "toy.onnx")
        assert not list(tmp_path.iterdir())


def test_the_core_knows_no_agent():
    for file in Path(package.__file__).parent.glob("*.py"):
        assert not re.search(r"^\s*(from|import) (wm_gym\.(agents|envs)|stable_baselines3)", file.read_text(), re.M)


def test_a_traced_convolution_is_of_full_precision_on_every_device(tiny_model, tmp_path):
    file = tmp_path / "encoder.pt"
    encoder = next(part for part in model_parts(tiny_model) if part.name == "encoder")
    before = torch.backends.cudnn.allow_tf32
    TorchScript().write(encoder, file)
    assert torch.backends.cudnn.allow_tf32 == before
    graph = torch.jit.load(str(file)).inlined_graph
    convolutions = graph.findAllNodes("aten::_convolution", recurse=True)
    assert convolutions
    for node in convolutions:
        assert next(value for value in reversed(list(node.inputs()))).toIValue() is False  # allow_tf32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("back_end", ["torchscript", "tensorrt"])
def test_files_on_a_gpu_agree_with_the_model(kind, back_end, driving_spec, tmp_path):
    if back_end == "tensorrt":
        pytest.importorskip("tensorrt")
    model = model_of(kind, driving_spec).to("cuda")
    settings = ExportSettings(formats=(back_end,), repeats=1)
    result = export_parts(model_parts(model), model, tmp_path / "export", settings, progress=False)
    for file in result.manifest["files"]:
        assert file["device"].startswith("cuda")
        assert file["check"]["max_difference"] <= 1e-4


@torch.no_grad()
def test_a_part_is_what_its_name_says(tiny_model):
    """The eager parts themselves, which every file is compared with."""
    parts = {part.name: part for part in model_parts(tiny_model)}
    generator = torch.Generator().manual_seed(0)
    latent, memory, action = parts["step"].draw_inputs(3, generator)
    state = LatentState(latent, memory)
    imagined = tiny_model.imagine(state, action)
    outputs = LoadedModule(parts["step"].module, torch.device("cpu"))((latent, memory, action))
    expected = (*imagined.state, imagined.reward, imagined.continuation, tiny_model.features(imagined.state))
    for one, other in zip(outputs, expected, strict=True):
        assert torch.equal(one, other)
    for part in parts.values():
        inputs = part.draw_inputs(2, generator)
        given = zip((*inputs, *part.module(*inputs)), (*part.inputs, *part.outputs), strict=True)
        for tensor, spec in given:
            assert (tuple(tensor.shape), tensor.dtype) == ((2, *spec.shape), spec.dtype)
