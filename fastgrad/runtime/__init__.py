"""What runs kernels: the compile policy, programs on all threads, vectors, the threading layer.

Begin with `compile`, then `programs`. It imports nothing of the package outside this folder.
"""
