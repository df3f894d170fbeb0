"""The search for a bit allocation: an Optuna study by ask and tell that can be killed at any time. Free of torch.

The study is the record and the whole state. A trial is an evaluation (user attribute `number`: ours, from 0 without
gaps) or a duplicate of one (`same_as`): a proposal that decodes to bits which were asked for before. A duplicate is
told what its evaluation was told, and costs nothing.

Optuna seeds a sampler once, so that a study opened again repeats its start. Here every proposal is drawn by a sampler
made anew from (seed, number of trials), in a copy of the study in memory, and enters the study as one record. So it
is a function of what the storage holds and nothing else: after a kill anywhere, a search proposes what an undisturbed
one does. (One evaluation at a time. With several in flight the order in which they end matters, as it must.) The state
of CMA-ES (as numbers: nothing in a study is unpickled) and the generations of NSGA-II are in the trials' system
attributes, which the record takes along.

Known allocations are evaluated as they are. A sampler sees one at its encoding if that decodes to the same bits.
Otherwise the allocation has no place in the space: its trial has no parameters, and the copy leaves it out, because
its value is not that of its nearest encoding.
"""

from robuq.ampn.search.bit_search import BitSearch, Proposal
from robuq.ampn.search.importance import FEWEST, importances
from robuq.ampn.search.study import (
    STATES,
    check_storage,
    database_states,
    drop_half_a_record,
    ends_in_half_a_record,
    journal_states,
    open_storage,
    reach_storage,
    study_errors,
)

__all__ = [
    "FEWEST",
    "STATES",
    "BitSearch",
    "Proposal",
    "check_storage",
    "database_states",
    "drop_half_a_record",
    "ends_in_half_a_record",
    "importances",
    "journal_states",
    "open_storage",
    "reach_storage",
    "study_errors",
]
