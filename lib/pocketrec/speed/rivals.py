"""Rivals from elsewhere, timed from where the user keeps them. None of their code is here, none is a dependency.

Two are packages: FBGEMM (`pip install --no-deps fbgemm-gpu-cpu==1.8.0`, beside torch 2.13) and tensorly-torch (`pip
install --no-deps tensorly tensorly-torch`). The others are checkouts in one folder, which `--rivals` or
POCKETREC_RIVALS names:

    cce/                           thomasahle/cce: ROBE and tensor trains in PyTorch
    universal_memory_allocation/   apd10/universal_memory_allocation: the ROBE authors' PyTorch, on the CPU
    robez/                         apd10/robez: their CUDA kernel
    tt-pytorch/                    KhrulkovV/tt-pytorch: the tensor trains of PyTorch before TT-Rec
    FBTT-Embedding/                facebookresearch/FBTT-Embedding: TT-Rec's CUDA kernel
    dlrm/                          facebookresearch/dlrm: the reference code of the whole model

robez and FBTT-Embedding are extensions that must have been built; they run on a GPU only.
"""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from math import ceil, prod
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from torch import Tensor

from pocketrec.embeddings.base import full_bytes
from pocketrec.embeddings.robe import AUTHORS_R1, AUTHORS_R2, AUTHORS_R3
from pocketrec.embeddings.tt_rec import factor_dim, factor_rows
from pocketrec.kernels.robe import AUTHORS_PRIME
from pocketrec.speed.contestants import LR, RANKS, Contestant, Lookup, Tables, Unavailable, _rows, _trained
from pocketrec.speed.machine import fill

CCE, AUTHORS, AUTHORS_CUDA, FBTT = "cce", "universal_memory_allocation", "robez", "FBTT-Embedding"
DLRM = "dlrm"
T3NSOR, TENSORLY = "tt-pytorch", "tensorly-torch"


def table_rivals(dim: int, full: bool, folder: Path | None) -> Iterator[Contestant]:
    """Yield the rivals that embed all features."""
    yield Contestant("table", "FBGEMM", _fbgemm, only="cpu")
    usual = min(dim, 16 if dim < 128 else 32)
    blocks = sorted({z for z in (1, 8, 16, 32, dim) if z <= dim}) if full else [usual]
    for ratio in (10, 100, 1000):
        for z in blocks:
            settings: dict[str, Any] = {"ratio": ratio, "block_size": z}
            yield Contestant("robe", CCE, lambda t, s=settings: _cce_robe(t, folder, **s), **settings)
            if full or ratio == 1000:
                yield Contestant("robe", AUTHORS, lambda t, s=settings: _authors_robe(t, folder, **s), **settings)
    settings = {"ratio": 1000, "block_size": usual}
    yield Contestant("robe", AUTHORS_CUDA, lambda t: _authors_cuda(t, folder, **settings), **settings)


def train_rivals(folder: Path | None) -> Iterator[Contestant]:
    """Yield the rivals that are tensor trains of one table."""
    for rank in RANKS:
        yield Contestant("tensor_train", CCE, lambda t, r=rank: _cce_train(t, folder, r), rank=rank)
        yield Contestant("tensor_train", T3NSOR, lambda t, r=rank: _t3nsor(t, folder, r), rank=rank)
        yield Contestant("tensor_train", TENSORLY, lambda t, r=rank: _tensorly(t, r), rank=rank)
        yield Contestant("tensor_train", FBTT, lambda t, r=rank: _fbtt(t, folder, r), rank=rank)


