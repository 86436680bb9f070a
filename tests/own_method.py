"""The method of `examples/`, as a user would add one; it is in the table of methods only where a test puts it there."""

from examples.custom_method import RankOne
from jpeft.peft.methods import METHODS

METHODS.pop(RankOne.name, None)

__all__ = ["RankOne"]
