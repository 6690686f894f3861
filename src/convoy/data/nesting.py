"""How the values of a sample are nested in one another. Standard library only.

NAVSIM's builders give a dict of values. What `default_collate` takes may be nested: dicts, lists,
tuples and named tuples, to any depth. A tree of branches and leaves says how; each leaf names the
field of the record that holds its value.
"""

from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from keyword import iskeyword
from typing import Any, TypeGuard

MOST_DEPTH = 32
MOST_LEAVES = 10_000  # of a sample; each is a field of its own

TENSOR, ARRAY, SCALAR, NUMBER, TEXT = "tensor", "array", "scalar", "number", "text"
LEAVES = (TENSOR, ARRAY, SCALAR, NUMBER, TEXT)
DICT, ORDERED, LIST, TUPLE, NAMED = "dict", "OrderedDict", "list", "tuple", "namedtuple"
BRANCHES = (DICT, ORDERED, LIST, TUPLE, NAMED)

Key = str | int | bool | None


@dataclass(frozen=True)
class Leaf:
    """A value: a torch tensor, a numpy array or scalar, a Python number, or a str or bytes (text).

    `name` is that of its field.
    """

    name: str
    kind: str = TENSOR


@dataclass(frozen=True)
class Branch:
    """A container. `keys` are a dict's keys or a named tuple's names.

    `title` is the latter's name.
    """

    kind: str
    keys: tuple[Key, ...]
    children: tuple["Node", ...]
    title: str = ""

    @property
    def is_mapping(self) -> bool:
        return self.kind in (DICT, ORDERED)


Node = Leaf | Branch
EMPTY = Branch(DICT, (), ())


def flat(names: Sequence[str]) -> Branch:
    """The tree of a dict of tensors."""
    return Branch(DICT, tuple(names), tuple(Leaf(name) for name in names))


def is_flat(tree: Branch) -> bool:
    return tree.kind == DICT and tree == flat([str(key) for key in tree.keys])


def is_key(value: object) -> TypeGuard[Key]:
    return value is None or isinstance(value, (str, int))


def path_of(parent: str, key: Key) -> str:
    """The name of a value inside another: what messages and listings call it."""
    own = key if isinstance(key, str) else repr(key)
    return f"{parent}.{own}" if parent else own


def leaves(node: Node) -> Iterator[Leaf]:
    if isinstance(node, Leaf):
        yield node
    else:
        for child in node.children:
            yield from leaves(child)


def same(one: Node, other: Node) -> bool:
    """Whether two trees are alike; the order of a dict's keys does not matter."""
    if one == other:
        return True
    if isinstance(one, Leaf) or isinstance(other, Leaf) or len(one.keys) != len(other.keys):
        return False
    if (one.kind, one.title, len(one.children)) != (other.kind, other.title, len(other.children)):
        return False
    if not one.is_mapping:
        return one.keys == other.keys and all(map(same, one.children, other.children))
    theirs = dict(zip(map(_typed, other.keys), other.children, strict=True))
    return all(
        _typed(key) in theirs and same(child, theirs[_typed(key)])
        for key, child in zip(one.keys, one.children, strict=True)
    )


def uneven(one: Node, other: Node, name: str = "") -> tuple[str, int, int] | None:
    """The first list or tuple whose length differs: its name and both lengths."""
    if isinstance(one, Leaf) or isinstance(other, Leaf) or one.kind != other.kind:
        return None
    if one.kind in (LIST, TUPLE):
        if len(one.children) != len(other.children):
            return name, len(one.children), len(other.children)
        pairs: list[tuple[Key, Node, Node]] = [
            (number, *both)
            for number, both in enumerate(zip(one.children, other.children, strict=True))
        ]
    else:
        theirs = dict(zip(map(_typed, other.keys), other.children, strict=True))
        pairs = [
            (key, child, theirs[_typed(key)])
            for key, child in zip(one.keys, one.children, strict=True)
            if _typed(key) in theirs
        ]
    found = (uneven(ours, his, path_of(name, key)) for key, ours, his in pairs)
    return next(filter(None, found), None)


def rebuild(
    node: Node, value: Callable[[Leaf, bool], Any], batch: bool, in_mapping: bool = True
) -> Any:
    """Put values into their places. `value` gets a leaf, and whether a dict holds it directly.

    For a `batch` containers are those that `default_collate` makes: a tuple becomes a list.
    """
    if isinstance(node, Leaf):
        return value(node, in_mapping)
    made = [rebuild(child, value, batch, node.is_mapping) for child in node.children]
    if node.is_mapping:
        return (dict if node.kind == DICT else OrderedDict)(zip(node.keys, made, strict=True))
    if node.kind == NAMED:
        return namedtuple(node.title, map(str, node.keys))(*made)
    return made if batch or node.kind == LIST else tuple(made)


def to_json(node: Node) -> dict[str, Any]:
    if isinstance(node, Leaf):
        return {"field": node.name, "kind": node.kind}
    content: dict[str, Any] = {"kind": node.kind, "of": [to_json(child) for child in node.children]}
    if node.keys:
        content["keys"] = list(node.keys)
    return content | ({"title": node.title} if node.title else {})


def from_json(content: Any, depth: int = 0) -> Node:
    """Raises ValueError or TypeError for what `to_json` does not write."""
    if not isinstance(content, dict) or depth > MOST_DEPTH:
        raise ValueError("the nesting of values is not one that a preparation writes")
    if "field" in content:
        if not isinstance(content["field"], str) or content.get("kind") not in LEAVES:
            raise ValueError(f"{content!r:.80} is not a value's place")
        return Leaf(content["field"], content["kind"])
    keys, title = tuple(content.get("keys", ())), content.get("title", "")
    node = Branch(
        content["kind"], keys, tuple(from_json(child, depth + 1) for child in content["of"]), title
    )
    keyed = node.is_mapping or node.kind == NAMED
    if (
        node.kind not in BRANCHES
        or not isinstance(title, str)
        or not all(map(is_key, keys))
        or len(set(map(_typed, keys))) != len(keys)
        or len(keys) != (len(node.children) if keyed else 0)
        or (node.kind == NAMED and not all(map(is_name, (title, *keys))))
    ):
        raise ValueError(f"{content!r:.80} is not a container of values")
    return node


def _typed(key: Key) -> tuple[type, Key]:
    """1, 1.0 and True are one key for a dict, and three for us."""
    return type(key), key


def is_name(value: object) -> bool:
    """Whether a named tuple, or a field of one, can have that name."""
    return (
        isinstance(value, str)
        and value.isidentifier()
        and not iskeyword(value)
        and not value.startswith("_")
    )
