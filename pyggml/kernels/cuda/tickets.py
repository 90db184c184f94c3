"""What the last of several blocks of threads does when all others are done: so that a launch ends with what would else be the
next one.

Each block draws a ticket; who gets the last one lays them back, so that the counter is 0 before the next run. A run that
is aborted ends between launches, never within one.
"""


def last():
    """-> f(ticket, blocks, area): whether this block is the last of so many that call it with the same counter. All threads
    call it; area: 4 bytes of shared memory. What the other blocks have written is seen from then on."""
    from pyggml.kernels.cuda import device as d

    @d.inline
    def is_last(ticket, blocks, area):
        d.barrier()
        if d.thread() == 0:
            before = d.add_i32(ticket, 1)
            if before == blocks - 1:
                d.st_i32(ticket, 0)
            d.sst_i32(area, before)
        d.barrier()
        return d.sld_i32(area) == blocks - 1

    return is_last
