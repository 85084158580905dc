"""One file per op, each read top to bottom: reference, Triton kernels, launch, fake and derivatives, public function."""
