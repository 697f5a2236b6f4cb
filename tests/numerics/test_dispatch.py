"""Which library computes what, by which formula: both sides of every limit, for every kind of CPU."""

from __future__ import annotations

import pytest

from quantvm.choices import ENGINES
from quantvm.numerics import dispatch
from quantvm.numerics.activations import ACTIVATIONS
from quantvm.numerics.dispatch import AverageChoice, Contraction, ContractionChoice
from quantvm.numerics.onednn_amx import ConvGeometry, LinearGeometry
from quantvm.numerics.pytorch import Cpu, PyTorch
from tests.numerics.test_numerics import DEPTHWISE

AVX2, AVX512 = Cpu(avx512=False, vnni=False), Cpu(avx512=True, vnni=False)
VNNI, AMX = Cpu(), Cpu(onednn_amx=True)


def conv(in_channels: int, out_channels: int, groups: int = 1, kernel: int = 3, padding: int = 1) -> ConvGeometry:
    return ConvGeometry.of_window(
        (9, 10), (in_channels, out_channels), kernel=(kernel, kernel), stride=(1, 1), padding=(padding,) * 4,
        dilation=(1, 1), groups=groups,
    )  # fmt: skip


def choice(
    engine: str, geometry: ConvGeometry | LinearGeometry, cpu: Cpu, dtype: str = "uint8", symmetric: bool = True
):
    return dispatch.contraction_choice(Contraction(geometry, dtype, symmetric), PyTorch(engine, 1, cpu))


FBGEMM, SATURATING = ContractionChoice("fbgemm"), ContractionChoice("fbgemm", "window")
ONEDNN, COMBINED = ContractionChoice("onednn"), ContractionChoice("onednn", separate_up_to=0)
BY_TAPS = ContractionChoice("onednn", "taps", separate_up_to=0)
SKIPPING = ContractionChoice("onednn", "taps", skips_padding=True, separate_up_to=0)
DENSE, DEPTH, HUNDRED, MORE = conv(16, 24), conv(16, 16, 16), conv(400, 400, 100), conv(404, 404, 101)


@pytest.mark.parametrize(
    ("engine", "geometry", "cpu", "expected"),
    [
        ("fbgemm", DENSE, VNNI, FBGEMM),
        ("fbgemm", DENSE, AVX512, SATURATING),
        ("fbgemm", DEPTH, VNNI, SATURATING),
        ("fbgemm", conv(1, 1), VNNI, FBGEMM),
        ("fbgemm", LinearGeometry(40, 9), VNNI, FBGEMM),
        ("fbgemm", LinearGeometry(40, 9), AVX2, SATURATING),
        ("x86", DENSE, VNNI, ONEDNN),
        ("x86", DENSE, AVX2, SATURATING),
        ("x86", HUNDRED, VNNI, ONEDNN),
        ("x86", MORE, VNNI, FBGEMM),
        ("x86", LinearGeometry(40, 9), VNNI, FBGEMM),
        ("onednn", DENSE, AVX512, SKIPPING),
        ("onednn", conv(16, 24, padding=0), AVX2, BY_TAPS),
        ("onednn", DEPTH, AVX2, COMBINED),
        ("onednn", conv(16, 68, 4), AVX2, ContractionChoice("onednn", divides=True)),
        ("onednn", conv(16, 68, 4), VNNI, ONEDNN),
        ("onednn", LinearGeometry(257, 9), VNNI, ONEDNN),
        ("onednn", LinearGeometry(257, 9), AVX2, ContractionChoice("onednn", "taps", cut=129, separate_up_to=0)),
        ("onednn", LinearGeometry(256, 9), AVX512, BY_TAPS),
        ("onednn", LinearGeometry(256, 256), AMX, ContractionChoice("onednn", separate_up_to=1)),
        ("onednn", DEPTH, AMX, ContractionChoice("onednn", separate_up_to=2**31 - 1)),
        ("qnnpack", DENSE, AVX2, ContractionChoice("qnnpack")),
        ("qnnpack", LinearGeometry(40, 9), AMX, ContractionChoice("qnnpack")),
    ],
)
def test_contractions_of_unsigned_activations(engine, geometry, cpu, expected):
    assert choice(engine, geometry, cpu) == expected


