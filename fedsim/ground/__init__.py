"""What everything stands on: flat vectors, trees of tensors, addressed random numbers, whole files, the console.

It knows no part of a run: no data set, no model of fedsim's, no algorithm. Whatever is here would serve another
program as well.
"""
