"""What a ``_target_`` names, found out before it is called: only what makes a part of the expected kind is called.

A class fits a class that it extends, and a protocol whose methods it has, with their arguments. A function fits by the
class that its return annotation names. So a wrong or hostile name (``os.system``) is refused and never called.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from types import UnionType
from typing import Any, Union, get_args, get_origin

from fedsim.assembly.problems import did_you_mean
from fedsim.errors import InputError, first_line
from fedsim.fields import hints_of, methods
from fedsim.ground.own_code import FAILURES, error_line, place

_NO_PART = sys.stdlib_module_names | {"numpy", "torch"}
"""Packages whose classes follow no protocol of fedsim's, whatever their methods are called: ``str`` has a ``split``."""


def imported(target: Any, path: str, what: str = "an object") -> Any:
    """What a dotted path names; its module is imported, nothing is called.

    Args:
        target: the dotted path.
        path: where it stands, for messages.
        what: the kind of thing that is meant.

    Raises:
        InputError: there is none, or its module cannot be imported.
    """
    module, _, name = str(target).rpartition(".")
    must = f"{path} must be the dotted path of {what}, got {target!r}; "
    if not module:
        raise InputError(f"{must}for example my_module.{'MyClass' if 'class' in what else 'name'}")
    try:
        home = import_module(module)
    except (ImportError, SyntaxError, ValueError) as error:
        where = _hidden(module) or " (installed, or a file of the current folder?)"
        raise InputError(f"{must}{first_line(error)}{where}") from error
    except FAILURES as error:  # user code: any type
        where = path.removesuffix("._target_")
        raise InputError(f"{where}: {place(error) or module}: {error_line(error)}") from error
    found = getattr(home, name, None)
    if found is None:
        lacks = f"{module} has no such {what.partition(' ')[2]}{_hidden(module)}"
        raise InputError(f"{must}{did_you_mean(name, vars(home))}{lacks}")
    return found


def _hidden(module: str) -> str:
    """What to do where Python's own module was found in the place of a user's file of that name; else ""."""
    top = module.partition(".")[0]
    if top not in sys.stdlib_module_names:
        return ""
    file = getattr(sys.modules.get(top), "__file__", None) or "built in"
    return f"; {top} is a module of Python's own ({file}), found before a file of that name of yours: rename yours"


def located(target: Any, path: str) -> Callable[..., Any]:
    """The class or function that ``_target_`` names; its module is imported, nothing is called.

    Raises:
        InputError: there is none, or its module cannot be imported.
    """
    found = imported(target, f"{path}._target_", "a class or function")
    module, _, name = str(target).rpartition(".")
    must = f"{path}._target_ must be the dotted path of a class or function, got {target!r}; "
    if not callable(found) or (hasattr(found, "forward") and not inspect.isclass(found)):  # a module computes outputs
        do = f"{name} is an object of {type(found).__name__}: write a function that returns it"
        raise InputError(f"{must}{module} has no such class or function; {do}")
    try:
        inspect.signature(found)
    except ValueError as error:
        raise InputError(f"{must}Python cannot tell its arguments: write a function that calls it") from error
    return found  # type: ignore[no-any-return]


def holds_part(kind: Any) -> bool:
    """Whether an annotation asks for a part: a class or protocol that is not Python's own, as ``dict`` is."""
    base = get_origin(kind) or kind
    return inspect.isclass(base) and base.__module__.partition(".")[0] not in sys.stdlib_module_names


def made_by(found: Callable[..., Any]) -> tuple[Any, ...]:
    """The classes of which a call of this class or function returns an object; () where a function does not say.

    >>> made_by(dict)
    (<class 'dict'>,)
    >>> def factory() -> int | str: ...
    >>> made_by(factory)
    (<class 'int'>, <class 'str'>)
    """
    if isinstance(found, functools.partial):
        return made_by(found.func)
    if inspect.isclass(found):
        return (found,)
    hints = hints_of(found if inspect.isroutine(found) else type(found).__call__)
    returned = hints.get("return", Any)
    choices = get_args(returned) if get_origin(returned) in (Union, UnionType) else (returned,)
    classes = tuple(get_origin(choice) or choice for choice in choices)
    return classes if all(inspect.isclass(one) and one is not Any for one in classes) else ()


def fits(found: Callable[..., Any], kind: Any) -> bool:
    """Whether all that a class or function makes is of this class, or has the methods of this protocol."""
    made = made_by(found)
    return bool(made) and all(not lacks(cls, kind) for cls in made)


def lacks(cls: type, kind: Any) -> list[str]:
    """What keeps the objects of a class from being of a kind: methods that it has not, or with other arguments."""
    base = get_origin(kind) or kind
    if not getattr(base, "_is_protocol", False):
        return [] if issubclass(cls, base) else [f"the base class {base.__name__}"]
    names = [*methods(base), *(["__call__"] if "__call__" in vars(base) else [])]
    if cls.__module__.partition(".")[0] in _NO_PART:
        return names
    return [text for name in names for text in _lacks_method(cls, base, name)]


def _lacks_method(cls: type, protocol: type, name: str) -> Iterator[str]:
    arguments = list(inspect.signature(getattr(protocol, name)).parameters)[1:]
    there = next((vars(home)[name] for home in cls.__mro__ if name in vars(home)), None)
    if there is None:
        yield name
        return
    own = () if isinstance(there, (staticmethod, classmethod)) else (None,)
    method = getattr(cls, name) if not own else there
    if not inspect.isfunction(inspect.unwrap(method)) and own:  # a property, say: known when it is built
        return
    try:
        inspect.signature(method).bind(*own, *arguments)
    except TypeError:
        yield f"{name}({', '.join(arguments)})"
    except ValueError:  # written in C, without a signature
        return


def expected(kind: Any) -> str:
    """What a class must be to be of a kind, in words."""
    base = get_origin(kind) or kind
    names = methods(base) if getattr(base, "_is_protocol", False) else []
    must = f"a class with the methods {', '.join(names)}" if names else "that class"
    return f"{must} ({base.__module__}.{base.__name__})"


def require_makes(found: Callable[..., Any], kinds: tuple[Any, ...], where: str, name: Any) -> None:
    """Raise InputError unless what a class or function makes is of one of these kinds.

    Args:
        found: what ``_target_`` names.
        kinds: classes and protocols.
        where: the place of ``_target_``, for messages.
        name: what stands there.
    """
    if any(fits(found, kind) for kind in kinds):
        return
    made = made_by(found)
    if not made:
        must = f"{expected(kinds[0])} or a function annotated to return one"
        raise InputError(f"{where} must be {must}, got {name!r}, which does not say what it returns")
    near = min(kinds, key=lambda kind: len(lacks(made[0], kind)))
    without = f" without {', '.join(lacks(made[0], near))}" if getattr(near, "_is_protocol", False) else ""
    raise InputError(f"{where} must be {expected(near)}, got {name!r}{without}")