def _fbgemm(tables: Tables) -> Lookup:
    """Build FBGEMM's table-batched CPU operator with its fused exact SGD, over the memory of the others."""
    try:
        ops = importlib.import_module("fbgemm_gpu.split_table_batched_embeddings_ops_training")
        common = importlib.import_module("fbgemm_gpu.split_table_batched_embeddings_ops_common")
        configs = importlib.import_module("fbgemm_gpu.split_embedding_configs")
    except (ImportError, OSError) as error:
        raise Unavailable(f"fbgemm-gpu-cpu does not load: {error}") from None
    place = (common.EmbeddingLocation.HOST, ops.ComputeDevice.CPU)
    module = ops.SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, tables.dim, *place) for rows in tables.cardinalities],
        optimizer=configs.EmbOptimType.EXACT_SGD,
        learning_rate=LR,
        bounds_check_mode=ops.BoundsCheckMode.NONE,
    )
    module.weights_host.data = tables.weight.data.view(-1)  # the same pages as everybody's

    def prepare(ids: Tensor) -> tuple[Tensor, Tensor]:
        return ids.T.flatten(), torch.arange(ids.numel() + 1)

    def embed(prepared: tuple[Tensor, Tensor]) -> Tensor:
        return module(*prepared).view(-1, len(tables.cardinalities), tables.dim)

    def forward(prepared: tuple[Tensor, Tensor]) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():  # it has no operator for inference mode
            return embed(prepared)

    def step(prepared: tuple[Tensor, Tensor], gradient: Tensor) -> None:
        embed(prepared).backward(gradient)

    return Lookup(forward, step, _rows(tables), [tables.weight], prepare)


