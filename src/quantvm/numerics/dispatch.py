"""Which library computes a quantized operator in PyTorch, and where that library's kernels differ among themselves.

What they compute is in numerics.py.
"""

from __future__ import annotations

from .torch_engines import Engine, Rule


def conv_rule(engine: Engine, groups: int, symmetric_weights: bool, *, vnni: bool = True) -> Rule:
    """Returns which library's arithmetic PyTorch uses for conv2d under `engine`, on a CPU with or without AVX512-VNNI.

    Reference: ATen/native/quantized/cpu/OnednnUtils.h `should_use_onednn_quant`.
    """
    if engine == "x86":
        return "onednn" if vnni and groups <= 100 and symmetric_weights else "fbgemm"
    return engine


def linear_rule(engine: Engine) -> Rule:
    """Returns which library's arithmetic PyTorch uses for linear under `engine`."""
    return "fbgemm" if engine == "x86" else engine


def qnnpack_window(in_size: tuple[int, int], out_size: tuple[int, int]) -> tuple[int, int] | None:
    """Returns the window by which QNNPACK computes `adaptive_avg_pool2d`; None where PyTorch's own code does.

    QNNPACK takes images that windows of one size, side by side, cover, unless each is one pixel. Reference: torch
    aten/src/ATen/native/quantized/cpu/AdaptiveAveragePooling.cpp `enable_qnnpack_for_ada_avgpool2d`.
    """
    is_even = all(size % out == 0 for size, out in zip(in_size, out_size, strict=True))
    return (in_size[0] // out_size[0], in_size[1] // out_size[1]) if is_even and in_size != out_size else None


def onednn_avx2_refuses(in_channels: int, out_channels: int, groups: int) -> bool:
    """Returns whether oneDNN has no AVX2 kernel for a convolution, which its plain C++ code then computes.

    It has none for groups of channels that are no multiples of 4, but for depthwise convolutions.
    Reference: oneDNN src/cpu/x64/jit_uni_x8s8s32x_conv_kernel.cpp `init_conf`; measured on torch 2.13.
    """
    group_in, group_out = in_channels // groups, out_channels // groups
    return groups > 1 and (group_in, group_out) != (1, 1) and (group_in % 4 != 0 or group_out % 4 != 0)


def onednn_avx2_linear_cut(in_features: int) -> int | None:
    """Returns where oneDNN's AVX2 matrix product begins to pair products anew; None where pairs are the same anyway.

    It cuts more than 256 features in two halves, the first of ceil(K/2), which may be odd; from 768 on into blocks of
    384, which are even. Reference: oneDNN src/cpu/x64/gemm/gemm_driver.cpp `get_k_padd`; measured on torch 2.13 for K
    from 240 to 2305, 1 to 64 outputs, 1 to 40 rows, one and two threads.
    """
    half = (in_features + 1) // 2
    return half if 256 < in_features < 768 and half % 2 else None


def fbgemm_depthwise_saturates(
    channels: int, out_channels: int, groups: int, kernel: tuple[int, int], stride: tuple[int, int],
    padding: tuple[int, int], dilation: tuple[int, int],
) -> bool:  # fmt: skip
    """Returns whether FBGEMM runs this convolution in its depthwise kernel, which saturates pairs of taps to int16.

    Reference: FBGEMM src/FbgemmConv.cc ConvFastPath, src/FbgemmI8DepthwiseAvx2-inl.h; measured on torch 2.13.
    """
    return (
        groups == channels
        and out_channels in (groups, 2 * groups)
        and groups % 8 == 0
        and kernel[0] == kernel[1]
        and kernel[0] in (3, 5, 7)
        and all(s in (1, 2) for s in stride)
        and dilation == (1, 1)
        and padding == ((kernel[0] - 1) // 2, (kernel[1] - 1) // 2)
    )
