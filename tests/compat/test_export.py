"""Ways out and through: a generator of references exports to ONNX, synthesis blocks compile as one graph."""

import io

import pytest
import torch
from torch import nn

import gankernels as gk

FIR = gk.setup_filter([1, 3, 3, 1])


def stylegan2_block(ops, x, skip, weight, styles, rgb_weight, rgb_styles, bias, noise):
    """Upsampling modulated convolution with noise, bias and activation; to RGB; sum with the upsampled image."""
    x = ops.modulated_conv2d(
        x, weight, styles, noise=noise, bias=bias, act="lrelu", up=2, padding=1, resample_filter=FIR, flip_weight=False
    )
    rgb = ops.modulated_conv2d(x, rgb_weight, rgb_styles, demodulate=False)
    return x, rgb + ops.upfirdn2d(skip, FIR, up=2, padding=[2, 1, 2, 1], gain=4)


def stylegan3_block(ops, x, weight, styles, bias):
    """Modulated convolution, then an alias-free leaky ReLU that upsamples by 4 and downsamples by 2."""
    x = ops.modulated_conv2d(x, weight, styles, padding=2, input_gain=0.9)
    return ops.filtered_lrelu(x, fu=FIR, fd=FIR, b=bias, up=4, down=2, padding=4, clamp=256)


def arguments(requires_grad=False):
    torch.manual_seed(0)
    shapes = {
        "x": (2, 6, 4, 4),
        "skip": (2, 3, 4, 4),
        "weight": (6, 6, 3, 3),
        "styles": (2, 6),
        "rgb_weight": (3, 6, 1, 1),
        "rgb_styles": (2, 6),
        "bias": (6,),
        "noise": (2, 1, 8, 8),
    }
    return {name: torch.randn(shape).requires_grad_(requires_grad) for name, shape in shapes.items()}


@pytest.mark.parametrize("block", (stylegan2_block, stylegan3_block), ids=lambda block: block.__name__)
def test_synthesis_blocks_compile_as_one_graph(block):
    names = block.__code__.co_varnames[1 : block.__code__.co_argcount]

    def step(*tensors):
        y = block(gk, *tensors)
        return sum(t.square().sum() for t in (y if isinstance(y, tuple) else (y,)))

    gradients = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        tensors = [arguments(requires_grad=True)[name] for name in names]
        gradients.append([*(loss := function(*tensors)).reshape(1), *torch.autograd.grad(loss, tensors)])
    for eager, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-4)


class Generator(nn.Module):
    """Latents to images by references alone."""

    def __init__(self):
        super().__init__()
        given = arguments()
        self.weight, self.rgb_weight, self.bias = (nn.Parameter(given[n]) for n in ("weight", "rgb_weight", "bias"))
        self.affine = nn.Linear(6, 12)
        for name in ("x", "skip", "noise"):
            self.register_buffer(name, given[name])

    def forward(self, z):
        styles, rgb_styles = self.affine(gk.reference.pixel_norm(z)).chunk(2, dim=1)
        x = stylegan3_block(gk.reference, self.x, self.weight, styles, self.bias)[..., :4, :4]
        block = (x, self.skip, self.weight, styles, self.rgb_weight, rgb_styles, self.bias, self.noise)
        return stylegan2_block(gk.reference, *block)[1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_generator_of_references_exports_to_onnx():
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from onnx.reference import ReferenceEvaluator

    generator, z, file = Generator().eval(), torch.randn(2, 6), io.BytesIO()
    program = torch.onnx.export(generator, (z,), dynamo=True, verbose=False)
    program.save(file)
    model = onnx.load_from_string(file.getvalue())
    onnx.checker.check_model(model)
    (images,) = ReferenceEvaluator(model).run(None, {model.graph.input[0].name: z.numpy()})
    torch.testing.assert_close(torch.from_numpy(images), generator(z), rtol=1e-3, atol=1e-4)
