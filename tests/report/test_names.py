"""The report's own lists of names, which duplicate those of modules that load JAX, agree with them."""

from jpeft.peft.methods import METHODS, OF_THE_PAPER, ablations
from jpeft.report.names import OTHER_METHODS, PAPER_ABLATIONS, PAPER_METHODS


def test_every_method_has_a_label_and_the_papers_methods_and_ablations_are_those_that_run():
    assert set(PAPER_METHODS) == set(OF_THE_PAPER)
    assert set(PAPER_METHODS) | set(OTHER_METHODS) == set(METHODS) and not set(PAPER_METHODS) & set(OTHER_METHODS)
    assert {method: set(names) for method, names in PAPER_ABLATIONS.items()} == {
        method: set(names) for method, names in ablations().items()
    }
