"""Modules at the paths of earlier versions, for configurations and users' own code that name them.

``fedsim.__path__`` ends here, so that ``fedsim.engine.config`` is ``engine/config.py`` of this folder. Nothing inside
fedsim uses them; what they hold lies where they import it from.
"""
