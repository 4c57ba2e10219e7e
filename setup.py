# SPDX-License-Identifier: MIT
"""The one part of the build that is not declarative: the shim, a plain shared library in C."""

import platform
from glob import glob

from setuptools import Extension, setup

# A fiber switch returns on another stack, which a CET shadow stack would take for an attack.
SHADOW_STACK_FLAGS = ["-fcf-protection=none"] if platform.machine() == "x86_64" else []

setup(
    ext_modules=[
        Extension(
            "spfemu._native_shims",
            sources=sorted(glob("native_shims/*.c")),
            depends=sorted(glob("native_shims/*.h")),
            extra_compile_args=["-O2", "-std=gnu11", "-pthread", *SHADOW_STACK_FLAGS],
            extra_link_args=["-pthread"],
        )
    ]
)
