"""Generated rows in the shape of Criteo-Kaggle, with a teacher that is known exactly.

Feature f has n_f ids. Their popularity is a power law cut off at n_f,

    P(rank > r) = (m - r'^(1-s)) / (m - 1)    with r' = r + 1, m = (n_f + 1)^(1-s), s = `zipf`,

and the id of a rank is (a_f · rank + b_f) mod n_f, so ids do not tell how frequent they are. Features and rows
are independent. With x the 13 dense values, drawn from N(0, 1), the teacher is

    P(label = 1) = sigmoid(bias + signal · z)
    z = √dense · D + √head · H + √rare · R + √pairs · I
    D = Σ_j w_j x_j                            the dense features
    H = Σ_f l_f e_f(id_f) [id_f frequent]      first-order effects of frequent ids; l_f = log n_f, since
                                               features with many ids tell more
    R = Σ_f e_f(id_f) [id_f rare]              first-order effects of rare ids
    I = Σ_{f<g} l_f l_g <v_f(id_f), v_g(id_g)> pairwise interactions of frequent ids, v in R^4, 0 for rare ids

D, H, R, I and z are each scaled to variance 1, so the weights, which sum to 1, are the shares of the logit's
variance: `dense_share`, `pairs_share`, and what is left belongs to first-order effects, of which, together with
the pairs, the share `rare_share` comes from rare ids. An id is rare when its probability is below `rare_below`.
Scale and bias (which sets the share of positives to `base_rate`) are measured on rows kept apart for it.

Nothing is stored: rows come from a counter-based generator (Philox, keyed by seed and block), effects and
vectors from a hash of (seed, feature, id), so any range of rows and any cardinality need the memory of a block.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit
from tqdm import tqdm

from pocketrec.data.rows import Block, Inputs, Rows, mix

CRITEO_KAGGLE = [
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194,
    27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572,
]  # fmt: skip
DENSE = 13
BLOCK = 2**15  # rows of one generator
CALIBRATION = 8  # blocks, numbered from the last possible one downwards
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Options:
    """Shares are of the variance of the logit; the defaults put the Bayes AUC at 0.78."""

    rows: int = 1_000_000
    scale: float = 0.03
    seed: int = 0
    zipf: float = 1.15
    signal: float = 1.21
    base_rate: float = 0.25
    dense_share: float = 0.3
    pairs_share: float = 0.1
    rare_share: float = 0.25
    rare_below: float = 1e-5

    def __post_init__(self):
        """Refuse what has no meaning."""
        if self.rows < 10 or not 0 <= self.seed < 2**63:
            raise ValueError("rows must be at least 10, and seed not negative")
        if self.scale <= 0 or self.zipf < 0 or self.signal < 0 or not 0 < self.base_rate < 1:
            raise ValueError("scale must be above 0, zipf and signal at least 0, base_rate between 0 and 1")
        if min(self.weights) < 0:
            raise ValueError("dense_share, pairs_share and rare_share leave a negative share to another part")

    @property
    def cardinalities(self) -> list[int]:
        """Criteo-Kaggle's, times `scale`, and never below 3 or what they are there."""
        return [max(min(n, 3), math.ceil(n * self.scale)) for n in CRITEO_KAGGLE]

    @property
    def weights(self) -> tuple[float, float, float, float]:
        """Variance shares of D, H, R and I."""
        rare = self.rare_share * (1 - self.dense_share)
        return self.dense_share, 1 - self.dense_share - self.pairs_share - rare, rare, self.pairs_share


class Draw(NamedTuple):
    """Rows before they have labels: ranks int64 [B, F], dense float32 [B, 13], uniform float64 [B]."""

    ranks: np.ndarray
    dense: np.ndarray
    uniform: np.ndarray


def rows(options: Options, inputs: Inputs) -> Rows:
    """Generate `options.rows` rows, split 8:1:1 by position, since they are independent."""
    train, validation = options.rows * 8 // 10, options.rows // 10
    teacher = Teacher(options)
    return Rows(
        cardinalities={f"C{i}": n for i, n in enumerate(options.cardinalities, 1)},
        dense_names=[f"I{i}" for i in range(1, DENSE + 1)],
        split_rows=[train, validation, options.rows - train - validation],
        blocks=_blocks(teacher, options.rows, (train, train + validation), inputs.progress),
        notes={"variance shares": dict(zip(("dense", "head", "rare", "pairs"), options.weights, strict=True))},
    )


def _blocks(teacher: "Teacher", total: int, edges: tuple[int, int], progress: bool) -> Iterator[Block]:
    with tqdm(total=total, unit="row", unit_scale=True, desc="planted", disable=not progress) as bar:
        for start in range(0, total, BLOCK):
            stop = min(start + BLOCK, total)
            split = np.searchsorted(edges, np.arange(start, stop), side="right").astype(np.uint8)
            yield teacher.rows(start, stop)._replace(split=split)
            bar.update(stop - start)


