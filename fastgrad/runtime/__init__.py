"""What runs kernels: the compile policy, steps on all threads, vectors, the threading layer.

Begin with `compile`, then `steps`. It imports nothing of the package outside this folder.
"""
