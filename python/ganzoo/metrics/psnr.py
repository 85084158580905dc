"""How close images are to given ones."""


def psnr(images, wanted):
    """10 log₁₀(2²/MSE) in dB: the peak signal-to-noise ratio of images (N, C, H, W) whose pixels lie in [−1, 1].

    The mean square is taken over all of them, as if they were the patches of one image: a mean of their ratios would say how flat the
    flattest ones are.
    """
    return 10 * (4 / (images - wanted).square().mean()).log10()