def _cce_robe(tables: Tables, folder: Path | None, ratio: float, block_size: int) -> Lookup:
    """Build cce's ROBE, one array for all features: ids are numbered across tables."""
    code, size = _cce(folder, "robe"), _array_size(tables, ratio)
    hash = _cce(folder, "hash").PolyHash(num_hashes=tables.dim // block_size, output_range=size)
    module = code.RobeEmbedding(size=size, chunk_size=block_size, hash=hash).to(tables.device)
    start, within = tables.offsets, torch.arange(block_size, device=tables.device)

    def forward(ids: Tensor) -> Tensor:
        return module(ids + start)

    def expected(ids: Tensor) -> Tensor:
        return module.table[(hash(ids + start).unsqueeze(-1) + within) % size].flatten(2)

    return _by_torch(forward, expected, [module.table])


def _authors_robe(tables: Tables, folder: Path | None, ratio: float, block_size: int) -> Lookup:
    """Build the ROBE authors' PyTorch code, over ids that are numbered across tables."""
    code, size = _checkout(folder, AUTHORS, "hashedEmbeddingCPU"), _array_size(tables, ratio)
    weight = torch.empty(size, device=tables.device).uniform_(-0.1, 0.1)
    with redirect_stdout(io.StringIO()):
        module = code.HashedEmbeddingCPU(sum(tables.cardinalities), tables.dim, weight, 0, block_size)
    module, start = module.to(tables.device), tables.offsets
    pieces = torch.arange(tables.dim // block_size, device=tables.device) * AUTHORS_R2 + AUTHORS_R1
    within = torch.arange(block_size, device=tables.device)

    def forward(ids: Tensor) -> Tensor:
        return module((ids + start).flatten()).view(*ids.shape, tables.dim)

    def expected(ids: Tensor) -> Tensor:
        place = ((ids + start).unsqueeze(-1) * AUTHORS_R3 + pieces) % AUTHORS_PRIME % (size - block_size + 1)
        return module.weight[place.unsqueeze(-1) + within].flatten(2)

    return _by_torch(forward, expected, [module.weight])


def _authors_cuda(tables: Tables, folder: Path | None, ratio: float, block_size: int) -> Lookup:
    """Build the ROBE authors' CUDA kernel."""
    _needs_gpu(tables)
    code, size = _checkout(folder, AUTHORS_CUDA, "hashedEmbeddingBag"), _array_size(tables, ratio)
    weight = torch.empty(size, device=tables.device).uniform_(-0.1, 0.1)
    with redirect_stdout(io.StringIO()):
        module = code.HashedEmbeddingBag(
            sum(tables.cardinalities), tables.dim, _weight=weight, val_offset=0, uma_chunk_size=block_size
        )
    module, start = module.to(tables.device), tables.offsets

    def forward(ids: Tensor) -> Tensor:
        return module((ids + start).view(-1, 1)).view(*ids.shape, tables.dim)

    return _by_torch(forward, forward, [p for p in module.parameters() if p.requires_grad])


def _cce_train(tables: Tables, folder: Path | None, rank: int) -> Lookup:
    """Build cce's tensor train of one table, three cores."""
    (rows,) = tables.cardinalities
    side = ceil(rows ** (1 / 3))
    hash = _cce(folder, "hash").QRHash(3, side)
    module = _cce(folder, "tt").TensorTrainEmbedding(rank, tables.dim, hash).to(tables.device)
    parts = [module.start_core, module.cores, module.end_core]

    def forward(ids: Tensor) -> Tensor:
        return module(ids.flatten()).view(*ids.shape, tables.dim)

    def expected(ids: Tensor) -> Tensor:
        first, second, third = (ids.flatten() // side**k % side for k in range(3))
        product = torch.einsum("xar,xbrs,xcs->xabc", parts[0][first], parts[1][0][second], parts[2][third])
        return product.reshape(*ids.shape, -1)[..., : tables.dim]

    return _by_torch(forward, expected, parts)


def _t3nsor(tables: Tables, folder: Path | None, rank: int) -> Lookup:
    """Build tt-pytorch's tensor train of one table, read by its `gather_rows`; its layer makes the whole table."""
    code = _checkout(folder, T3NSOR, "t3nsor")
    digits, factors = factor_rows(*tables.cardinalities, 3), factor_dim(tables.dim, 3)
    train = code.TTEmbedding(shape=[digits, factors], tt_rank=rank).to(tables.device).tt_matrix
    weights = list(train.tt_cores)

    def forward(ids: Tensor) -> Tensor:
        index = code.ind2sub(digits, ids.flatten())
        return code.gather_rows(train, index).reshape(*ids.shape, tables.dim)

    def expected(ids: Tensor) -> Tensor:  # the first digit counts ones
        index = torch.stack(torch.unravel_index(ids.flatten(), digits[::-1])).flip(0)
        return _slices_multiplied(weights, index).view(*ids.shape, tables.dim)

    return _by_torch(forward, expected, weights)


def _tensorly(tables: Tables, rank: int) -> Lookup:
    """Build tensorly-torch's tensor train of one table."""
    try:
        code = importlib.import_module("tltorch")
    except ImportError as error:
        raise Unavailable(f"tensorly-torch does not load: {error}") from None
    digits, factors = factor_rows(*tables.cardinalities, 3), factor_dim(tables.dim, 3)
    module = code.FactorizedEmbedding(
        prod(digits),
        tables.dim,
        auto_tensorize=False,
        tensorized_num_embeddings=tuple(digits),
        tensorized_embedding_dim=tuple(factors),
        factorization="blocktt",
        rank=(1, rank, rank, 1),
        device=tables.device,
    )
    weights = list(module.parameters())
    for weight in weights:
        fill(weight)

    def expected(ids: Tensor) -> Tensor:
        index = torch.stack(torch.unravel_index(ids.flatten(), digits))
        return _slices_multiplied(weights, index).view(*ids.shape, tables.dim)

    return _by_torch(module, expected, weights)


def _slices_multiplied(cores: Sequence[Tensor], index: Tensor) -> Tensor:
    """Multiply slices of three cores [rank, digits, q, rank] at index [3, n] -> [n, dim]."""
    first, second, third = (core[:, digit] for core, digit in zip(cores, index, strict=True))
    return torch.einsum("znar,rnbs,sncz->nabc", first, second, third).flatten(1)


def _fbtt(tables: Tables, folder: Path | None, rank: int) -> Lookup:
    """Build TT-Rec's own CUDA kernel, with its fused SGD."""
    _needs_gpu(tables)
    code, (rows,) = _checkout(folder, FBTT, "tt_embeddings_ops"), tables.cardinalities
    module = code.TTEmbeddingBag(
        rows,
        tables.dim,
        tt_ranks=[rank, rank],
        tt_p_shapes=None,
        tt_q_shapes=None,
        sparse=False,
        optimizer=code.OptimType.EXACT_SGD,
        learning_rate=LR,
        use_cache=False,
    ).to(tables.device)

    def forward(ids: Tensor) -> Tensor:
        start = torch.arange(ids.numel() + 1, device=ids.device)
        return module(ids.flatten(), start).view(*ids.shape, tables.dim)

    def expected(ids: Tensor) -> Tensor:
        return module.full_weight()[ids.flatten(), : tables.dim].view(*ids.shape, tables.dim)

    def step(ids: Tensor, gradient: Tensor) -> None:
        forward(ids).backward(gradient)

    return Lookup(forward, step, expected, list(module.parameters()))


def reference_dlrm(tables: Tables, folder: Path | None, bottom: Sequence[int], top: Sequence[int]) -> torch.nn.Module:
    """Build the reference code's DLRM over the memory of the others: (dense, offsets, ids [features, batch]) -> p."""
    with _placeholders("mlperf_logging", "onnx", "sklearn", "sklearn.metrics", "torch.utils.tensorboard"):
        code = _checkout(folder, DLRM, "dlrm_s_pytorch")
    features = len(tables.cardinalities)
    width = tables.dim + features * (features + 1) // 2
    network = code.DLRM_Net(
        m_spa=tables.dim,
        ln_emb=np.ones(features, int),
        ln_bot=np.array([*bottom, tables.dim]),
        ln_top=np.array([width, *top, 1]),
        arch_interaction_op="dot",
        sigmoid_top=len(top),
    )
    for bag, part in zip(network.emb_l, tables.weight.detach().split(list(tables.cardinalities)), strict=True):
        bag.weight = torch.nn.Parameter(part)
    return network


@contextmanager
def _placeholders(*names: str) -> Iterator[None]:
    """Let code of others import what it does not need here: packages for its logs and metrics."""
    absent = [name for name in names if not _imports(name)]
    for name in absent:
        sys.modules[name] = MagicMock(__spec__=None, __path__=[])
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


def _imports(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def _by_torch(forward: Callable[[Tensor], Tensor], expected: Callable[[Tensor], Tensor], weights: list) -> Lookup:
    return Lookup(forward, _trained(forward, torch.optim.SGD(weights, lr=LR)), expected, weights)


def _array_size(tables: Tables, ratio: float) -> int:
    return int(full_bytes(tables.cardinalities, tables.dim) / ratio) // 4


def _needs_gpu(tables: Tables) -> None:
    if not tables.device.startswith("cuda"):
        raise Unavailable("runs on a GPU only")


def _cce(folder: Path | None, module: str) -> ModuleType:
    """Import one module of cce; the package as a whole wants faiss, which its lookups do not use."""
    if folder is not None and (folder / CCE / "cce").is_dir() and "cce" not in sys.modules:
        package = ModuleType("cce")
        package.__path__ = [str(folder / CCE / "cce")]
        sys.modules["cce"] = package
    return _checkout(folder, CCE, f"cce.{module}")


def _checkout(folder: Path | None, name: str, module: str) -> ModuleType:
    """Import a module of a rival's checkout, and leave the import path as it was."""
    if folder is None:
        raise Unavailable(f"no checkout: name a folder that holds {name}/ with --rivals or POCKETREC_RIVALS")
    if not (folder / name).is_dir():
        raise Unavailable(f"no checkout: {folder} holds no folder {name}")
    with _importing_from(folder / name):
        try:
            return importlib.import_module(module)
        except Exception as error:  # anything that code of others may do when it is imported
            raise Unavailable(f"{name} does not import: {type(error).__name__}: {error}") from None


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
