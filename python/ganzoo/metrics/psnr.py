"""How close images are to given ones."""


def psnr(images, wanted):
    """10 log₁₀(2²/MSE) in dB, (N,): the peak signal-to-noise ratio of each image (N, C, H, W), whose pixels lie in [−1, 1]."""
    return 10 * (4 / (images - wanted).square().flatten(1).mean(1)).log10()
