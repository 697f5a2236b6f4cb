"""torch and torchvision beside each other, whatever their builds."""

import logging
import subprocess
import sys
import warnings

import pytest
import torch

from quantvm.errors import ConfigError
from quantvm.torch_compat import import_torchvision, quantization_engine, quiet, quiet_torchao, torch_engines
from tests.quantized_modules import SmallNetwork, image, save_traced


def test_torchvision_imports_and_is_the_real_one():
    torchvision = import_torchvision()
    assert torchvision is sys.modules["torchvision"]
    assert import_torchvision() is torchvision
    assert hasattr(torchvision.models.quantization, "resnet18")


def test_torchvision_imports_after_a_plain_import_failed():
    code = (
        "import contextlib\n"
        "with contextlib.suppress(RuntimeError):\n"
        "    import torchvision\n"
        "from quantvm.torch_compat import import_torchvision\n"
        "print(import_torchvision().models.quantization.googlenet.__name__)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "googlenet", result.stderr


def test_a_quantized_program_is_loaded_without_a_word(tmp_path):
    path = save_traced(SmallNetwork(), image(1, 3, 19, 17), tmp_path / "small.pt")
    code = "import pathlib, sys, quantvm.frontend.torchscript.loading as l; l.load_script(pathlib.Path(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_torchao_is_imported_quietly_and_nothing_else_is_hidden(caplog):
    records = {
        "torchao": ("Failed to load /site/torchao/_C_mxfp8.so: Could not load this library", "another"),
        "torch.utils._pytree": ("<enum 'E'> is an Enum subclass and is now natively supported by", "another"),
    }
    with quiet_torchao():
        for name, messages in records.items():
            for message in messages:
                logging.getLogger(name).warning(message)
    assert caplog.messages == ["another", "another"]
    logging.getLogger("torchao").warning(records["torchao"][0])
    assert len(caplog.messages) == 3


def test_schemas_are_there_after_the_import():
    import_torchvision()
    assert torch._C._jit_get_schemas_for_operator("torchvision::nms")


def test_engines_are_those_of_torch():
    assert set(torch_engines()) == set(torch.backends.quantized.supported_engines) - {"none"}


def test_engine_is_set_inside_the_block_and_restored_even_after_an_error():
    before = torch.backends.quantized.engine
    other = next(name for name in torch_engines() if name != before)
    seen = []

    def fail():
        with quantization_engine(other):
            seen.append(torch.backends.quantized.engine)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == [other]
    assert torch.backends.quantized.engine == before


def test_engine_that_torch_lacks_is_named_with_those_it_has():
    with pytest.raises(ConfigError, match=r"'cudnn'.*supported: .*") as error, quantization_engine("cudnn"):
        pass
    assert all(name in str(error.value) for name in torch_engines())


@pytest.mark.parametrize(
    ("message", "category"),
    [
        ("torch.ao.quantization is deprecated and will be removed in 2.10.", DeprecationWarning),
        ("`torch.jit.trace` is deprecated. Please switch to `torch.compile`.", DeprecationWarning),
        ("Quantized dtypes torch.quint8, torch.qint8, torch.qint32 are deprecated and will be removed", UserWarning),
    ],
)
def test_known_deprecations_are_hidden(message, category):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with quiet():
            warnings.warn(message, category, stacklevel=1)
    assert not seen


def test_other_warnings_pass():
    with pytest.warns(UserWarning, match="something else"), quiet():
        warnings.warn("something else", UserWarning, stacklevel=1)
