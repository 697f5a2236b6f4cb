"""The rewriter of `main`: by itself it copies; what a pass says stands in the place of the rest."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax, tirx
from tvm.ir import assert_structural_equal
from tvm.relax.transform import CanonicalizeBindings

from quantvm.errors import CompileError, stage
from quantvm.qdq import attributes
from quantvm.qdq.rewriting import Rewriter, built_main, with_operands
from quantvm.qdq.verify import verify


def program() -> tvm.IRModule:
    """Returns a module of calls, tuples, items of tuples, constants and dynamic sizes."""
    n = tirx.Var("n", "int64")
    x, y = (relax.Var(name, relax.TensorType([n, 4], "float32")) for name in "xy")

    def body(b):
        both = b.emit(relax.op.concat([b.emit(relax.op.nn.relu(x)), y], axis=1))
        first = b.emit(relax.TupleGetItem(b.emit(relax.op.split(both, 2, axis=1)), 0))
        flat = b.emit(relax.op.reshape(first, relax.ShapeExpr([n * 4])))
        return relax.Tuple([flat, b.emit(relax.op.add(first, relax.const(np.float32(1)))), relax.const(np.float32(2))])

    return built_main([x, y], body).with_attr(attributes.ENGINE, "onnx")


def with_function() -> tvm.IRModule:
    """Returns a module that calls a function in TIR."""
    x, builder = relax.Var("x", relax.TensorType([4], "float32")), relax.BlockBuilder()
    return built_main([x], lambda b: b.emit_te(tvm.topi.exp, x), builder)


@pytest.mark.parametrize("module_of", [program, with_function])
def test_it_copies(module_of):
    module = module_of()
    copied = Rewriter(module).go()
    assert_structural_equal(CanonicalizeBindings()(copied), CanonicalizeBindings()(module))
    assert not copied["main"].same_as(module["main"])
    verify(copied)


def test_attributes_are_kept():
    assert attributes.engine_of(Rewriter(program()).go()) == "onnx"
    assert attributes.engine_of(Rewriter(with_function()).go(), "none") == "none"


def test_a_pass_says_what_stands_in_the_place_of_a_binding():
    x = relax.Var("x", relax.TensorType([4], "float32"))
    module = built_main([x], lambda b: b.emit(relax.op.nn.relu(b.emit(relax.op.nn.relu(x)))))

    class WithoutRelu(Rewriter):
        def bind(self, var, value):
            return self.read(value if isinstance(value, relax.Var) else value.args[0])

    assert_structural_equal(
        CanonicalizeBindings()(WithoutRelu(module).go()), CanonicalizeBindings()(built_main([x], lambda b: x))
    )


def test_functions_that_a_pass_does_not_keep_are_gone():
    class Exp(Rewriter):
        def keeps(self, function):
            return False

        def bind(self, var, value):
            return self.builder.emit(relax.op.exp(self.read(self.main.params[0])))

    after = Exp(with_function()).go()
    assert [str(v.name_hint) for v in after.functions] == ["main"]


def test_further_parameters_come_last():
    class Sum(Rewriter):
        def parameters(self):
            self.more = relax.Var("more", relax.TensorType([4], "float32"))
            return [*super().parameters(), self.more]

        def result(self, expr):
            return self.builder.emit(relax.op.add(self.read(expr), self.more))

    x, more = (relax.Var(name, relax.TensorType([4], "float32")) for name in ("x", "more"))
    before = built_main([x], lambda b: b.emit(relax.op.nn.relu(x)))
    expected = built_main([x, more], lambda b: b.emit(relax.op.add(b.emit(relax.op.nn.relu(x)), more)))
    assert_structural_equal(CanonicalizeBindings()(Sum(before).go()), CanonicalizeBindings()(expected))


def test_messages_name_the_binding_that_was_under_way():
    class Failing(Rewriter):
        def bind(self, var, value):
            raise KeyError("no rule")

    x = relax.Var("x", relax.TensorType([4], "float32"))
    module = built_main([x], lambda b: b.emit(relax.op.nn.relu(x), "layer1"))
    with (
        pytest.raises(CompileError, match=r"lowering failed at layer1 \(relax.nn.relu\)"),
        stage("lowering", CompileError),
    ):
        Failing(module).go()


def test_operands_in_tuples_are_replaced_too():
    x, y = (relax.Var(name, relax.TensorType([4], "float32")) for name in "xy")
    one = relax.const(np.float32(1))
    replaced = with_operands(relax.Tuple([x, relax.Tuple([x, one])]), lambda expr: y if expr.same_as(x) else expr)
    assert_structural_equal(replaced, relax.Tuple([y, relax.Tuple([y, one])]), map_free_vars=True)
