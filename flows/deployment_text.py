"""How a `prefect.yaml` is written: its keys, anchors and templates.

PyYAML keeps the last of several equal keys and forgets the anchors; a template `{{ $NAME }}` is the environment's, at
the time of deploying, and the rest of them needs a server.
"""

from collections.abc import Iterator
from typing import Any

import yaml

HOLDS_ITSELF = "it holds itself"


class Loader(yaml.SafeLoader):
    """A safe loader that remembers which anchors there are and which are used."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.anchored: dict[str, yaml.Node] = {}
        self.used: set[str] = set()

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent):
            self.used.add(event.anchor)
        elif event.anchor is not None:
            self.anchored[event.anchor] = node
        return node


def keys_and_anchors(node: yaml.Node, path: str, seen: set[int], above: tuple[int, ...]) -> Iterator[str]:
    """Yield keys that are there twice, and what holds itself."""
    if id(node) in above:
        yield f"{path}: {HOLDS_ITSELF}"
    if id(node) in seen:
        return
    seen.add(id(node))
    above = (*above, id(node))
    if isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield from keys_and_anchors(value, f"{path}[{number}]", seen, above)
    elif isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            place = below(path, key.value if isinstance(key, yaml.ScalarNode) else "?")
            if place in keys:
                yield f"{place}: the key is there twice (line {key.start_mark.line + 1}): keep one"
            keys.add(place)
            yield from keys_and_anchors(value, place, seen, above)


def definitions(root: yaml.Node, loader: Loader) -> Iterator[str]:
    """A definition has the name of its anchor and is used: that is all that can be known of its own name."""
    mappings = [value for key, value in root.value if key.value == "definitions"] if _is_mapping(root) else []
    defined = [(str(key.value), value) for one in mappings if _is_mapping(one) for key, value in one.value]
    for name, value in defined:
        if loader.anchored.get(name) is not value:
            yield f"definitions.{name}: it must have the anchor of its name: write `{name}: &{name}`"
    for name in sorted(loader.anchored.keys() - loader.used):
        yield f"&{name}: it is used nowhere: write `*{name}` where it belongs, or delete it"


def _is_mapping(node: yaml.Node) -> bool:
    return isinstance(node, yaml.MappingNode)


def below(path: str, name: object) -> str:
    """Return the place of a key, or of an item, below another place."""
    if isinstance(name, int):
        return f"{path}[{name}]"
    return f"{path}.{name}" if path else str(name)


def shared(value: Any, path: str, seen: set[int]) -> Iterator[str]:
    """Yield where something stands that stands earlier as well."""
    if not isinstance(value, dict | list):
        return
    if id(value) in seen:
        yield path
        return
    seen.add(id(value))
    for name, one in value.items() if isinstance(value, dict) else enumerate(value):
        yield from shared(one, below(path, name), seen)


def templates(value: Any, path: str) -> Iterator[str]:
    """Yield the templates that cannot be filled in here."""
    if isinstance(value, str) and "{{" in str(filled(value)):
        yield (
            f"{path}: a template must be `{{{{ $NAME }}}}`, of an environment variable that is set, to be filled in "
            f"here. Got {value!r}"
        )
    for name, one in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from templates(one, below(path, name))


def filled(value: Any) -> Any:
    """Return a value as Prefect deploys it."""
    from prefect.utilities.annotations import NotSet
    from prefect.utilities.templating import apply_values

    if isinstance(value, dict):
        return {name: filled(one) for name, one in value.items()}
    if isinstance(value, list):
        return [filled(one) for one in value]
    if not isinstance(value, str):
        return value
    applied = apply_values(value, {}, remove_notset=False)
    return value if applied is NotSet else applied
