"""Exercises of notebook 13, graph masks."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from utils.exercises.core import Exercise
from utils.exercises.mistakes import POLARITY, TRANSPOSED, WITHOUT_ITSELF, flipped, transposed, without_itself
from utils.masks import any_of, causal_mask, full_mask, graph_mask, hop_mask, local_mask

PAIRS = [  # edges and the number of nodes
    (torch.tensor([(0, 1)]), 2),
    (torch.tensor([(1, 0)]), 3),
    (torch.tensor([(0, 1), (1, 2)]), 3),
    (torch.tensor([(3, 0), (1, 3)]), 4),
    (torch.tensor([(0, 1), (0, 2), (1, 2), (2, 3)]), 5),
    (torch.tensor([(0, 1), (0, 2), (1, 3), (2, 3)]), 4),  # two ways from 0 to 3
    (torch.tensor([(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 0)]), 6),
]


def undirected_mask(pairs: Int[Tensor, "E 2"], num_nodes: int) -> Bool[Tensor, "1 1 N N"]:
    """Each pair in both directions, and self-loops."""
    edges = torch.cat((pairs, pairs.flip(1)))
    return any_of(graph_mask(edges, num_nodes), local_mask(num_nodes, back=0))


DIRECTED = [graph_mask(pairs, num_nodes) for pairs, num_nodes in PAIRS]
MASKS = DIRECTED + [undirected_mask(pairs, num_nodes) for pairs, num_nodes in PAIRS]

check_papers = Exercise(
    task="The mask of three papers, with self-loops, where 1 cites 0, and 2 cites 0 and 1.",
    solution=causal_mask(3),
    mistakes={
        "Transposed: here the cited papers learn from those that cite them. Row i is the paper i that learns, and its "
        "columns are the papers that it cites.": transposed(causal_mask(3)),
        WITHOUT_ITSELF: without_itself(causal_mask(3)),
        "Both directions: a citation goes one way. Paper 0 was written first and cites nobody.": full_mask(3),
        POLARITY: flipped(causal_mask(3)),
    },
)

check_undirected_mask = Exercise(
    task="undirected_mask(pairs, num_nodes): each pair in both directions, and self-loops, [1, 1, N, N].",
    solution=undirected_mask,
    cases=PAIRS,
    mistakes={
        "One way only: each pair opens one cell, and a friendship needs two. pairs.flip(1) swaps source and target; "
        "pairs.flip(0) only turns the list upside down.": lambda pairs, num_nodes: any_of(
            graph_mask(pairs, num_nodes), local_mask(num_nodes, back=0)
        ),
        "Turned round, not doubled: now the other friend hears nothing. Keep the pairs and add the flipped ones.": (
            lambda pairs, num_nodes: any_of(graph_mask(pairs.flip(1), num_nodes), local_mask(num_nodes, back=0))
        ),
        "AND instead of OR: a pair is listed in one direction only, so nothing is left of it. Join the two directions "
        "with any_of.": lambda pairs, num_nodes: local_mask(num_nodes, back=0),
        "Self-loops lost: both directions are right, and the diagonal belongs to the mask as well.": (
            lambda pairs, num_nodes: graph_mask(torch.cat((pairs, pairs.flip(1))), num_nodes)
        ),
        POLARITY: flipped(undirected_mask),
    },
)

check_shares_twice = Exercise(
    task="The shares of the nodes 0, 1, 2 in node 2, first under graph_mask, then in edge_attention: six numbers.",
    solution=[1 / 3, 1 / 3, 1 / 3, 1 / 4, 1 / 2, 1 / 4],
    tolerance=0.005,
    mistakes={
        "The list counts: an edge that stands in it twice sends its message twice, and both are added up.": [
            *[1 / 3, 1 / 3, 1 / 3],
            *[1 / 3, 1 / 3, 1 / 3],
        ],
        "The mask does not count: a cell is True or False, and writing True twice changes nothing.": [
            *[1 / 4, 1 / 2, 1 / 4],
            *[1 / 4, 1 / 2, 1 / 4],
        ],
        "Exchanged: first the mask, which does not count, then the list, which does.": [
            *[1 / 4, 1 / 2, 1 / 4],
            *[1 / 3, 1 / 3, 1 / 3],
        ],
        "Shares of edges: 1/4 is the weight of one edge. Two of the edges come from node 1, so add their weights; the "
        "shares of all nodes give 1.": [
            *[1 / 3, 1 / 3, 1 / 3],
            *[1 / 4, 1 / 4, 1 / 4],
        ],
    },
)


def two_in_one(
    first: Int[Tensor, "E1 2"], num_first: int, second: Int[Tensor, "E2 2"], num_second: int
) -> Bool[Tensor, "1 1 N N"]:
    """Two graphs side by side in one mask: two blocks on its diagonal."""
    return graph_mask(torch.cat((first, second + num_first)), num_first + num_second)


check_two_in_one = Exercise(
    task="two_in_one(first, num_first, second, num_second): two graphs in one mask, [1, 1, N1 + N2, N1 + N2].",
    solution=two_in_one,
    cases=[(*one, *other) for one in PAIRS for other in PAIRS],
    mistakes={
        "Not shifted: the edges of the second graph join nodes of the first. Its node 0 is now num_first.": (
            lambda first, num_first, second, num_second: graph_mask(torch.cat((first, second)), num_first + num_second)
        ),
        "Off by one: counting begins at 0, so the first graph ends at num_first - 1 and the second begins at "
        "num_first.": lambda first, num_first, second, num_second: graph_mask(
            torch.cat((first, second + num_first - 1)), num_first + num_second
        ),
        "Isolated nodes forgotten: the largest number in the edges does not tell how many nodes there are. A node "
        "without edges keeps its place.": lambda first, num_first, second, num_second: graph_mask(
            torch.cat((first, second + first.max() + 1)), num_first + num_second
        ),
        "Shifted by edges: the numbers of nodes move by the number of *nodes* before, not by that of edges.": (
            lambda first, num_first, second, num_second: graph_mask(
                torch.cat((first, second + len(first))), num_first + num_second
            )
        ),
        TRANSPOSED: transposed(two_in_one),
    },
)


def with_virtual_node(mask: Bool[Tensor, "1 1 N N"]) -> Bool[Tensor, "1 1 M M"]:
    """One more node, which sees all and is seen by all."""
    return F.pad(mask, (0, 1, 0, 1), value=True)


def _padded(mask: Bool[Tensor, "1 1 N N"], column: bool, row: bool) -> Bool[Tensor, "1 1 M M"]:
    """One more node: `column` says whether the others see it, `row` whether it sees all and itself."""
    return F.pad(F.pad(mask, (0, 1), value=column), (0, 0, 0, 1), value=row)


def _without_last_loop(mask: Bool[Tensor, "1 1 N N"]) -> Bool[Tensor, "1 1 M M"]:
    wrong = with_virtual_node(mask)
    wrong[..., -1, -1] = False
    return wrong


check_with_virtual_node = Exercise(
    task="with_virtual_node(mask): a new last node that sees all and is seen by all, [1, 1, N + 1, N + 1].",
    solution=with_virtual_node,
    cases=[(mask,) for mask in MASKS],
    mistakes={
        "Hears and is not heard: the row of the new node is open, its column is not, so nobody gets its message.": (
            lambda mask: _padded(mask, column=False, row=True)
        ),
        "Heard and does not hear: the column of the new node is open, its row is not, so it has nothing to tell.": (
            lambda mask: _padded(mask, column=True, row=False)
        ),
        "No self-loop at the new node: it sees everyone, itself included.": _without_last_loop,
        "Wrong end: the new node is node 0 and moves all the others by one. Put it behind them.": lambda mask: F.pad(
            mask, (1, 0, 1, 0), value=True
        ),
        "Everything open: in one hop the old nodes see what they saw before, and the new node. It is two hops that "
        "join everyone with everyone.": lambda mask: full_mask(mask.shape[-1] + 1),
        POLARITY: flipped(with_virtual_node),
    },
)


def two_heads(mask: Bool[Tensor, "1 1 N N"]) -> Bool[Tensor, "1 2 N N"]:
    """Head 0 sees along the edges, head 1 exactly two hops away; both see the node itself."""
    itself, one, two = hop_mask(mask, 0), hop_mask(mask, 1), hop_mask(mask, 2)
    return torch.cat((one, any_of(two & ~one, itself)), dim=1)


def _heads(head_0: Tensor, head_1: Tensor) -> Tensor:
    return torch.cat((head_0, head_1), dim=1)


check_two_heads = Exercise(
    task="two_heads(mask): head 0 along the edges, head 1 exactly two hops away, both with self-loops, [1, 2, N, N].",
    solution=two_heads,
    cases=[(mask,) for mask in MASKS],
    mistakes={
        "Within two hops: head 1 still sees the nodes that are one hop away. Take those away.": lambda mask: _heads(
            hop_mask(mask, 1), hop_mask(mask, 2)
        ),
        "Walks of two steps: a friend of a friend may be a friend as well, and the distance is then 1. Take the nodes "
        "within one hop away.": lambda mask: _heads(
            hop_mask(mask, 1), any_of(mask.float() @ mask.float() > 0, hop_mask(mask, 0))
        ),
        "Self-loops missing in head 1: a node with nobody at distance two is a dead row there.": lambda mask: _heads(
            hop_mask(mask, 1), hop_mask(mask, 2) & ~hop_mask(mask, 1)
        ),
        "Self-loops missing in head 0: the mask may come without them.": lambda mask: _heads(
            mask, two_heads(mask)[:, 1:]
        ),
        "Ways counted: two nodes may have several ways of two steps between them. Ask for > 0, not for == 1.": (
            lambda mask: _heads(
                hop_mask(mask, 1), any_of((mask.float() @ mask.float() == 1) & ~mask, hop_mask(mask, 0))
            )
        ),
        "Heads exchanged: head 0 is the one that attends along the edges.": lambda mask: two_heads(mask).flip(1),
        "Two samples, not two heads: dimension 0 counts graphs. Join along dimension 1.": lambda mask: two_heads(
            mask
        ).transpose(0, 1),
        TRANSPOSED: transposed(two_heads),
    },
)
