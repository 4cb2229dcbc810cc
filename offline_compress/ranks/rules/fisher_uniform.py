"""``--search fisher_uniform``: in proportion to the mean Fisher information of each matrix (the paper's default)."""

from offline_compress.ranks.allocation import by_matrix
from offline_compress.ranks.rules.fisher import Fisher

RULE = Fisher(by_matrix)
