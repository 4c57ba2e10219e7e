# SPDX-License-Identifier: MIT
"""Open files and what they are open on."""

from spfemu.layout.locks import RWSEM
from spfemu.layout.struct import Struct, embed, word


class FILE(Struct, pad_to_line=True):
    """struct file: an open file; references are those of descriptors and of VMAs."""

    f_count = word("references; 0: free", lock="atomic")
    f_mode = word("Fmode: opened for reading, for writing")
    f_mapping = word("the ADDRESS_SPACE of the file")
    descriptors = word("references among f_count that programs hold", lock="atomic")
    next_free = word("next free slot", lock="files_lock")


class ADDRESS_SPACE(Struct, pad_to_line=True):
    """address_space and its inode: a file, however often it is open, and who maps it."""

    i_count = word("FILEs that are open on it; 0: free", lock="atomic")
    i_fop = word("FileOps: what kind of file it is")
    i_size = word("length of the file [bytes]", lock="i_rwsem")
    next_free = word("next free slot", lock="files_lock")
    i_pages = word("root node of the page cache, or 0", lock="xa_lock")
    i_mmap_rwsem = embed(RWSEM, "lock of i_mmap and of the ranges of the VMAs on it", line=True)
    i_mmap = word("first VMA that maps the file, or 0", lock="i_mmap_rwsem")
    xa_lock = word("spinlock over i_pages and all below", lock="atomic", line=True)
    nrpages = word("pages in the cache", lock="xa_lock")
    i_rwsem = embed(RWSEM, "lock of the file's length", line=True)
