"""Programs and files that cannot be imported: every error says what to call instead, and where it is."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from quantvm.errors import ModelImportError, UnsupportedOpError
from quantvm.frontend import from_exported_program, import_model
from tests.quantized_modules import image

from ..torchao_patterns import keep_patterns
from .exported_cases import INT8, dequantized
from .pt2e import DYNAMIC, SqueezeExcite, quantizer

pytest.importorskip("torchao")
pytestmark = pytest.mark.filterwarnings("ignore")
decomposed = torch.ops.quantized_decomposed
X = image(2, 3, 8, 8)


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def exported(function, x: torch.Tensor = X, dynamic=None):
    return torch.export.export(Applied(function), (x,), dynamic_shapes=dynamic)


def test_float_models():
    with pytest.raises(ModelImportError, match=r"this is a float model\. Quantize it first: prepare_pt2e"):
        from_exported_program(exported(torch.relu))


def test_prepared_but_not_converted():
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

    float_program = torch.export.export(SqueezeExcite().eval(), (X,))
    prepared = prepare_pt2e(float_program.module(), quantizer("xnnpack"))
    prepared(X)
    with pytest.raises(ModelImportError, match=r"prepared but not converted; call .*convert_pt2e"):
        import_model(prepared, X)
    fake = exported(lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, 0, 255))
    with pytest.raises(ModelImportError, match=r"fake_quantize.*convert_pt2e"):
        from_exported_program(fake)


def test_reference_representation():
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    keep_patterns()

    x = image(2, 8)
    prepared = prepare_pt2e(torch.export.export(nn.Linear(8, 4).eval(), (x,)).module(), quantizer("xnnpack"))
    prepared(x)
    converted = convert_pt2e(prepared, use_reference_representation=True)
    with pytest.raises(ModelImportError, match="call convert_pt2e without use_reference_representation=True"):
        from_exported_program(torch.export.export(converted, (x,)))


def test_dynamic_quantization():
    def dynamic(x):
        scale, zero_point = decomposed.choose_qparams.tensor(x, -128, 127, 1e-6, torch.int8)
        q = decomposed.quantize_per_tensor.tensor(x, scale, zero_point, *INT8)
        return decomposed.dequantize_per_tensor.tensor(q, scale, zero_point, *INT8)

    with pytest.raises(ModelImportError, match=r"dynamically quantized .*is_dynamic=False.*Int8DynamicActivation"):
        from_exported_program(exported(dynamic))


def test_all_unsupported_operators_in_one_message():
    def odd(x):
        return torch.special.i0(dequantized(x)) + torch.special.i0(x) + torch.igamma(x, x)

    with pytest.raises(UnsupportedOpError) as caught:
        from_exported_program(exported(odd))
    message = str(caught.value)
    assert "2 unsupported ops" in message
    assert "aten::special_i0.default x2" in message
    assert "aten::igamma.default x1" in message
    assert "test_exported_errors.py:" in message, "the source line of the user's program"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ((float("nan"), 0, *INT8), "scale nan"),
        ((0.0, 0, *INT8), "scale 0.0"),
        ((-1.0, 0, *INT8), "scale -1.0"),
        ((1e-60, 0, *INT8), "scale 1e-60"),
        ((0.1, 1 << 40, *INT8), "zero point 1099511627776 lies outside of int8"),
        ((0.1, 0, -200, 127, torch.int8), r"range \[-200, 127\]"),
        ((0.1, 0, -32768, 32767, torch.int16), "quantized to int16, expected int8 or uint8"),
    ],
)
def test_bad_parameters_name_the_node_and_its_line(parameters, message):
    program = exported(lambda x: dequantized(torch.relu(decomposed.quantize_per_tensor.default(x, *parameters) + 0.0)))
    with pytest.raises(ModelImportError, match=message) as caught:
        from_exported_program(program)
    assert "quantize_per_tensor.default 'quantize_per_tensor' (" in str(caught.value)
    assert "test_exported_errors.py:" in str(caught.value)


def test_training_mode():
    dropped = exported(lambda x: nn.functional.dropout(dequantized(x), 0.5, training=True))
    with pytest.raises(ModelImportError, match=r"dropout.*is in training mode; call .*move_exported_model_to_eval"):
        from_exported_program(dropped)


def test_shapes_and_dtypes_of_inputs():
    free_width = exported(dequantized, dynamic=({3: torch.export.Dim("w")},))
    assert [str(size) for size in from_exported_program(free_width)["main"].params[0].ty.shape][3:] == ["n"]
    assert from_exported_program(free_width, batch="static")
    computed = exported(dequantized, dynamic=({3: 2 * torch.export.Dim("w")},))
    with pytest.raises(
        ModelImportError, match=r"dimension 3 of input 0 .* is dynamic: .*, and computed.*batch='static'"
    ):
        from_exported_program(computed)
    doubles = torch.export.export(Applied(lambda x: dequantized(x.float())), (X.double(),))
    with pytest.raises(ModelImportError, match=r"input 0 .* has dtype torch.float64, expected float32"):
        from_exported_program(doubles)
    program = exported(dequantized, dynamic=DYNAMIC)
    with pytest.raises(ModelImportError, match="example inputs: the model takes 1 inputs, got 2"):
        import_model(program, (X, X))


def test_files(tmp_path):
    good = tmp_path / "good.pt2"
    torch.export.save(exported(dequantized), str(good))
    assert import_model(good)
    cut = tmp_path / "cut.pt2"
    cut.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    without_end = tmp_path / "without_end.pt2"
    without_end.write_bytes(good.read_bytes()[:-200])
    torch.save({"weight": X}, tmp_path / "weights.pt")
    (tmp_path / "text.pt2").write_text("no program")
    (tmp_path / "empty.onnx").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "foreign.pt2", "w") as archive:
        archive.writestr("readme", "nothing")
    with zipfile.ZipFile(tmp_path / "damaged.pt2", "w") as archive, zipfile.ZipFile(good) as source:
        for name in source.namelist():
            archive.writestr(name, b"{}" if name.endswith("model.json") else source.read(name))
    for name, message in {
        "missing.pt2": "no such file",
        "": "is a folder, expected a file",
        "cut.pt2": "is truncated",
        "without_end.pt2": "is truncated",
        "weights.pt": "holds weights or a pickled object, no program",
        "text.pt2": "none of the formats known here",
        "empty.onnx": "is empty",
        "foreign.pt2": "ZIP archive that holds no program",
        "damaged.pt2": r"is no .pt2 file that PyTorch .* can load",
    }.items():
        with pytest.raises(ModelImportError, match=message):
            import_model(tmp_path / name)


def test_objects_that_are_no_programs():
    with pytest.raises(ModelImportError, match="pass example_inputs"):
        import_model(nn.Linear(2, 2))
    with pytest.raises(ModelImportError, match="expected an ExportedProgram"):
        from_exported_program(np.zeros(3))
