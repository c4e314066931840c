"""The central differences of a network's loss, evaluated as changes of the loss.

Begin with `two_layers`, the case of chapter 4; `any_depth` is for all else.
"""