def test_contractions_of_signed_activations_and_of_asymmetric_weights():
    assert choice("onednn", DENSE, AVX2, "int8") == COMBINED
    assert choice("onednn", LinearGeometry(257, 9), AVX2, "int8") == COMBINED
    assert choice("onednn", DENSE, VNNI, "int8") == ONEDNN
    assert choice("x86", DENSE, VNNI, symmetric=False) == FBGEMM
    assert choice("onednn", DENSE, VNNI, symmetric=False) == ONEDNN


def test_padding_on_any_side_is_skipped():
    for padding in ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)):
        geometry = ConvGeometry.of_window(
            (9, 9), (16, 24), kernel=(3, 3), stride=(1, 1), padding=padding, dilation=(1, 1), groups=1
        )
        assert choice("onednn", geometry, AVX2) == SKIPPING


def test_scales_are_separate_up_to_a_number_of_images():
    assert all(ONEDNN.has_separate_scales(rows) for rows in (1, 1000))
    assert not COMBINED.has_separate_scales(1)
    limited = ContractionChoice("onednn", separate_up_to=7)
    assert [limited.has_separate_scales(rows) for rows in (6, 7, 8)] == [True, True, False]


@pytest.mark.parametrize(
    ("features", "cut"),
    [
        (1, None), (255, None), (256, None), (257, 129), (258, 129), (259, None), (260, None), (261, 131),
        (765, 383), (766, 383), (767, None), (768, None), (769, None), (770, None), (1025, None),
    ],
)  # fmt: skip
def test_where_onednns_matrix_product_restarts_its_pairs(features, cut):
    assert dispatch.onednn_avx2_linear_cut(features) == cut


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"padding": (2, 2)}, {"stride": (2, 1)}, {"stride": (1, 3)}, {"stride": (3, 1)}, {"dilation": (1, 2)},
        {"dilation": (2, 1)}, {"kernel": (5, 5)}, {"kernel": (5, 5), "padding": (2, 2)}, {"padding": (1, 0)},
        {"padding": (0, 1)}, {"out_channels": 32}, {"out_channels": 48}, {"groups": 8, "out_channels": 16},
        {"channels": 12, "out_channels": 12, "groups": 12}, {"channels": 4, "out_channels": 4, "groups": 4},
        {"kernel": (3, 5), "padding": (1, 2)}, {"kernel": (2, 2), "padding": (0, 0)},
        {"kernel": (6, 6), "padding": (2, 2)}, {"kernel": (7, 7), "padding": (3, 3)},
        {"kernel": (8, 8), "padding": (3, 3)}, {"kernel": (1, 1), "padding": (0, 0)},
    ],
    ids=str,
)  # fmt: skip
def test_where_fbgemms_depthwise_kernel_runs(changes):
    plain = {
        "channels": 16, "out_channels": 16, "groups": 16, "kernel": (3, 3), "stride": (1, 1), "padding": (1, 1),
        "dilation": (1, 1),
    }  # fmt: skip
    taken = (
        {}, {"stride": (2, 1)}, {"kernel": (5, 5), "padding": (2, 2)}, {"out_channels": 32},
        {"kernel": (7, 7), "padding": (3, 3)},
    )  # fmt: skip
    assert dispatch.fbgemm_depthwise_saturates(**{**plain, **changes}) == (changes in taken)


def test_where_fbgemms_depthwise_kernel_was_measured_to_run():
    assert [dispatch.fbgemm_depthwise_saturates(*geometry) for geometry in DEPTHWISE] == [True] * 4 + [False] * 9


# ------------------------------------------------------------------ pools and means

ANY = [(engine, dtype) for engine in ENGINES for dtype in ("uint8", "int8")]


