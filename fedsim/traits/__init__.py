"""What the parts of a run say of themselves (whether a layer is unbiased, which hooks an algorithm has), and whether
it is true; and what a round of a private method lets out. It knows no part itself: parts import their words from here.

Users write ``traits = Traits(...)``; the words lie in ``words``, how they are read and checked in ``declared``.
"""

from fedsim.traits.words import HOOKS, METHODS, Hook, LayerTraits, RuleTraits, Traits, Words

__all__ = ["HOOKS", "METHODS", "Hook", "LayerTraits", "RuleTraits", "Traits", "Words"]
