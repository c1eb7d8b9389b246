"""Open parts of the configuration: a class or function by its import path, `_target_`, and its options.

Nothing here names any of them. A component's own signature says which options there are and, by its annotations, what
they may be; an interface (`fedser.config.interfaces`) says what it must offer to be used as an attack, a model, ….
"""

import contextlib
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from pydantic import PydanticUserError

from fedser.config.schema import Value, parse, shown
from fedser.errors import FedserError, InputError, nearest

OF_HYDRA = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")
_held: set[type[Value]] = set()  # pydantic makes a type that nobody holds anew, which is most of a check


@dataclass(frozen=True)
class Component:
    """A `_target_` node.

    key: where it stands in the configuration ("attack"), for messages.
    name: its own name, that of its file unless it says otherwise ("pgd").
    node: the class or function (`_target_`) and its options, plain values; without `_target_` it is the component that
        does nothing, as in `attack=none`, and builds None.
    """

    key: str
    name: str
    node: dict[str, Any]

    def __bool__(self) -> bool:
        return "_target_" in self.node

    @property
    def target(self) -> str:
        """The import path."""
        return self.node["_target_"]

    @property
    def options(self) -> dict[str, Any]:
        """Its settings, as YAML has them."""
        return {key: value for key, value in self.node.items() if key not in OF_HYDRA}

    def get(self, option: str, default: Any = None) -> Any:
        """The value of an option, or the default where it has none."""
        return self.node.get(option, default)

    def with_options(self, **options: Any) -> "Component":
        """The same component, some options changed."""
        return replace(self, node=self.node | options)

    def build(self, *arguments: Any, **more: Any) -> Any:
        """The object, made from the options and these arguments; None for the component that does nothing.

        Raises the FedserError that the component itself raises, InputError for anything else that goes wrong.
        """
        return build(self.node, *arguments, key=self.key, **more) if self else None

    def maker(self, **more: Any) -> Callable:
        """What `build` calls with the arguments, for those who build many; the parts of its options are made once."""
        return maker(self.node, key=self.key, **more)

    def check(self) -> None:
        """Raises InputError for an option that the component does not have, or whose value it can't take."""
        if self:
            check_node(self.node, self.key)


def component(key: str, node: Any, name: str | None = None) -> Component:
    """A node of the configuration as a component. Raises InputError where it is none."""
    if not isinstance(node, dict):
        raise InputError(f"{key}={shown(node)} must be settings with a _target_: choose an option of the group.")
    if not isinstance(node.get("_target_", ""), str):
        raise InputError(f"{key}._target_={shown(node['_target_'])} must be the import path of a class or function.")
    known = name or node.get("name") or node.get("_target_", "").rpartition(".")[2]
    if not isinstance(known, str) or not known:
        raise InputError(f"{key} is neither a component nor named: write a _target_ and a name into its file.")
    return Component(key, known, node)


def build(node: dict, *arguments: Any, key: str = "", **more: Any) -> Any:
    """The object that a `_target_` node describes, from its options and these arguments; see `Component.build`."""
    return maker(node, key=key)(*arguments, **more)


def maker(node: dict, key: str = "", **more: Any) -> Callable:
    """What makes the objects that a `_target_` node describes; see `Component.maker`."""
    from hydra.utils import instantiate

    taken = parameters(locate(node["_target_"], key))
    own = {option: value for option, value in node.items() if option != "name" or "name" in taken}
    with _explained(node, key):
        partial = instantiate(own, _partial_=True)

    def make(*arguments: Any, **others: Any) -> Any:
        with _explained(node, key):  # a partial, as Hydra copies what it is handed, be it a table or a model
            return partial(*arguments, **more, **others)

    return make


@contextlib.contextmanager
def _explained(node: dict, key: str) -> Iterator[None]:
    """A block whose errors are the component's own, or name it."""
    from hydra.errors import InstantiationException

    try:
        yield
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, FedserError):
            raise cause from None
        raise InputError(" ".join(f"{key}: {error}".split())) from error
    except (TypeError, ValueError) as error:
        raise InputError(f"{key}: {node['_target_']} can't be made: {error}") from error


