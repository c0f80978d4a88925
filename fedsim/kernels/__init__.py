"""The mathematics of many clients at once: losses and gradients of a block of models. It knows no algorithm."""
