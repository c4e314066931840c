"""A plugin of asv: the first run describes the machine by itself instead of asking.

Without it a first ``asv run`` asks six questions, and fails where nobody can answer.
"""


def setup():
    from asv.machine import Machine, MachineCollection  # asv's own environment has it alone
    from asv.util import UserError

    facts = Machine.get_defaults()
    try:
        MachineCollection.load(facts["machine"])
    except UserError:
        MachineCollection.save(facts["machine"], facts)
