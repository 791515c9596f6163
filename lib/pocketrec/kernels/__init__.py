"""Fast lookups: one PyTorch operator a family, with C++ for the CPU, Triton for a GPU and plain PyTorch beside them.

`gather` (rows of a table), `universal_hash` (ids to slots), `robe` (blocks of one array), `tensor_train` (rows that
are products), `quantized` (rows of codes) and `interaction` (lookups with their dot products) know nothing of
methods; the stores and methods of `pocketrec.embeddings` call them. `csrc` holds the C++, `gpu` the Triton;
`native.off()` switches both off.
"""