def locate(target: str, key: str) -> Callable:
    """The class or function at an import path. Raises InputError naming what is not there."""
    if not isinstance(target, str):
        raise InputError(f"{key}._target_={shown(target)} must be the import path of a class or function.")
    module, _, name = target.rpartition(".")
    while module:
        try:
            found = functools.reduce(getattr, name.split("."), importlib.import_module(module))
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise InputError(f"{key}: importing {module} failed: {error}") from error
            module, _, last = module.rpartition(".")
            name = f"{last}.{name}"
        except AttributeError as error:
            near = nearest(name, vars(sys.modules[module]), "; did you mean {}?") or "."
            raise InputError(f"{key}: {module} has no {name}{near}") from error
        except Exception as error:
            raise InputError(f"{key}: importing {module} failed: {type(error).__name__}: {error}") from error
        else:
            return found
    raise InputError(
        f"{key}: there is no module {target.rpartition('.')[0] or target}. It is sought in the folder of --config-dir, "
        "in those of `modules`, where you stand, and among installed packages."
    )


def targets(node: Any) -> Iterator[str]:
    """Every `_target_` in nested settings."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield str(node["_target_"])
        node = list(node.values())
    for part in node if isinstance(node, list) else ():
        yield from targets(part)


def search(folders: Iterable[str]) -> None:
    """Lets modules in these folders be imported; what is installed goes first."""
    sys.path.extend(folder for folder in map(str, folders) if folder not in sys.path)


def parameters(target: Callable) -> dict[str, inspect.Parameter]:
    """The parameters of a class or function by name; those of a base class too, where `**options` goes on to it."""
    found: dict[str, inspect.Parameter] = {}
    for maker in _makers(target):
        named = signature(maker).parameters
        found = dict(named) | found
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in named.values()):
            found = {name: item for name, item in found.items() if item.kind is not item.VAR_KEYWORD}
            break
    return {name: item for name, item in found.items() if name != "self" and item.kind is not item.VAR_POSITIONAL}


def _makers(target: Callable) -> list[Callable]:
    """The function itself, or the `__init__` of a class and of its bases, in order."""
    if not inspect.isclass(target):
        return [target]
    bases = [base for base in inspect.getmro(target) if base is not object]
    return [vars(base)["__init__"] for base in bases if "__init__" in vars(base)]


@functools.cache
def signature(target: Callable) -> inspect.Signature:
    """`inspect.signature`, with annotations that were written as text evaluated where that is possible."""
    try:
        return inspect.signature(target, eval_str=True)
    except NameError:
        return inspect.signature(target)


def check_node(node: dict, key: str) -> None:
    """Raises InputError for an option that the `_target_` does not have, or whose value its annotation excludes.

    What `**options` takes is left to the component, and so is what has no annotation. A class may have a static method
    `check_options(node, key)` for what annotations can't say.
    """
    options, target = component(key, node).options, locate(node["_target_"], key)
    if not callable(target):
        raise InputError(f"{key}: {node['_target_']} is neither a class nor a function.")
    taken = parameters(target)
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        _check_known(options, taken, target, key)
    if (check_options := getattr(target, "check_options", None)) is not None:
        check_options(node, key)  # before the annotations: it knows more to say
    for option, value in options.items():
        if isinstance(value, dict) and "_target_" in value:
            check_node(value, f"{key}.{option}")
        elif option in taken:
            check_value(taken[option].annotation, value, f"{key}.{option}")


def _check_known(options: dict, taken: dict[str, inspect.Parameter], target: Callable, key: str) -> None:
    known = [name for name in taken if name != "model"]
    for option in options:
        if option not in taken and option != "name":
            raise InputError(
                f"{key}.{option}: {target.__qualname__} has no such setting."
                f"{nearest(option, known, ' Did you mean {!r}?')} It has {', '.join(known)}."
            )


def check_value(annotation: Any, value: Any, path: str) -> None:
    """Raises InputError where a plain value does not fit an annotation; nothing without one, or with a foreign one."""
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return
    try:
        kind = Value[annotation]
        _held.add(kind)
    except PydanticUserError:  # pydantic knows no such type: the component itself will say what is wrong
        return
    parse(kind, value, path)