class Teacher:
    """The distribution of the rows, from which any range of them can be drawn."""

    def __init__(self, options: Options):
        self.options = options
        self.sizes = np.array(options.cardinalities, np.int64)
        features = np.arange(len(self.sizes), dtype=np.uint64)
        self.keys = mix(mix(np.array([options.seed], np.uint64) + GOLDEN) + GOLDEN * features)
        self.multipliers = np.array([_coprime(n) for n in self.sizes])
        self.offsets = (self.keys >> np.uint64(33)).astype(np.int64) % self.sizes
        self.loudness = np.log(self.sizes).astype(np.float32)
        self.first_rare = self._first_rare()
        generator = _generator(options.seed, 2**64 - 1)
        self.dense_weights = generator.normal(size=DENSE).astype(np.float32)

    def rows(self, start: int, stop: int) -> Block:
        """Rows [start, stop), all of split 0; the same whatever other rows are drawn."""
        blocks = [self._block(number) for number in range(start // BLOCK, -(-stop // BLOCK))]
        first = start // BLOCK * BLOCK
        arrays = (np.concatenate(column)[start - first : stop - first] for column in zip(*blocks, strict=True))
        return Block(*arrays)

    def _block(self, number: int) -> Block:
        draw = self._draw(number)
        ids = self._ids(draw)
        center, scale, bias = self.calibration
        z = (self._parts(draw, ids) - center) @ scale
        probability = expit(bias + self.options.signal * z).astype(np.float32)
        labels = (draw.uniform < probability).astype(np.uint8)
        return Block(labels, draw.dense, ids, np.zeros(len(ids), np.uint8), probability)

    def _draw(self, number: int) -> Draw:
        generator = _generator(self.options.seed, number)
        dense = generator.standard_normal((BLOCK, DENSE), dtype=np.float32)
        uniform = generator.random((BLOCK, len(self.sizes) + 1))
        return Draw(self._ranks(uniform[:, 1:]), dense, uniform[:, 0])

    def _ranks(self, uniform: np.ndarray) -> np.ndarray:
        """Invert the distribution function; rank 0 is the most frequent id."""
        ends, power = self.sizes + 1.0, 1 - self.options.zipf
        if power == 0:
            position = ends**uniform
        else:
            position = (1 + uniform * (ends**power - 1)) ** (1 / power)
        return np.minimum(position.astype(np.int64) - 1, self.sizes - 1)

    def _ids(self, draw: Draw) -> np.ndarray:
        """Scatter the ranks of a feature over its ids; int64 [B, F]."""
        return (draw.ranks * self.multipliers + self.offsets) % self.sizes

    def probability(self, feature: int, ranks: np.ndarray) -> np.ndarray:
        """Probability of the ids of these ranks."""
        start, end, power = np.asarray(ranks) + 1.0, self.sizes[feature] + 1.0, 1 - self.options.zipf
        if power == 0:
            return np.log1p(1 / start) / np.log(end)
        return ((start + 1) ** power - start**power) / (end**power - 1)

    def _first_rare(self) -> np.ndarray:
        """Lowest rank whose probability is below `rare_below`, by feature: probability falls with rank."""
        below = self.options.rare_below
        return np.array(
            [
                bisect_left(range(n), True, key=lambda rank, f=f: self.probability(f, rank) < below)
                for f, n in enumerate(self.sizes.tolist())
            ]
        )

    def _parts(self, draw: Draw, ids: np.ndarray) -> np.ndarray:
        """D, H, R, I before scaling; float64 [B, 4]."""
        frequent = (draw.ranks < self.first_rare) * self.loudness
        hashed = mix(ids.astype(np.uint64) * GOLDEN + self.keys)
        effects = _uniform(hashed).reshape(*ids.shape, 4).sum(axis=-1)
        vectors = _uniform(mix(hashed + GOLDEN)).reshape(*ids.shape, 4) * frequent[..., None]
        together = vectors.sum(axis=1)
        pairs = (together**2).sum(axis=-1) - (vectors**2).sum(axis=(1, 2))
        head = (effects * frequent).sum(axis=1)
        rare = (effects * (draw.ranks >= self.first_rare)).sum(axis=1)
        parts = draw.dense @ self.dense_weights, head, rare, pairs
        return np.stack(parts, axis=1).astype(np.float64)

    @cached_property
    def calibration(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Center [4] and scale [4] of the parts, so that z has mean 0 and variance 1, and the bias."""
        draws = [self._draw(2**64 - 2 - number) for number in range(CALIBRATION)]
        parts = np.concatenate([self._parts(draw, self._ids(draw)) for draw in draws])
        center, spread = parts.mean(axis=0), parts.std(axis=0)
        scale = np.sqrt(self.options.weights) / np.where(spread > 0, spread, 1)
        z = (parts - center) @ scale
        scale /= z.std()
        z /= z.std()
        bias = brentq(lambda b: expit(b + self.options.signal * z).mean() - self.options.base_rate, -50, 50)
        return center, scale, float(bias)


def _generator(seed: int, block: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, block], np.uint64)))


def _uniform(hashed: np.ndarray) -> np.ndarray:
    """Four values in (-1, 1) from each 64-bit hash; float32 [..., 4 × last]."""
    return hashed.view(np.int16).astype(np.float32) / np.float32(2**15)


def _coprime(n: int) -> int:
    """Return the first number from the golden section of n upwards that shares no factor with n."""
    candidate = max(1, round(n * 0.6180339887))
    while math.gcd(candidate, int(n)) != 1:
        candidate += 1
    return candidate
