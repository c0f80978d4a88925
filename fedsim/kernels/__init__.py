"""The mathematics of many clients at once: losses and gradients of a block of models, one pass for all of them.

Everything here is about models and minibatches. Kernels know no algorithm, no channel and no worker: they are asked
for a gradient and do not know what becomes of it.
"""