@pytest.mark.parametrize(("engine", "dtype"), ANY)
def test_what_only_qnnpack_computes_in_another_way(engine, dtype):
    pytorch, is_qnnpacks = PyTorch(engine, 1, AVX2), (engine, dtype) == ("qnnpack", "uint8")
    assert dispatch.max_pool2d_is_qnnpacks(pytorch, dtype, ceil_mode=False) == is_qnnpacks
    assert not dispatch.max_pool2d_is_qnnpacks(pytorch, dtype, ceil_mode=True)
    assert dispatch.add_is_qnnpacks(pytorch, dtype, one_shape=True) == is_qnnpacks
    assert not dispatch.add_is_qnnpacks(pytorch, dtype, one_shape=False)
    unary = {name for name in ACTIVATIONS if dispatch.unary_is_qnnpacks(pytorch, name, dtype)}
    assert unary == ({"hardswish", "hardsigmoid", "sigmoid"} if is_qnnpacks else set())

    def formulas(**options: bool) -> list[str]:
        pools = dispatch.avg_pool2d_choice(pytorch, dtype, ceil_mode=False, **options)
        adaptive = dispatch.adaptive_avg_pool2d_choice(pytorch, dtype, (4, 6), (2, 3), **options)
        return [pools.formula, adaptive.formula]

    assert formulas(channels_last=True) == (["qnnpack"] * 2 if is_qnnpacks else ["channels_last"] * 2)
    assert formulas(channels_last=False) == (["qnnpack"] * 2 if is_qnnpacks else ["contiguous"] * 2)
    means = [
        dispatch.mean_choice(pytorch, dtype, axes, rank, contiguous=True).formula
        for axes, rank in (((2, 3), 4), ((-2, -1), 4), ((2, 3), 5), ((1, 2), 4), ((1, 2, 3), 4))
    ]
    assert means == ["qnnpack" if is_qnnpacks else "contiguous", "contiguous", "floats", "floats", "contiguous"]


def test_the_vectors_of_average_pools():
    for cpu, channels in ((AVX2, 8), (AVX512, 16), (VNNI, 16)):
        pytorch = PyTorch("fbgemm", 1, cpu)
        assert dispatch.avg_pool2d_choice(pytorch, "uint8", ceil_mode=False, channels_last=True) == AverageChoice(
            "channels_last", channels
        )
        assert dispatch.adaptive_avg_pool2d_choice(
            pytorch, "uint8", (4, 6), (2, 3), channels_last=True
        ) == AverageChoice("channels_last", 8)
    qnnpack = PyTorch("qnnpack", 1, AVX2)
    assert dispatch.avg_pool2d_choice(qnnpack, "uint8", ceil_mode=True, channels_last=True).vec_channels == 8


@pytest.mark.parametrize(
    ("in_size", "out_size", "window"),
    [
        ((4, 6), (2, 3), (2, 2)), ((4, 6), (1, 1), (4, 6)), ((4, 6), (4, 2), (1, 3)), ((4, 6), (4, 6), None),
        ((4, 6), (3, 3), None), ((4, 6), (2, 4), None), ((2, 2), (4, 4), None),
    ],
)  # fmt: skip
def test_windows_of_qnnpacks_adaptive_pool(in_size, out_size, window):
    assert dispatch.qnnpack_window(in_size, out_size) == window
    found = dispatch.adaptive_avg_pool2d_choice(PyTorch("qnnpack"), "uint8", in_size, out_size, channels_last=False)
    assert found == (AverageChoice("contiguous") if window is None else AverageChoice("qnnpack", window=window))


def test_means_of_strided_tensors_are_computed_in_floats():
    assert dispatch.mean_choice(PyTorch("fbgemm"), "uint8", (2, 3), 4, contiguous=False) == AverageChoice("floats")


def test_concatenations_of_integers():
    vectorised = [
        (rank, axis, channels_last)
        for rank in (3, 4, 5) for axis in (-3, 0, 1, 2) for channels_last in (False, True)
        if dispatch.concat_is_vectorised(rank, axis, channels_last=channels_last)
    ]  # fmt: skip
    assert vectorised == [(4, 1, True)]
