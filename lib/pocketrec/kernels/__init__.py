"""Fast lookups: one PyTorch operator a family, with C++ for the CPU, Triton for a GPU and plain PyTorch beside them.

`gather` (rows of a table), `hashing` (ids to slots), `robe` (blocks of one array), `tensor_train`, `mlet` and
`quantized` know nothing of methods; the stores and methods of `pocketrec.embeddings` call them. `native.off()`
switches the C++ off.
"""
