"""The audit log: a Merkle tree a shard, in files that anyone can check.

    tree     RFC 6962: hashes, roots, proofs
    tiles    C2SP tlog-tiles: which file holds what
    notes    C2SP signed notes: keys, checkpoints, cosignatures
    proofs   C2SP tlog-proof: one entry's proof as one text file
    store    the port: where the files are
    reader   entries and proofs of a log, everything checked
    verify   the whole of a log, and where it is not what was signed
    witness  checkpoints that somebody else has signed too
    log      the one writer of a log

The first four are pure, the others do what they do through the port. Signatures are Ed25519, of
the package `cryptography`.
"""
