"""Reads the pickle of a PyTorch checkpoint without ever running it.

A machine of its own (no `pickle`, no torch) walks the opcodes of `pickletools` and builds plain data: dict, list, tuple, str, numbers, and
the descriptions `Storage` and `Tensor`. A global is a name in an exact allow-list or the walk ends there and then, before what follows it is
looked at; REDUCE calls one of the functions below, never anything imported. So a hostile stream can do nothing but be refused.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any

from app.errors import InputRefused
from app.limits import Limits, shown
from worker.formats.pickle_globals import Builders, check_global
from worker.formats.pickle_tensors import Global, bad, storage

_MARK = object()
_PUSH = frozenset(
    "BININT BININT1 BININT2 LONG1 LONG4 INT LONG FLOAT BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)
_CODE = frozenset("NEWOBJ NEWOBJ_EX OBJ INST EXT1 EXT2 EXT4".split())
_EMPTY: dict[str, Callable] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": list}
_CONSTANT = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class Walk:
    """One pass over a pickle; `result` is the plain data.

    Raises:
        InputRefused: unsafe-pickle, invalid-pickle, invalid-tensor, limit-depth, limit-entries, limit-materialised.
    """

    def __init__(self, data: bytes, limits: Limits = Limits()):
        self.limits, self.build = limits, Builders(limits)
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.keys = self.containers = 0
        try:
            self.result = self._run(data)
        except (ValueError, IndexError, OverflowError) as e:
            raise bad(f"the pickle is malformed: {str(e)[:100] or type(e).__name__}") from None
        check_depth(self.result, limits.pickle_depth)

    def _run(self, data: bytes) -> Any:
        for count, (opcode, arg, pos) in enumerate(pickletools.genops(data)):
            if count >= self.limits.pickle_opcodes:
                raise InputRefused("limit-entries", f"the pickle has more than {self.limits.pickle_opcodes} opcodes")
            name = opcode.name
            if name in _PUSH:
                if type(arg) is int and arg.bit_length() > 4096:
                    raise bad(f"an integer of {arg.bit_length()} bits")
                self.stack.append(arg)
            elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
                index = len(self.memo) if name == "MEMOIZE" else arg
                if index > count:
                    raise bad(f"memo index {index} after {count} opcodes")
                self.memo[index] = self._top()
            elif name in ("BINGET", "LONG_BINGET", "GET"):
                if arg not in self.memo:
                    raise bad(f"memo index {arg} was never written")
                self.stack.append(self.memo[arg])
            elif name == "MARK":
                self.stack.append(_MARK)
            elif name in _CONSTANT:
                self.stack.append(_CONSTANT[name])
            elif name in _EMPTY:
                self._contain()
                self.stack.append(_EMPTY[name]())
            elif name == "STOP":
                result = self._pop()
                if self.stack or pos + 1 != len(data):
                    raise bad("values or bytes are left over at its end")
                return result
            elif name == "FRAME":
                if arg > len(data) - pos - 9:
                    raise bad(f"a frame of {arg} bytes, with {len(data) - pos - 9} left")
            elif name in _CODE:
                raise InputRefused("unsafe-pickle", f"the pickle builds objects (opcode {name}); save model.state_dict() instead of the model")
            elif step := _STEPS.get(name):
                step(self, arg)
            else:
                raise bad(f"opcode {name} is not one that torch.save writes")
        raise bad("it does not end")

    def _pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise bad("an opcode finds no value on the stack")
        return self.stack.pop()

    def _top(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise bad("an opcode finds no value on the stack")
        return self.stack[-1]

    def _to_mark(self) -> list[Any]:
        items = []
        while self.stack and self.stack[-1] is not _MARK:
            items.append(self.stack.pop())
        if not self.stack:
            raise bad("an opcode finds no mark on the stack")
        self.stack.pop()
        return items[::-1]

    def _contain(self) -> None:
        self.containers += 1
        if self.containers > 12 * self.limits.tensors:
            raise InputRefused("limit-entries", f"the pickle has more than {12 * self.limits.tensors} containers")

    def _proto(self, version: int) -> None:
        if not 2 <= version <= 5:
            raise bad(f"pickle protocol {version}; known are 2 to 5")

    def _tuple(self, items: list[Any]) -> None:
        self._contain()
        self.stack.append(tuple(items))

    def _set(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) is not dict or len(items) % 2:
            raise bad("items are set on something that is not a dictionary")
        self.keys += len(items) // 2
        if self.keys > self.limits.dict_keys * 12:
            raise InputRefused("limit-entries", f"the pickle's dictionaries have more than {self.limits.dict_keys * 12} keys")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Only keys whose hashes cannot be made to collide, and which cannot be nested.
            if not (type(key) is str or key is None or type(key) in (int, bool) and abs(key) < 1 << 60):
                raise bad(f"a dictionary has a key of type {type(key).__name__}; taken are strings and integers below 2^60")
            if key in target:
                raise bad(f"a dictionary has the key {shown(str(key))} twice")
            target[key] = value
        if len(target) > self.limits.dict_keys:
            raise InputRefused("limit-entries", f"a dictionary of the pickle has more than {self.limits.dict_keys} keys")

    def _append(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) is not list:
            raise bad("items are appended to something that is not a list")
        target.extend(items)

    def _pair(self) -> list[Any]:
        value = self._pop()
        return [self._pop(), value]

    def _global(self, arg: str) -> None:
        module, _, name = arg.partition(" ")
        self.stack.append(check_global(module, name))

    def _stack_global(self) -> None:
        module, name = self._pair()
        if type(module) is not str or type(name) is not str:
            raise bad("STACK_GLOBAL finds no two strings")
        self.stack.append(check_global(module, name))

    def _reduce(self) -> None:
        func, args = self._pair()
        self._contain()
        self.stack.append(self.build.call(func, args))

    def _build(self) -> None:
        """torch.save sets attributes on state dicts alone (`_metadata`); nothing here needs them."""
        self._pop()
        if type(self._top()) is not dict:
            raise InputRefused("unsafe-pickle", "the pickle sets attributes on an object; save model.state_dict() instead of the model")

    def _persistent(self) -> None:
        pid = self._pop()
        if type(pid) is not tuple or len(pid) != 5 or pid[0] != "storage" or type(pid[1]) is not Global:
            raise bad("a persistent id is not ('storage', type, key, location, numel)")
        _, kind, key, location, numel = pid
        self._contain()
        self.stack.append(storage(kind.name, key, location, numel))


_STEPS: dict[str, Callable[[Walk, Any], Any]] = {
    "PROTO": Walk._proto,
    "POP": lambda w, _: w.stack.pop(),
    "POP_MARK": lambda w, _: w._to_mark(),
    "DUP": lambda w, _: w.stack.append(w._top()),
    "TUPLE": lambda w, _: w._tuple(w._to_mark()),
    "TUPLE1": lambda w, _: w._tuple([w._pop()]),
    "TUPLE2": lambda w, _: w._tuple(w._pair()),
    "TUPLE3": lambda w, _: w._tuple([w._pop() for _ in range(3)][::-1]),
    "FROZENSET": lambda w, _: w._tuple(w._to_mark()),
    "SETITEM": lambda w, _: w._set(w._pair()),
    "SETITEMS": lambda w, _: w._set(w._to_mark()),
    "APPEND": lambda w, _: w._append([w._pop()]),
    "APPENDS": lambda w, _: w._append(w._to_mark()),
    "ADDITEMS": lambda w, _: w._append(w._to_mark()),
    "GLOBAL": Walk._global,
    "STACK_GLOBAL": lambda w, _: w._stack_global(),
    "REDUCE": lambda w, _: w._reduce(),
    "BUILD": lambda w, _: w._build(),
    "BINPERSID": lambda w, _: w._persistent(),
}


def check_depth(root: Any, limit: int) -> None:
    """Containers nest at most `limit` deep, and none holds itself. Each is entered once, so shared ones cost nothing.

    Raises:
        InputRefused: limit-depth or invalid-pickle.
    """
    heights: dict[int, int] = {}
    open_: set[int] = set()
    work: list[tuple[Any, bool]] = [(root, False)]
    while work:
        value, leaving = work.pop()
        if type(value) not in (dict, list, tuple) or (not leaving and id(value) in heights):
            continue
        inside = value.values() if type(value) is dict else value
        if leaving:
            open_.discard(id(value))
            heights[id(value)] = height = 1 + max((heights.get(id(v), 0) for v in inside), default=0)
            if height > limit:
                raise InputRefused("limit-depth", f"the pickle's containers are nested more than {limit} levels deep")
        elif id(value) in open_:
            raise bad("a container of the pickle holds itself")
        else:
            open_.add(id(value))
            work.append((value, True))
            work.extend((v, False) for v in inside)
