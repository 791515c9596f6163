"""One module a source, found by being here.

A source has `Options`, a frozen dataclass, and `rows(options, inputs) -> Rows`. It may have
`fingerprint(options)`, what tells its input from another one where that is not pinned.
"""
