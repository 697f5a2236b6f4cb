"""Accuracy and parity of the models under PyTorch and TVM.

The package is also the function: ``quantvm.evaluate(...)`` is :func:`quantvm.evaluate.benchmark.evaluate`. Importing
any module of a package binds the package's name in its parent, so a function of that name beside it could be shadowed;
a package that can be called has no such accident.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from quantvm.errors import missing_package_named


class _CallablePackage(ModuleType):
    @missing_package_named()
    def __call__(self, *args: Any, **options: Any) -> Any:
        from quantvm.evaluate.benchmark import evaluate

        return evaluate(*args, **options)


sys.modules[__name__].__class__ = _CallablePackage
