"""Candidates + edits + measures -> verdicts with intervals and controls.

A candidate is a guess until the model has run without it. Each is set to zero alone; the super weights also all
together, and each one's marginal share of that set is measured, as KL(clean || edited) in nats per token on our own
proof text: 16 windows of equal length, in random order. The rule, written down once:

* proven: alone, the lower bound of the KL on all windows exceeds the floor (0.01 nats) and the largest of 20 matched
  controls: single weights of the same matrix, half nearest in |w|, half nearest in contribution |x_k w_jk|. Those of
  a number without a spike (a gain, say) are of its own vector or matrix, half nearest in what is predicted of them.
* proven-jointly: not alone, but its marginal, KL(set) - KL(set without it), passes the same rule against the marginals
  of the same controls, each put in its place in the set.
* inert: the upper bounds of both are below the floor.
* candidate: everything else.

Nothing is run further than that takes. After 2, 4 and 8 windows a candidate or a share whose upper bound lies
below the floor is left, and so is a control whose upper bound lies below what it would have to reach: the lower bound
of its candidate, known on all windows by then. One control always goes on to the end, the largest; and where one is
above that bound for certain, only that one. Since the order is random, the first windows are a random sample of all.

Bounds are at 1 - 0.05 / tests, so that all of them together hold at 95 %: on all windows from a paired bootstrap, tests
being the candidates; at an early look from Student's t, tests being the candidates (and their controls) times the three
looks. The chance that any of a scan's lower bounds is too high is then 2.5 %, and that any control was left too early
another 2.5 %.
"""

from studfinder.prove.pools import MISSED
from studfinder.prove.proof import PROVING, prove
from studfinder.prove.rule import CONTROLS, FLOOR, LOOKS, MOST, VERSION

__all__ = ["CONTROLS", "FLOOR", "LOOKS", "MISSED", "MOST", "PROVING", "VERSION", "prove"]
