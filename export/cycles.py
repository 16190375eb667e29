"""Where a cycle waits, and in which order nodes run.

NIR states no delay for a cycle; every executor reads something one step late. Here, as in Norse,
snnTorch and SpikingJelly, it is the output of spiking neurons: the weights on the way back, and
their bias, are applied in the present step to the spikes of the step before.

An edge that closes a cycle is found from the input, depth first; in a graph whose loops have one
entry each this does not depend on any order of storage. Its delay then moves up the way back, past
nodes that serve nothing else, to the neurons whose output goes there. A node that also leads
onwards keeps its delay behind it, so that no way forward becomes late.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

Link = tuple[str, str]


def targets_of(names: Iterable[str], edges: Sequence[Link]) -> dict[str, list[str]]:
    """The targets of each node, in the order of ``edges``; other names are left out."""
    found: dict[str, list[str]] = {name: [] for name in names}
    for source, target in edges:
        if source in found and target in found:
            found[source].append(target)
    return found


def depth_first(
    targets: Mapping[str, Sequence[str]], starts: Iterable[str]
) -> tuple[list[str], dict[Link, list[str]]]:
    """An order of execution, and the edges against it.

    Returns:
        All nodes, each after every source but those of edges that close a cycle; and these edges,
        each with the nodes of the cycle, which ends where the edge starts.
    """
    finished: list[str] = []
    closing: dict[Link, list[str]] = {}
    open_: dict[str, None] = {}
    visited: set[str] = set()
    for start in starts:
        if start in visited:
            continue
        visited.add(start)
        open_[start] = None
        stack = [(start, iter(targets[start]))]
        while stack:
            name, rest = stack[-1]
            for target in rest:
                if target in open_:
                    way = list(open_)
                    closing[name, target] = way[way.index(target) :]
                elif target not in visited:
                    visited.add(target)
                    open_[target] = None
                    stack.append((target, iter(targets[target])))
                    break
            else:
                stack.pop()
                del open_[name]
                finished.append(name)
    return finished[::-1], closing


def stateless_cycle(
    edges: Sequence[Link], names: Iterable[str], stateful: Collection[str]
) -> list[str] | None:
    """A cycle that passes no node of ``stateful``, if there is one."""
    plain = [name for name in names if name not in stateful]
    _, closing = depth_first(targets_of(plain, edges), plain)
    return next(iter(closing.values()), None)


def delayed_edges(
    edges: Sequence[Link],
    closing: Collection[Link],
    spiking: Collection[str],
    stateful: Collection[str],
) -> set[Link]:
    """The edges that carry the output of the step before.

    Args:
        edges: all of them.
        closing: some of them, without which there is no cycle.
        spiking: nodes whose output is what a cycle reads late.
        stateful: those that do in a cycle without spikes.
    """
    cut = set(closing)
    if not cut:
        return cut
    loop = _loops(edges)
    after: dict[str, list[str]] = {}
    before: dict[str, list[str]] = {}
    for source, target in edges:
        after.setdefault(source, []).append(target)
        if source in loop and loop[source] == loop.get(target):
            before.setdefault(target, []).append(source)
    firing = {loop[name] for name in spiking if name in loop}

    def holds(name: str) -> bool:
        return name in (spiking if loop[name] in firing else stateful)

    # Every node lies on a way to one that holds, past which nothing moves, so this ends.
    waiting = [source for source, _ in sorted(cut)]
    while waiting:
        name = waiting.pop()
        if holds(name) or not all((name, target) in cut for target in after[name]):
            continue
        cut -= {(name, target) for target in after[name]}
        cut |= {(source, name) for source in before[name]}
        waiting += before[name]
    return cut


def _loops(edges: Sequence[Link]) -> dict[str, str]:
    """For each node of a cycle one node that stands for all that share cycles with it."""
    names = dict.fromkeys(name for edge in edges for name in edge)
    order, _ = depth_first(targets_of(names, edges), names)
    reverse = targets_of(names, [(target, source) for source, target in edges])
    found: dict[str, str] = {}
    for root in order:
        stack = [] if root in found else [root]
        while stack:
            name = stack.pop()
            found[name] = root
            stack += [source for source in reverse[name] if source not in found]
    sizes: dict[str, int] = {}
    for root in found.values():
        sizes[root] = sizes.get(root, 0) + 1
    looped = {source for source, target in edges if source == target}
    return {name: root for name, root in found.items() if sizes[root] > 1 or name in looped}
