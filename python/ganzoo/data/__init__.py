"""Sources of images: each a function that returns float32 tensors (N, C, H, W) with pixels in [−1, 1]."""
