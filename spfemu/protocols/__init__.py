# SPDX-License-Identifier: MIT
"""What varies between protocols: how a fault is entered and what guards its commit.

A protocol is a module of three kernel functions, `do_user_addr_fault`, `pte_map_lock` and
`pte_spinlock`, and what they need.  Lay two beside each other to see what differs.
"""
