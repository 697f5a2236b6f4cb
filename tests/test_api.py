"""The functions of the library: their signatures are those of the options that they stand for."""

from __future__ import annotations

import inspect

import pytest
import typer.main

import quantvm
from quantvm.cli import app
from quantvm.options.option import documented, option, options_of, types_of

CONFIGS = {
    "evaluate": quantvm.RunConfig,
    "bench": quantvm.BenchConfig,
    "diff": quantvm.DiffConfig,
    "tune": quantvm.TuneConfig,
}
COMMANDS = {"evaluate": "run", "bench": "bench", "diff": "diff", "tune": "tune"}
OF_PYTHON = {"config", "progress", "observer", "command"}


@pytest.mark.parametrize("name", ["evaluate", "bench", "diff", "tune", "compile", "quantize", "load"])
def test_every_parameter_is_named(name):
    parameters = inspect.signature(getattr(quantvm, name)).parameters.values()
    kinds = {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
    assert parameters
    assert not [parameter for parameter in parameters if parameter.kind in kinds]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_options_are_those_of_the_configuration_and_of_the_command(name):
    function, config = getattr(quantvm, name), CONFIGS[name]
    parameters = {
        other: parameter for other, parameter in inspect.signature(function).parameters.items()
        if other not in OF_PYTHON
    }  # fmt: skip
    assert set(parameters) == set(options_of(config))
    required = {"diff": {"model": "m"}}.get(name, {})
    defaults = {other: parameter.default for other, parameter in parameters.items() if other not in required}
    assert config(**required, **defaults) == config(**required)
    command = typer.main.get_command(app).commands[COMMANDS[name]]
    assert {parameter.name for parameter in command.params} - {"as_json"} == set(parameters)


def test_the_options_of_compile_are_those_of_its_command():
    command = typer.main.get_command(app).commands["compile"]
    names = {parameter.name for parameter in command.params} - {"as_json"}
    assert names == set(options_of(quantvm.CompileConfig))
    shared = {"numerics", "engine", "target", "batch", "threads", "verify"}
    assert shared <= names
    assert shared <= set(inspect.signature(quantvm.compile).parameters)


@pytest.mark.parametrize("name", CONFIGS)
def test_help_tells_every_option(name):
    text = inspect.getdoc(getattr(quantvm, name))
    for option_name, declared in options_of(CONFIGS[name]).items():
        assert f"{option_name}: {declared.help}" in text


@pytest.mark.parametrize("config", [*CONFIGS.values(), quantvm.CompileConfig])
def test_every_option_has_help_and_a_type(config):
    types = types_of(config)
    for name, declared in options_of(config).items():
        assert len(declared.help) > 10
        assert name in types


def test_a_config_and_options_are_not_given_together():
    for name, config in CONFIGS.items():
        with pytest.raises(quantvm.QuantvmError, match=rf"{name}: got a config and also target; give one or the other"):
            getattr(quantvm, name)(config(**({"model": "m"} if name == "diff" else {})), target="native")


def test_an_option_is_declared_with_its_check():
    from quantvm.options.checks import at_least
    from quantvm.options.option import Options

    @documented
    class Group(Options):
        """A group."""

    assert options_of(Group) == {}
    field = option(1, "Of a test.", check=at_least(1))
    assert field.metadata["option"].check(0) == "got 0, expected at least 1"
    assert field.metadata["option"].label("some_name") == "--some-name"
