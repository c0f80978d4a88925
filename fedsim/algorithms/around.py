"""The old path of ``fedsim.algorithms.kit.around``, kept for users' algorithms; fedsim uses the new one."""

from fedsim.algorithms.kit.around import Around, innermost, name_of, noisy_part, with_noise, within

__all__ = ["Around", "innermost", "name_of", "noisy_part", "with_noise", "within"]
