"""The fast deformable convolution is torchvision's: values and every gradient, in double precision."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import deform_conv2d as torchvision_deform_conv2d

from dynamask.ops.deform import DeformConv2d, deform_conv2d, deform_conv2d_at_cells, sampled_deform_conv2d

torch.set_num_threads(1)


def problem(groups: int, size: tuple[int, int], kernel: tuple[int, int], reach: float, seed: int = 0) -> list:
    """Input, offset, weight and bias in double precision that ask for gradients."""
    generator = torch.Generator().manual_seed(seed)
    taps = kernel[0] * kernel[1]
    shapes = [(2, 4, *size), (2, 2 * groups * taps, *size), (3, 4, *kernel), (3,)]
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    tensors[1] *= reach
    return [tensor.requires_grad_() for tensor in tensors]


def values_and_gradients(function, tensors: list) -> list:
    out = function(*tensors)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=out.dtype)
    return [out.detach(), *torch.autograd.grad(out, tensors, cotangent)]


CASES = [
    (groups, size, (3, 3), reach)
    for groups in (1, 2, 4)
    for size in ((5, 7), (1, 1), (1, 6), (4, 1))
    for reach in (0.3, 1.0, 20.0)
]


@pytest.mark.parametrize(
    ("groups", "size", "kernel", "reach"), [*CASES, *((2, (6, 5), kernel, 1.0) for kernel in ((1, 1), (3, 1), (5, 3)))]
)
def test_equals_torchvision(groups, size, kernel, reach):
    tensors = problem(groups, size, kernel, reach)
    padding = (kernel[0] // 2, kernel[1] // 2)
    ours = values_and_gradients(sampled_deform_conv2d, tensors)
    theirs = values_and_gradients(lambda *t: torchvision_deform_conv2d(*t, padding=padding), tensors)
    for name, mine, reference in zip(("value", "input", "offset", "weight", "bias"), ours, theirs):
        torch.testing.assert_close(mine, reference, atol=1e-9, rtol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    assert ours[0].abs().max() > 0


def test_samples_half_over_the_border_fade_to_zero():
    ones, weight = torch.ones(1, 1, 1, 3, dtype=torch.float64), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    offset = torch.zeros(1, 2, 1, 3, dtype=torch.float64)
    offset[0, 1] = torch.tensor([-0.25, 0.5, 0.75])  # Δx; the pair is (Δy, Δx)
    assert sampled_deform_conv2d(ones, offset, weight)[0, 0, 0].tolist() == pytest.approx([0.75, 1.0, 0.25])
    offset[0, 0] = 5.0
    assert sampled_deform_conv2d(ones, offset, weight).abs().max() == 0


def test_without_offsets_it_is_a_convolution():
    x, offset, weight, bias = problem(1, (6, 5), (3, 3), 0.0)
    for b in (bias, None):
        expected = F.conv2d(x, weight, b, padding=1)
        torch.testing.assert_close(sampled_deform_conv2d(x, offset, weight, b), expected, atol=1e-12, rtol=0)


def test_no_region_gives_an_empty_output():
    layer = DeformConv2d(4, 4, 2)
    out = layer(torch.zeros(0, 4, 8, 8), torch.zeros(0, layer.offset_channels, 8, 8))
    assert out.shape == (0, 4, 8, 8)


def test_layer_names_its_offset_channels_and_refuses_groups_that_do_not_divide():
    layer = DeformConv2d(8, 6, offset_groups=4)
    assert layer.offset_channels == 2 * 4 * 9
    x, offset = torch.randn(2, 8, 5, 5), torch.randn(2, 72, 5, 5)
    expected = torchvision_deform_conv2d(x, offset, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(layer(x, offset), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="not divisible by offset_groups=3"):
        DeformConv2d(8, 6, offset_groups=3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_accelerator_equals_cpu():
    tensors = problem(2, (5, 7), (3, 3), 1.0)
    ours = values_and_gradients(deform_conv2d, tensors)
    moved = [tensor.detach().cuda().requires_grad_() for tensor in tensors]
    out = deform_conv2d(*moved)
    torch.testing.assert_close(out.cpu(), ours[0], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("size", "count"), [(28, 700), (28, 784), (28, 3), (56, 1254), (56, 1570), (112, 2509)])
def test_the_traced_operator_at_listed_cells_gives_the_same_values(monkeypatch, size, count):
    torch.manual_seed(0)
    cells = torch.stack([torch.randperm(size * size)[:count].sort().values for _ in range(2)])
    maps, offset = torch.randn(2, 4, size, size).double(), torch.randn(2, 36, count).double() * 3
    weight, bias = torch.randn(6, 4, 3, 3).double(), torch.randn(6).double()
    expected = deform_conv2d_at_cells(maps, offset, weight, bias, cells)
    monkeypatch.setattr(torch.jit, "is_tracing", lambda: True)
    found = deform_conv2d_at_cells(maps, offset, weight, bias, cells)
    torch.testing.assert_close(found, expected)
