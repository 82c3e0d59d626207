"""scenario: how a scenario of the interop test says what it is and what it needs.

    @scenario('fio under protocol A', roles=True, quick=True, net={'protocol': 'A'})
    def protocol_a(t, primary, secondary):
        primary.fio(0, 8 * MIB)
        return 'a word for the table'

t is a bed.Bed. When the function begins, both nodes are Connected, UpToDate,
equal and Secondary, with the options that are asked for; with roles=True it is
registered twice, as protocol-a-kernel and protocol-a-pollux, and `primary` is
Primary. What it must prove is its own; when it has returned, the closing check
of bed.py follows. It fails with a lab.Failure, whose text tells all.
"""
import dataclasses
from typing import Callable

SCENARIOS = []


@dataclasses.dataclass
class Scenario:
    name: str            # as --only takes it
    title: str           # as the table shows it
    run: Callable        # takes the Bed
    quick: bool = False  # part of the quick form
    volumes: int = 1     # 1, or 2: the second is smaller
    net: dict = dataclasses.field(default_factory=dict)   # options of section net over nodes.NET, both nodes
    disk: dict = dataclasses.field(default_factory=dict)  # options of section disk over nodes.DISK, both nodes
    more: str = ''       # what else belongs into the resource, both nodes
    allow: tuple = ()    # parts of bed.COMPLAINTS that the kernel may say here
    wire: bool = False   # the two reach each other through bed.wire, which can cut, part and freeze
    primary: str = ''    # the node that is Primary when it begins: kernel, pollux or none


def scenario(title, *, name='', roles=False, **what):
    """Registers a function; the other arguments are Scenario's fields."""
    def register(function):
        base = name or function.__name__.replace('_', '-')
        if not roles:
            SCENARIOS.append(Scenario(base, title, function, **what))
            return function

        def as_primary(role):
            def run(t):
                nodes = {'kernel': (t.k, t.p), 'pollux': (t.p, t.k)}
                return function(t, *nodes[role])
            return run
        for role, who in (('kernel', 'kernel'), ('pollux', 'Pollux')):
            SCENARIOS.append(Scenario(f'{base}-{role}', f'{title}, {who} Primary', as_primary(role), primary=role, **what))
        return function
    return register
