"""GMF: a user and an item meet in the dot product of their vectors, and nothing else is learned.

    logit = <u, v>

He et al., "Neural Collaborative Filtering", WWW 2017, whose Generalized Matrix Factorization weighs the products of
the coordinates; without weights and biases, as here, it is the model of the grid that Tsang and Ahle published with
"Clustering the Sketch" (NeurIPS 2023). All it knows lies in the tables, so their compression is all that is measured.
"""

from torch import Tensor

from pocketrec.embeddings.base import Embedding
from pocketrec.errors import UserError
from pocketrec.models.base import Backbone


class GMF(Backbone):
    """Click model over two features and no dense ones."""

    name = "gmf"

    def __init__(self, embedding: Embedding, num_dense: int = 0) -> None:
        features = len(embedding.cardinalities)
        if features != 2 or num_dense:
            raise UserError(
                f"model gmf pairs a user with an item: it takes two features and no dense ones, not {features} and "
                f"{num_dense}; choose options of the dataset that leave two, or model dlrm"
            )
        super().__init__(embedding, num_dense=num_dense)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Return logits [batch] from ids [batch, 2]; dense, float [batch, 0], says nothing."""
        user, item = self.embedding(ids).unbind(1)
        return (user * item).sum(1)
