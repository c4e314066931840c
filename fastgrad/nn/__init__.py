"""The pieces of a network: functions, layers and optimizers.

Begin with `functions`: input is validated, then a kernel computes. It imports the kernels and what
is below them.

All layers keep the same conventions, which `layers.Layer` documents method by method:

- What they take. ``forward`` takes an array_like of real numbers, of any shape unless the layer
  says otherwise; an arithmetic layer takes a second one, the loss takes the targets, and a layer
  that does something else while training takes ``train_flg``. ``backward`` takes the gradient with
  respect to the output, in the shape of the output.
- What they return. ``forward`` returns the output, ``backward`` the gradient with respect to the
  input, in the shape of the input; float32 if all arrays are float32, else float64.
- What they keep. A layer keeps what its backward pass needs from the last forward pass. Parameters,
  such as ``W``, are held by reference, so that an optimizer that updates them in place updates the
  layer. Their gradients, such as ``dW``, are attributes that the backward pass sets. Arguments are
  never changed.
- What they raise. `TypeError` for what holds no real numbers, or where labels are no integers;
  `ValueError` for shapes that do not fit together, and for labels or settings out of range;
  `RuntimeError` for a backward pass before the first forward pass.

There is one loss, `layers.SoftmaxWithLoss`: its ``forward`` takes scores and targets and returns
their mean loss, and its ``backward`` needs no argument.
"""
