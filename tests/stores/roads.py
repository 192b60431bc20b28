"""What each kind of request gives, to compare two roads to one store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from syncd.errors import StoreError
from syncd.stores.base import Body, IfAbsent, IfVersion, ObjectStore


def everything(
    store: ObjectStore, name: str, parts: Callable[[ObjectStore, str, str], list[Any]]
) -> list[Any]:
    """All that can be asked, without what the name and the moment make of the answers.

    ``parts(store, name, odd)`` uploads in parts, as the store likes them; ``odd`` is the key of an
    object of seven bytes.
    """
    odd = f"{name}/a b+ü&%3F?'(x)~#.pt"
    info = store.put(odd, b"content", IfAbsent())
    found: list[Any] = [info.size, store.head(odd) == info]
    for numbers in ((1, 2), (1, 3)):  # side by side: a key once in each
        bodies = [Body(f"{name}/{n}", b"%d" % n, IfAbsent()) for n in numbers]
        found += [getattr(i, "size", type(i)) for i in store.put_each(bodies)]
    found += [bytes(b"".join(store.read(odd, start, 3))) for start in (0, 5, 7)]
    found += [bytes(b"".join(store.read(odd, 2, version=info.version)))]
    found += [
        type(item) if isinstance(item, StoreError) else bytes(item)
        for item in store.read_each([(f"{name}/2", 9), (f"{name}/no", 9), (f"{name}/1", 9)])
    ]
    found += parts(store, name, odd)
    found += [store.copy(f"{name}/2", f"{name}/copy", IfAbsent()).size]
    longer = store.append(odd, info, b" and more", f"{name}/aside")
    found += [longer.size, b"".join(store.read(odd))]
    fails: tuple[Callable[[], object], ...] = (
        lambda: store.put(odd, b"x", IfVersion(info.version)),
        lambda: store.head(f"{name}/none"),
        lambda: b"".join(store.read(odd, version=info.version)),
        lambda: store.copy(f"{name}/2", f"{name}/copy", IfAbsent()),
        lambda: store.append(odd, info, b"x", f"{name}/aside"),
    )
    for fail in fails:
        with pytest.raises(StoreError) as caught:
            fail()
        found += [type(caught.value), str(caught.value).replace(f"{name}/", ""), caught.value.hint]
    found += sorted((i.key[2:], i.size, i.modified > 0) for i in store.list(f"{name}/"))
    store.delete([f"{name}/1", f"{name}/2", f"{name}/none"])
    found += sorted(i.key[2:] for i in store.list(f"{name}/"))
    return found
