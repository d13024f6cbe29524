"""Machine code that calls what it was linked with, and nothing else that happens to be loaded.

Numba optimizes a function when it is compiled, and once more, with its callers, when it is linked
with them: two versions, of which fast-math may round one otherwise than the other. Both have the
same name and yield to what is loaded already, so that a kernel would use one version in the
process that compiles it, another in those that take it from the cache, and in these too whichever
came first: other last digits in a run that is taken up again.
"""

from __future__ import annotations

from typing import Any

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import LoweringPass, register_pass
from numba.core.typed_passes import IRLegalization

SHARED = {"linkonce_odr", "weak_odr"}  # may be replaced by another of the same name


class _Library(JITCodeLibrary):  # type: ignore[misc]
    """A kernel's code, in which the names of what is linked into it are its own."""

    def _optimize_final_module(self) -> None:
        super()._optimize_final_module()
        # Not before: a function of nobody else's that is called once is inlined, however long.
        for function in self._final_module.functions:
            if not function.is_declaration and function.linkage.name in SHARED:
                function.linkage = "internal"


@register_pass(mutates_CFG=False, analysis_only=False)
class _InOwnLibrary(LoweringPass):  # type: ignore[misc]
    """Have a kernel compiled into a library of that kind."""

    _name = "vitkit_in_own_library"

    def __init__(self) -> None:
        LoweringPass.__init__(self)

    def run_pass(self, state: Any) -> bool:
        """Put the library where lowering looks for one before it makes its own."""
        state.library = _Library(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        return False


class Alone(CompilerBase):  # type: ignore[misc]
    """The steps of Numba's own compiler, and that library."""

    def define_pipelines(self) -> list[Any]:
        """Return the steps."""
        steps = DefaultPassBuilder.define_nopython_pipeline(self.state)
        steps.add_pass_after(_InOwnLibrary, IRLegalization)
        steps.finalize()
        return [steps]
