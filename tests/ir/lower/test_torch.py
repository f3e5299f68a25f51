"""PyTorch modules, exported programs and .pt2 files, where PyTorch is installed (joulec[torch])."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from joulec.errors import InputError
from joulec.ir.lower import lower
from joulec.ir.runner import LocalRunner

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class Net(torch.nn.Module):  # type: ignore[misc,name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2)

    def forward(self, image: Any) -> Any:
        return self.head(torch.relu(self.norm(self.conv(image))).mean((2, 3)))


class Two(torch.nn.Module):  # type: ignore[misc,name-defined]
    def forward(self, a: Any, b: Any) -> Any:
        return {"sum": a + b, "product": a * b}


@pytest.fixture(scope="module")
def program() -> Any:
    torch.manual_seed(0)
    batch = torch.export.Dim("batch", min=1, max=64)
    return torch.export.export(Net().eval(), (torch.randn(2, 3, 8, 8),), dynamic_shapes={"image": {0: batch}})


def test_a_module_with_example_inputs() -> None:
    lowered = lower(Net(), example_inputs=(torch.randn(1, 3, 8, 8),))
    assert lowered.parity is not None and max(lowered.parity.outputs.values()) < 1e-5
    assert [str(value.shape) for value in lowered.module.inputs()] == ["[1,3,8,8]"]


def test_a_module_without_example_inputs_says_what_is_missing() -> None:
    with pytest.raises(InputError, match="needs example_inputs"):
        lower(Net())


def test_a_dict_of_outputs_keeps_its_keys_in_their_order() -> None:
    lowered = lower(Two(), example_inputs=(torch.randn(2, 3), torch.randn(2, 3)))
    assert [value.name for value in lowered.module.graph.outputs] == ["sum", "product"]


def test_a_symbolic_batch_survives_under_a_name_that_people_know(program: Any) -> None:
    module = lower(program).module
    assert [str(value.shape) for value in (*module.inputs(), *module.graph.outputs)] == ["[batch,3,8,8]", "[batch,2]"]


def test_a_pt2_file_is_lowered_in_a_child_and_equals_the_program(program: Any, tmp_path: Path) -> None:
    torch.export.save(program, tmp_path / "net.pt2")
    (tmp_path / "net.pt2").rename(tmp_path / "net.bin")
    lowered = lower(tmp_path / "net.bin")
    assert lowered.module.origin.format == "torch"
    image = np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(np.float32)
    with LocalRunner() as runner:
        (found,) = runner.run(runner.load(lowered.module), {"image": image}).values()
    np.testing.assert_allclose(found, program.module()(torch.from_numpy(image)).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_file_that_pickles_its_weights_cannot_run_code(program: Any, tmp_path: Path) -> None:
    """torch.export.load would unpickle a weight whose configuration says `use_pickle`; the child makes it weights-only."""
    import json
    import pickle
    import zipfile

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "owned",))

    torch.export.save(program, tmp_path / "net.pt2")
    with zipfile.ZipFile(tmp_path / "net.pt2") as clean, zipfile.ZipFile(tmp_path / "evil.pt2", "w") as evil:
        for name in clean.namelist():
            data = clean.read(name)
            if name.endswith("weights_config.json"):
                config = json.loads(data)
                for weight in config["config"].values():
                    weight["use_pickle"] = True
                data = json.dumps(config).encode()
            elif "/weights/weight_" in name:
                data = pickle.dumps(Evil())
            evil.writestr(name, data)
    with pytest.raises(InputError):
        lower(tmp_path / "evil.pt2")
    assert not (tmp_path / "owned").exists()
