"""Wraps on single instances: a method of one object, put around and taken off again."""

from __future__ import annotations

import functools
import inspect
import sys
import threading
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._dynamo import OptimizedModule  # torch names it nowhere else

Around = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
_MARK = "_fresco_wrap"


def wrap_method(
    owner: Any, name: str, around: Around, on_copy: Callable[[Any], None] | None = None
) -> Callable[[], None]:
    """Wrap a method on one instance; its class and other instances stay as they are.

    Signature and docstring stay visible. A deep copy of the instance, which carries the
    wrap along, calls its class's method.

    Args:
        owner: The instance.
        name: Name of a method of it.
        around: Called with the original bound method, positional and keyword arguments.
        on_copy: Called with a copy of the instance whose method was called.

    Returns:
        A function that puts back what was there.

    Example:
        >>> class Greeter:
        ...     def greet(self, name):
        ...         return f"hello {name}"
        >>> greeter = Greeter()
        >>> undo = wrap_method(greeter, "greet", lambda original, args, kwargs: original("you"))
        >>> greeter.greet("me")
        'hello you'
        >>> undo()
        >>> greeter.greet("me"), vars(greeter)
        ('hello me', {})
    """
    own = vars(owner)
    before, was_own = own.get(name), name in own
    original = getattr(owner, name)

    @functools.wraps(original.__func__)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self is not owner:
            result = getattr(type(self), name)(self, *args, **kwargs)
            if on_copy:
                on_copy(self)
            return result
        return around(original, args, kwargs)

    setattr(wrapper, _MARK, owner)
    own[name] = types.MethodType(wrapper, owner)

    def undo() -> None:
        if was_own:
            own[name] = before
        else:
            own.pop(name, None)

    return undo


def has_wraps(owner: Any) -> bool:
    """Tell whether a method of this instance is wrapped.

    Wraps that a copy carries along, of the instance it was copied from, do not count.

    Example:
        >>> has_wraps(torch.nn.Identity())
        False
    """
    methods = (value for value in vars(owner).values() if isinstance(value, types.MethodType))
    return any(vars(method.__func__).get(_MARK) is owner for method in methods)


def call_by_name(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Name all arguments of a forward.

    Example:
        >>> call_by_name(torch.nn.Identity(), (1,), {})
        {'input': 1}
    """
    names = list(inspect.signature(module.forward).parameters) if args else []
    return {**dict(zip(names, args, strict=False)), **kwargs}


def calling(kind: type, thread: threading.Thread | None = None) -> object | None:
    """Find the innermost object of a kind whose `__call__` this, or a thread, is in.

    Args:
        kind: Class of the object, or a base class.
        thread: Whose stack to look at; None: the caller's own.

    Returns:
        The object; None where no such call is on the stack.

    Example:
        >>> class Caller:
        ...     def __call__(self):
        ...         return calling(Caller) is self
        >>> Caller()(), calling(Caller)
        (True, None)
    """
    ident = thread.ident if thread else threading.get_ident()
    frame = sys._current_frames().get(ident) if ident else None
    while frame is not None:
        if frame.f_code.co_name == "__call__":
            owner = frame.f_locals.get(frame.f_code.co_varnames[0])
            if isinstance(owner, kind):
                return owner
        frame = frame.f_back
    return None


def goes_on_elsewhere(thread: threading.Thread, caller: object | None, kind: type) -> bool:
    """Tell whether another thread is in a call yet, or it died.

    Args:
        thread: Whose call it was.
        caller: What `calling(kind)` was in it; None: no such call, the thread's life decides.
        kind: Class of the caller, or a base class.

    Returns:
        False for the calling thread's own calls.

    Example:
        >>> goes_on_elsewhere(threading.current_thread(), None, object)
        False
    """
    if thread is threading.current_thread() or not thread.is_alive():
        return False
    return caller is None or calling(kind, thread) is caller


def is_compiled(module: torch.nn.Module) -> bool:
    """Whether torch.compile was given the module, its call, its forward or that of its class."""
    is_forward = hasattr(module.forward, "_torchdynamo_orig_callable")
    return is_forward or isinstance(module, OptimizedModule) or bool(module._compiled_call_impl)
