"""Under the names that existing code imports: one file per code base, `install()` in each.

    import gankernels.compat.stylegan3
    gankernels.compat.stylegan3.install()           # torch_utils.ops.bias_act and its siblings, from now on

Nothing is patched that is not named by the file, and only the names of `install()` are answered for.
"""
